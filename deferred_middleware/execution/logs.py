"""The log records of tasks: one line for a task that succeeded, a record with a traceback for a task that failed.

Each record also has the facts of the task as ``json_fields``. The handlers of google-cloud-logging write these into the
``jsonPayload`` of the entry
(https://cloud.google.com/python/docs/reference/logging/latest/std-lib-integration).
"""

from __future__ import annotations

import logging
import os
import urllib.parse
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.errors.text import encodable, formatted, log_error, set_traceback, text_of, traceback_of
from deferred_middleware.execution.outcomes import Outcome
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.execution.context import TaskContext
    from deferred_middleware.execution.outcomes import DeadLetter

logger: Final = get_logger("deferred_middleware")
# Separate loggers, so that you can turn them off, or send their records elsewhere.
headers_logger: Final = get_logger("deferred_middleware.headers")
_dead_letters_logger = get_logger("deferred_middleware.dead_letters")

FIELD: Final = "deferred_task"
"""The key of a task's facts in ``json_fields``."""

_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STANDARD_LIBRARY: Final = os.path.dirname(os.path.dirname(os.path.abspath(logging.__file__)))
_EVENT_LOOPS: Final = tuple(os.path.join(_STANDARD_LIBRARY, name, "") for name in ("asyncio", "concurrent"))

_WHAT_HAPPENED: Final = {
    Outcome.FAILED: "failed and will be retried",
    Outcome.PERMANENT_FAILURE: "failed for good and is dropped",
    Outcome.ATTEMPTS_EXHAUSTED: "failed in the last attempt that its function allows and is dropped",
    Outcome.UNREADABLE: "can't be run by this version of the app",
}


def success(context: TaskContext, level: int) -> None:
    """Log that a task succeeded. To save time, call this only if ``logger`` is enabled for ``level``."""
    logger.log(
        level,
        "%s ran in %.1f ms (queue %s, task %s, attempt %d)",
        context.label,
        context.elapsed_seconds * 1000,
        context.queue,
        context.name,
        context.attempt,
        extra=_fields(context, Outcome.DONE),
    )


def repeated(context: TaskContext, error: BaseException, settings: Settings) -> None:
    """Log that a task was delivered again although it is done."""
    logger.log(
        settings.log_level,
        "task %s is not run again: %s (queue %s)",
        context.name,
        error,
        context.queue,
        extra=_fields(context, Outcome.DONE),
    )


def retry(context: TaskContext, error: BaseException) -> None:
    """Log that a task asks for another attempt."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    logger.debug(
        "%s asks for another attempt: %s (queue %s, task %s, attempt %d)",
        context.label,
        text_of(error),
        context.queue,
        context.name,
        context.attempt,
        extra=_fields(context, Outcome.RETRY),
    )


def postponed(context: TaskContext, error: BaseException) -> None:
    """Log that the call of a task was enqueued again."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    logger.debug(
        "%s is enqueued again: %s (queue %s, task %s, attempt %d)",
        context.label,
        text_of(error),
        context.queue,
        context.name,
        context.attempt,
        extra=_fields(context, Outcome.POSTPONED),
    )


def failure(context: TaskContext, error: BaseException, outcome: Outcome, settings: Settings) -> None:
    """Log that a task failed, and remove our own frames from the traceback of the error."""
    set_traceback(error, from_users_code(traceback_of(error)))
    last = outcome is not Outcome.FAILED or context.is_last_attempt
    level = logging.ERROR if last else settings.retry_log_level
    if not logger.isEnabledFor(level):
        return
    call = context.call
    what = _WHAT_HAPPENED[outcome]
    if outcome is Outcome.FAILED and last:
        what = "failed in its last attempt"
    description = encodable(
        urllib.parse.unquote(str(context.environ.get("PATH_INFO")))
        if call is None
        else call.describe(settings.log_arguments)
    )
    log_error(
        logger,
        level,
        "task %s %s: %s (queue %s, attempt %d)",
        context.name,
        what,
        description,
        context.queue,
        context.attempt,
        error=error,
        extra=_fields(context, outcome, call=description, error=type(error).__name__),
    )


def headers(context: TaskContext) -> None:
    """Log the headers of a task's request at DEBUG, except secret ones.

    To save time, call this only if ``headers_logger`` is enabled for DEBUG.
    """
    shown = ", ".join(
        f"{key.removeprefix('HTTP_')}={value}"
        for key, value in context.environ.items()
        if key.startswith("HTTP_") and key not in protocol.SECRET_ENVIRON_KEYS
    )
    headers_logger.debug("headers of task %s: %s", context.name, shown)


def dead_letter(letter: DeadLetter, settings: Settings) -> None:
    """Log a dead letter, and how to run it again.

    The record has everything that is needed for that, unless the local server has it, or the arguments must not be
    logged.
    """
    from deferred_middleware.execution import dead_letters

    context = letter.context
    if protocol.LOCAL_SERVER_ENVIRON_KEY in context.environ:
        # The local server keeps the task.
        _dead_letters_logger.warning(
            "task %s of queue %s is not retried, because %s; `deferred-middleware retry %s/%s` tries it again",
            context.name,
            context.queue,
            letter.reason,
            context.queue,
            context.name,
        )
        return
    if settings.log_arguments != "short" or _is_redacted(letter):
        _dead_letters_logger.warning(
            "task %s of queue %s is not retried, because %s; its arguments must not be logged, so only a hook "
            "(on_dead_letter) can keep it",
            context.name,
            context.queue,
            letter.reason,
        )
        return
    record = dead_letters.record(letter, settings)
    _dead_letters_logger.warning(
        "task %s of queue %s is not retried, because %s; %s: %s%s",
        context.name,
        context.queue,
        letter.reason,
        "`deferred-middleware replay` runs it again from this line"
        if record.unsigned_because is None
        else "`deferred-middleware replay` can't run it again from this line, because the line is not signed: "
        + record.unsigned_because,
        dead_letters.MARK,
        record.text,
    )


def _is_redacted(letter: DeadLetter) -> bool:
    """Tell whether the function redacts arguments. The header says so if this version can't read the payload."""
    from deferred_middleware.calls.redaction import redacted_by

    if protocol.environ_key(protocol.REDACTED_HEADER) in letter.context.environ:
        return True
    return letter.call is not None and bool(redacted_by(letter.call.func))


def _fields(context: TaskContext, outcome: Outcome, **more: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "function": context.label,
        "queue": context.queue,
        "name": context.name,
        "attempt": context.attempt,
        "milliseconds": round(context.elapsed_seconds * 1000, 1),
        "outcome": outcome.value,
        "service": context.service,
        "version": context.version,
        **more,
    }
    return {"json_fields": {FIELD: facts}}


def from_users_code(found: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the first frame of the user's code on; the whole traceback if there is no such frame.

    The frames before it are ours, and those of the event loop in which we run a coroutine.
    """
    rest = found
    while rest is not None:
        file = rest.tb_frame.f_code.co_filename
        if not file.startswith((_PACKAGE, *_EVENT_LOOPS)):
            return rest
        rest = rest.tb_next
    return found


def traceback_text(error: BaseException, limit: int) -> str:
    """Return the traceback as a text of at most ``limit`` characters; the middle of a longer text is left out."""
    text = formatted(error)
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n  […]\n{text[-(limit - head - 7) :]}"
