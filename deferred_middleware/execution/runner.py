"""Run one delivered task, and return how the attempt ended. The handler turns the outcome into an HTTP response.

Before the first payload is read, the warm-up module is imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.calls.call import wait_for_result
from deferred_middleware.calls.callables import AnyCallable, agrees, label_text
from deferred_middleware.calls.payload import content_of
from deferred_middleware.enqueue import request_end
from deferred_middleware.errors import PayloadError, PayloadFinishedError, SettingsError, TaskContentError, WarmupError
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.errors.text import cause_of, set_cause, text_of
from deferred_middleware.execution import logs
from deferred_middleware.execution.context import CURRENT_TASK
from deferred_middleware.execution.outcomes import DeadLetter, Failure, Outcome
from deferred_middleware.wire import namespace, overflow, protocol, tracing

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Content
    from deferred_middleware.config.hooks import Hooks
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.execution.context import TaskContext
    from deferred_middleware.execution.retry_later import RetryLater

logger: Final = get_logger("deferred_middleware")


class Warmup:
    """Imports a module once. If the import fails, the next task tries again.

    Raises :class:`~deferred_middleware.SettingsError` if the module does not exist.
    """

    def __init__(self, module: str | None) -> None:
        self._module = module
        self._lock = threading.Lock()
        self.done: bool = module is None
        """Whether the module has been imported, or there is none."""
        if module is not None and not _exists(module):
            raise SettingsError("DEFERRED_WARMUP_MODULE", module, "the name of a module that can be imported")

    def run(self) -> None:
        """Import the module if it is not imported yet. Other threads wait meanwhile. Raises :class:`WarmupError`."""
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
                    f"the warm-up module {self._module} can't be imported: {type(error).__name__}: {text_of(error)} "
                    f"(after {milliseconds:.0f} ms)",
                ) from error
            self.done = True
            logger.info(
                "imported the warm-up module %s in %.0f ms", self._module, (time.perf_counter() - started) * 1000
            )


def _exists(module: str) -> bool:
    """Tell whether ``module`` can be found, without importing more than its parent packages."""
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _call(func: AnyCallable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Call ``func``, and wait for what it returns."""
    wait_for_result(func, func(*args, **kwargs))


_DONE: Final = Outcome.DONE  # before Python 3.12, access to the attribute of an enumeration is slow


