"""The warm-up: a module that is imported once, before the first payload is decoded.

Run one delivered task and say how it ended; what that is in HTTP is the handler's affair.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from deferred_middleware.calls import payload
from deferred_middleware.calls.call import ended
from deferred_middleware.calls.callables import AnyCallable, agrees, label_text
from deferred_middleware.enqueue import request_end
from deferred_middleware.errors import PayloadError, PayloadFinishedError, SettingsError, TaskContentError, WarmupError
from deferred_middleware.execution import legacy, logs
from deferred_middleware.execution.outcomes import DeadLetter, Failure, Outcome
from deferred_middleware.wire import namespace, overflow, protocol, tracing

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Content
    from deferred_middleware.config.hooks import Hooks
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.execution.context import TaskContext
    from deferred_middleware.execution.retry_later import RetryLater

logger = logging.getLogger("deferred_middleware")


class Warmup:
    """Imports a module once; a failed import is tried again the next time.

    Raises :class:`~deferred_middleware.SettingsError` when there is no such module.
    """

    def __init__(self, module: str | None) -> None:
        self._module = module
        self._lock = threading.Lock()
        self.done = module is None
        """Whether there is nothing left to do."""
        if module is not None and not _exists(module):
            raise SettingsError("DEFERRED_WARMUP_MODULE", module, "the name of a module that can be imported")

    def run(self) -> None:
        """Import the module if that is still to be done; whoever comes meanwhile waits. Raises :class:`WarmupError`."""
        with self._lock:
            if self.done or self._module is None:
                return
            started = time.perf_counter()
            try:
                importlib.import_module(self._module)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                milliseconds = (time.perf_counter() - started) * 1000
                raise WarmupError(
                    self._module,
                    f"the warm-up module {self._module} can't be imported: {type(error).__name__}: {error} "
                    f"(after {milliseconds:.0f} ms)",
                ) from error
            self.done = True
            logger.info("warm-up module %s imported in %.0f ms", self._module, (time.perf_counter() - started) * 1000)


def _exists(module: str) -> bool:
    """Tell whether ``module`` is there to import, without importing more of it than its parent packages."""
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


EnqueueAgain = Callable[["TaskContext", bytes, "RetryLater"], None]
"""Enqueues the call of a task, given its payload, once more; raises if it is not enqueued."""

_DONE: Final = Outcome.DONE  # an enumeration's attributes are slow to come by before Python 3.12
_FINISHED = frozenset({Outcome.DONE, Outcome.POSTPONED})
"""The outcomes after which a payload in the datastore is of no more use; a dead letter's may be run again."""


