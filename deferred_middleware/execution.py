"""Run one delivered task and say how it ended; what that is in HTTP is the middleware's affair."""

from __future__ import annotations

import enum
import importlib
import importlib.util
import logging
import sys
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING

from deferred_middleware import namespaces, overflow, payload, pending
from deferred_middleware.callables import agrees
from deferred_middleware.context import TaskContext
from deferred_middleware.delivery import delivery_of
from deferred_middleware.errors import PayloadError, PayloadFinishedError, SettingsError, TaskContentError, WarmupError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from deferred_middleware.calls import Call
    from deferred_middleware.settings import Settings

logger = logging.getLogger("deferred_middleware")


class Outcome(enum.Enum):
    """How an attempt ended."""

    DONE = "done"
    """The call returned."""
    RETRY = "retry"
    """The call asked for another attempt with ``SingularTaskFailure``."""
    PERMANENT_FAILURE = "permanent-failure"
    """The call raised ``PermanentTaskFailure``: it is not to be tried again."""
    FAILED = "failed"
    """The call raised anything else; it is tried again."""
    UNREADABLE = "unreadable"
    """The task can't be turned into a call here; it is tried again, for a newer version may be able to."""


class Warmup:
    """Imports a module once, before the first payload is decoded; a failed import is tried again by the next task."""

    def __init__(self, module: str | None) -> None:
        self._module = module
        self._lock = threading.Lock()
        self.done = module is None
        if module is not None and not _exists(module):
            raise SettingsError("DEFERRED_WARMUP_MODULE", module, "the name of a module that can be imported")

    def run(self) -> None:
        """Import the module if that is still to be done; raises :class:`WarmupError`."""
        with self._lock:
            if self.done or self._module is None:
                return
            started = time.perf_counter()
            try:
                importlib.import_module(self._module)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise WarmupError(
                    self._module,
                    f"the warm-up module {self._module} can't be imported: {type(error).__name__}: {error}",
                ) from error
            self.done = True
            logger.debug(
                "warm-up module %s imported in %.0f ms",
                self._module,
                (time.perf_counter() - started) * 1000,
            )


def _exists(module: str) -> bool:
    """Tell whether ``module`` is there to import, without importing more of it than its parent packages."""
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def run_task(
    environ: WSGIEnvironment, body: bytes, url_label: str | None, warmup: Warmup, settings: Settings
) -> Outcome:
    """Run the task in ``body`` and log how it went.

    ``url_label`` is what follows the prefix in the URL, decoded; None where the URL is not ours and names no call.
    Whatever the task raises becomes the outcome, except KeyboardInterrupt, which is the developer's at the terminal.
    """
    context = TaskContext(environ)
    try:
        reference = overflow.Reference.parse(body, settings.max_payload_bytes)
        if reference is not None:
            body = overflow.fetch(reference)
        # In the task's namespace already when it is read: the keys in it may take the current one.
        with namespaces.restored(environ):
            outcome = _run_payload(context, body, url_label, warmup, settings)
    except PayloadFinishedError as error:
        logger.log(settings.log_level, "task %s is not run again: %s (queue %s)", context.name, error, context.queue)
        return Outcome.DONE
    except TaskContentError as error:
        _log_failure(logging.ERROR, "can't be run by this version of the app", context, None, error)
        return Outcome.UNREADABLE
    if reference is not None and outcome is Outcome.DONE:
        overflow.finish(reference)
    return outcome


def _run_payload(
    context: TaskContext, body: bytes, url_label: str | None, warmup: Warmup, settings: Settings
) -> Outcome:
    """Run the task whose payload is ``body``; raises :class:`TaskContentError` if that is no call here."""
    if not warmup.done:
        warmup.run()
    call = payload.loads(body)
    context.label = str(call.label)
    if url_label is not None and url_label != context.label:
        _check_label(url_label, call)
    started = time.perf_counter()
    try:
        with context:
            call.run()
            if pending.UNDER_WAY or pending.FAILED:
                pending.raise_failure()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit and its like are failures of the task, not of the worker
        delivery = delivery_of(context.environ)
        if delivery is not None:
            delivery.error = error
        return _failed(error, call, context, settings)
    if logger.isEnabledFor(settings.log_level):
        logger.log(
            settings.log_level,
            "%s ran in %.1f ms (queue %s, task %s, attempt %d)",
            context.label,
            (time.perf_counter() - started) * 1000,
            context.queue,
            context.name,
            context.attempt,
        )
    return Outcome.DONE


def _failed(error: BaseException, call: Call, context: TaskContext, settings: Settings) -> Outcome:
    """Log what a call raised, as loudly as it deserves, and return which outcome that is."""
    from google.appengine.ext.deferred import PermanentTaskFailure, SingularTaskFailure

    if isinstance(error, SingularTaskFailure):
        _log_retry(context, error)
        return Outcome.RETRY
    if isinstance(error, PermanentTaskFailure):
        _log_failure(logging.ERROR, "failed for good and is dropped", context, call, error)
        return Outcome.PERMANENT_FAILURE
    if context.is_last_attempt:
        _log_failure(logging.ERROR, "failed in its last attempt", context, call, error)
    else:
        _log_failure(settings.retry_log_level, "failed and will be retried", context, call, error)
    return Outcome.FAILED


def _check_label(url_label: str, call: Call) -> None:
    """Raise unless the URL names the call that its payload holds, so that dashboards and logs can be believed."""
    module, _, qualname = url_label.partition("/")
    if not agrees(module, qualname, call.func):
        raise PayloadError(f"the URL names {url_label!r}, but the payload calls {call.label}")


def label_in(path: str, prefix: str) -> str:
    """Return the label in a request's path: what follows the prefix, as text.

    PEP 3333 hands the decoded bytes of a path over as Latin-1.
    """
    label = path[len(prefix) :]
    if label.isascii():
        return label
    return label.encode("latin-1", "replace").decode("utf-8", "replace")


def _log_retry(context: TaskContext, error: BaseException) -> None:
    logger.debug(
        "%s asks for another attempt: %s (queue %s, task %s, attempt %d)",
        context.label,
        error,
        context.queue,
        context.name,
        context.attempt,
    )


def _log_failure(level: int, what: str, context: TaskContext, call: Call | None, error: BaseException) -> None:
    logger.log(
        level,
        "task %s %s: %s (queue %s, attempt %d)",
        context.name,
        what,
        urllib.parse.unquote(str(context.environ.get("PATH_INFO"))) if call is None else call.describe(),
        context.queue,
        context.attempt,
        exc_info=error,
    )