class Runner:
    """Runs the tasks of one handler."""

    def __init__(self, settings: Settings, hooks: Hooks, warmup: Warmup) -> None:
        self._settings = settings
        self._hooks = hooks
        self._before_task = hooks.listens("before_task")
        self._after_task = hooks.listens("after_task")
        self._log_level = settings.log_level
        self._warmup = warmup

    def run(self, context: TaskContext, body: bytes, url_label: str | None) -> Outcome:
        """Run the task with this body, log the result and call the hooks; ``context.error`` is what the task raised.

        ``url_label`` is the label in the URL; None if the URL is not one of ours and names no call. Every exception of
        the task becomes an outcome, except KeyboardInterrupt, which is meant for the developer at the terminal.
        """
        token = CURRENT_TASK.set(context)
        try:
            content = body
            if body.startswith(protocol.OVERFLOW_MAGIC):
                context.stored = overflow.Reference.parse(body, self._settings.max_payload_bytes)
                assert context.stored is not None  # the body starts as a reference does
                content = overflow.fetch(context.stored)
            # The payload is read in the task's namespace too: datastore keys in it may get the current namespace.
            before = namespace.enter(context.environ)
            try:
                return self._run(context, body, content, url_label)
            finally:
                # The call may have changed the namespace.
                if before is not None and namespace.manager.get_namespace() != before:
                    namespace.manager.set_namespace(before)
        except PayloadFinishedError as error:
            context.stored = None
            if _was_refused_outside(context, error):
                return self._failed(context, body, error, Outcome.PERMANENT_FAILURE)
            logs.repeated(context, error, self._settings)
            return _DONE
        except TaskContentError as error:
            return self._failed(context, body, error, Outcome.UNREADABLE)
        finally:
            CURRENT_TASK.reset(token)

    def fail(self, context: TaskContext, body: bytes, error: BaseException) -> Outcome:
        """Return the outcome for a task that was done before a layer of the app failed with ``error``.

        Log the failure and call the hooks.
        """
        token = CURRENT_TASK.set(context)
        try:
            return self._failed(context, body, error, _outcome_of_failure(context))
        finally:
            CURRENT_TASK.reset(token)

    def _run(self, context: TaskContext, body: bytes, content: bytes, url_label: str | None) -> Outcome:
        """Run the task whose payload is ``content``. Raises :class:`TaskContentError` if the payload can't be read."""
        func, args, kwargs = self._load(context, content, url_label)
        if self._before_task:
            self._hooks.fire("before_task", context)
        if logs.headers_logger.isEnabledFor(logging.DEBUG):
            logs.headers(context)
        try:
            if tracing.API_MODULE in sys.modules and tracing.is_active():
                tracing.run_in_span(context, functools.partial(_call, func, args, kwargs))
            elif (result := func(*args, **kwargs)) is not None:
                wait_for_result(func, result)
            if request_end.UNDER_WAY or request_end.FAILED:
                request_end.raise_failure()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - even SystemExit fails only the task, not the worker
            outcome = self._raised(context, body, content, error)
        else:
            outcome = _DONE
            if logs.logger.isEnabledFor(self._log_level):
                logs.success(context, self._log_level)
        if self._after_task:
            self._hooks.fire("after_task", context, outcome)
        return outcome

    def _load(self, context: TaskContext, content: bytes, url_label: str | None) -> Content:
        """Return the call in ``content``. Raises :class:`TaskContentError` if this version can't read it."""
        if not self._warmup.done:
            self._warmup.run()
        loaded = content_of(content, self._settings, legacy=url_label is None)
        if url_label is None:
            from deferred_middleware.execution import legacy

            loaded, context.label = legacy.resolved(loaded, self._settings)
        else:
            context.label = label = label_text(loaded[0])
            if url_label != label:
                _check_label(url_label, loaded[0])
        context.content = loaded
        return loaded

    def _raised(self, context: TaskContext, body: bytes, content: bytes, error: BaseException) -> Outcome:
        """Return the outcome for a call that raised ``error``.

        Log it, and enqueue the call again if it asks for that.
        """
        from deferred_middleware.errors import task_failures
        from deferred_middleware.execution.retry_later import RetryLater

        # The type decides: isinstance() would also read the attribute __class__ of a user's exception.
        kind = type(error)
        if task_failures.is_permanent(kind):
            return self._failed(context, body, error, Outcome.PERMANENT_FAILURE)
        if issubclass(kind, RetryLater):
            assert isinstance(error, RetryLater)
            try:
                again = context.attempt < error.max_attempts_of(context)
            except Exception as problem:  # noqa: BLE001 - a subclass may lack what RetryLater sets
                set_cause(problem, error)
                return self._failed(context, body, problem, _outcome_of_failure(context))
            if again:
                return self._postpone(context, body, content, error)
            return self._failed(context, body, error, Outcome.ATTEMPTS_EXHAUSTED)
        outcome = _outcome_of_failure(context)
        if outcome is Outcome.ATTEMPTS_EXHAUSTED:
            return self._failed(context, body, error, outcome)
        if task_failures.is_singular(kind) and not context.is_last_attempt:
            context.error = error
            logs.retry(context, error)
            return Outcome.RETRY
        return self._failed(context, body, error, outcome)

    def _postpone(self, context: TaskContext, body: bytes, content: bytes, error: RetryLater) -> Outcome:
        """Enqueue the call again. If that fails, the attempt has failed, and the queue retries the task."""
        from deferred_middleware.execution.retry_later import enqueue_again

        try:
            enqueue_again(context, content, error)
        except Exception as problem:  # noqa: BLE001 - whatever the problem, the task must not be acknowledged
            set_cause(problem, cause_of(problem) or error)
            return self._failed(context, body, problem, Outcome.FAILED)
        context.error = error
        logs.postponed(context, error)
        return Outcome.POSTPONED

    def _failed(self, context: TaskContext, body: bytes, error: BaseException, outcome: Outcome) -> Outcome:
        """Log a failure and call the hooks, also for a dead letter if this was the last attempt; return ``outcome``."""
        context.error = error
        logs.failure(context, error, outcome, self._settings)
        hooks = self._hooks
        if hooks.listens("on_failure"):
            hooks.fire("on_failure", Failure(context=context, call=context.call, error=error, outcome=outcome))
        reason = _reason_not_to_retry(context, outcome, error)
        if reason is not None:
            letter = DeadLetter(
                context=context, call=context.call, error=error, outcome=outcome, reason=reason, body=body
            )
            logs.dead_letter(letter, self._settings)
            hooks.fire("on_dead_letter", letter)
        return outcome


def _outcome_of_failure(context: TaskContext) -> Outcome:
    """Return the outcome for an exception that says nothing about retries."""
    limit = context.max_attempts
    return Outcome.FAILED if limit is None or context.attempt < limit else Outcome.ATTEMPTS_EXHAUSTED


def _was_refused_outside(context: TaskContext, error: PayloadFinishedError) -> bool:
    """Tell whether the queue was sent an error by the attempt in which the call returned.

    Then a layer outside the middleware failed after it had read the response.
    """
    done_in, previous = error.retry_count, context.previous_response
    return done_in is not None and done_in < context.retry_count and previous is not None and previous >= 300


def _reason_not_to_retry(context: TaskContext, outcome: Outcome, error: BaseException) -> str | None:
    """Return why the task is not retried; None if it is retried, as far as this process can know."""
    if type(error) is PayloadFinishedError:
        return (
            f"its call returned in attempt {(error.retry_count or 0) + 1}, then a layer outside the middleware "
            f"answered with {context.previous_response}, and the payload had been removed"
        )
    if outcome is Outcome.PERMANENT_FAILURE:
        return "it raised PermanentTaskFailure"
    if outcome is Outcome.ATTEMPTS_EXHAUSTED:
        return f"attempt {context.attempt} was the last that its function allows"
    if context.retry_limit is not None and context.retry_count >= context.retry_limit:
        return f"attempt {context.attempt} was the last that its retry options allow"
    return None


def _check_label(url_label: str, func: AnyCallable) -> None:
    """Raise :class:`PayloadError` unless the URL names the callable, so that dashboards and logs show the truth."""
    module, _, qualname = url_label.partition("/")
    if not agrees(module, qualname, func):
        raise PayloadError(f"the URL names {url_label!r}, but the payload calls {label_text(func)}")