class Runner:
    """Runs the tasks of one handler.

    ``enqueue_again`` is what a ``RetryLater`` needs; it is given, because this module knows nothing of enqueueing.
    """

    def __init__(self, settings: Settings, hooks: Hooks, warmup: Warmup, enqueue_again: EnqueueAgain) -> None:
        self._settings = settings
        self._hooks = hooks
        self._before_task = hooks.listens("before_task")
        self._after_task = hooks.listens("after_task")
        self._log_level = settings.log_level
        self._warmup = warmup
        self._enqueue_again = enqueue_again

    def run(self, context: TaskContext, body: bytes, url_label: str | None) -> Outcome:
        """Run the task in ``body``, log how it went and tell the hooks; ``context.error`` is what it raised.

        ``url_label`` is what follows the prefix in the URL, decoded; None where the URL is not ours and names no call.
        Whatever the task raises becomes the outcome, except KeyboardInterrupt, which is the developer's at the
        terminal.
        """
        with context:
            try:
                reference = None
                if body.startswith(protocol.OVERFLOW_MAGIC):
                    reference = overflow.Reference.parse(body, self._settings.max_payload_bytes)
                content = body if reference is None else overflow.fetch(reference)
                # In the task's namespace already when it is read: the keys in it may take the current one.
                before = namespace.enter(context.environ)
                try:
                    outcome = self._run(context, body, content, url_label)
                finally:
                    namespace.leave(before)
            except PayloadFinishedError as error:
                logs.repeated(context, error, self._settings)
                return Outcome.DONE
            except TaskContentError as error:
                return self._failed(context, body, error, Outcome.UNREADABLE)
        if reference is not None and outcome in _FINISHED:
            overflow.finish(reference)
        return outcome

    def _run(self, context: TaskContext, body: bytes, content: bytes, url_label: str | None) -> Outcome:
        """Run the task whose payload is ``content``; raises :class:`TaskContentError` if that is no call here."""
        func, args, kwargs = self._load(context, content, url_label)
        if self._before_task:
            self._hooks.fire("before_task", context)
        if logs.headers_logger.isEnabledFor(logging.DEBUG):
            logs.headers(context)
        try:
            if tracing.is_active():
                with tracing.consumer_span(context):
                    ended(func, func(*args, **kwargs))
            elif (result := func(*args, **kwargs)) is not None:
                ended(func, result)
            if request_end.UNDER_WAY or request_end.FAILED:
                request_end.raise_failure()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit too fails the task, not the worker
            outcome = self._raised(context, body, content, error)
        else:
            outcome = _DONE
            if logs.logger.isEnabledFor(self._log_level):
                logs.success(context, self._log_level)
        if self._after_task:
            self._hooks.fire("after_task", context, outcome)
        return outcome

    def _load(self, context: TaskContext, content: bytes, url_label: str | None) -> Content:
        """Return the call in ``content``; raises :class:`TaskContentError` if this version can't have it."""
        if not self._warmup.done:
            self._warmup.run()
        loaded = payload.content_of(content, self._settings, legacy=url_label is None)
        if url_label is None:
            loaded, context.label = legacy.resolved(loaded, self._settings)
        else:
            context.label = label = label_text(loaded[0])
            if url_label != label:
                _check_label(url_label, loaded[0])
        context.content = loaded
        return loaded

    def _raised(self, context: TaskContext, body: bytes, content: bytes, error: BaseException) -> Outcome:
        """Return what becomes of a task whose call raised ``error``, after doing what that takes."""
        from google.appengine.ext.deferred import PermanentTaskFailure, SingularTaskFailure

        from deferred_middleware.execution.retry_later import RetryLater

        if isinstance(error, PermanentTaskFailure):
            return self._failed(context, body, error, Outcome.PERMANENT_FAILURE)
        if isinstance(error, RetryLater):
            if context.attempt < error.cap_for(context):
                return self._postpone(context, body, content, error)
            return self._failed(context, body, error, Outcome.ATTEMPTS_EXHAUSTED)
        if context.max_attempts is not None and context.attempt >= context.max_attempts:
            return self._failed(context, body, error, Outcome.ATTEMPTS_EXHAUSTED)
        if isinstance(error, SingularTaskFailure) and not context.is_last_attempt:
            context.error = error
            logs.retry(context, error)
            return Outcome.RETRY
        return self._failed(context, body, error, Outcome.FAILED)

    def _postpone(self, context: TaskContext, body: bytes, content: bytes, error: RetryLater) -> Outcome:
        """Enqueue the call again; if that fails, the attempt has failed, and the queue tries it again itself."""
        try:
            self._enqueue_again(context, content, error)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the task must not be acknowledged
            problem.__cause__ = problem.__cause__ or error
            return self._failed(context, body, problem, Outcome.FAILED)
        context.error = error
        logs.postponed(context, error)
        return Outcome.POSTPONED

    def _failed(self, context: TaskContext, body: bytes, error: BaseException, outcome: Outcome) -> Outcome:
        """Log a failure and tell the hooks, also if it was the last attempt; return ``outcome``."""
        context.error = error
        logs.failure(context, error, outcome, self._settings)
        hooks = self._hooks
        if hooks.listens("on_failure"):
            hooks.fire("on_failure", Failure(context=context, call=context.call, error=error, outcome=outcome))
        reason = _end_of(context, outcome)
        if reason is not None:
            letter = DeadLetter(
                context=context, call=context.call, error=error, outcome=outcome, reason=reason, body=body
            )
            logs.dead_letter(letter, self._settings)
            hooks.fire("on_dead_letter", letter)
        return outcome


def _end_of(context: TaskContext, outcome: Outcome) -> str | None:
    """Return why the task is not tried again, or None if it is, as far as can be known."""
    if outcome is Outcome.PERMANENT_FAILURE:
        return "it raised PermanentTaskFailure"
    if outcome is Outcome.ATTEMPTS_EXHAUSTED:
        return f"attempt {context.attempt} was the last that its function allows"
    if context.retry_limit is not None and context.retry_count >= context.retry_limit:
        return f"attempt {context.attempt} was the last that its retry options allow"
    return None


def _check_label(url_label: str, func: AnyCallable) -> None:
    """Raise unless the URL names the call that its payload holds, so that dashboards and logs can be believed."""
    module, _, qualname = url_label.partition("/")
    if not agrees(module, qualname, func):
        raise PayloadError(f"the URL names {url_label!r}, but the payload calls {label_text(func)}")


def label_in(path: str, prefix: str) -> str:
    """Return the label in a request's path: what follows the prefix, as text.

    PEP 3333 hands the decoded bytes of a path over as Latin-1.
    """
    label = path[len(prefix) :]
    if label.isascii():
        return label
    return label.encode("latin-1", "replace").decode("utf-8", "replace")
