"""What a running task can know about itself: :class:`TaskContext`, and :func:`current_task` to get at it.

Log the louder the more often the running task was tried.
"""

from __future__ import annotations

import contextvars
import datetime
import logging
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.calls.call import Call, Content
from deferred_middleware.config.settings import current_deployment
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    import webob
    from _typeshed.wsgi import WSGIEnvironment

_NAME = protocol.environ_key(protocol.TASK_NAME_HEADER)
_QUEUE = protocol.environ_key(protocol.QUEUE_NAME_HEADER)
_RETRY_COUNT = protocol.environ_key(protocol.RETRY_COUNT_HEADER)
_EXECUTION_COUNT = protocol.environ_key(protocol.EXECUTION_COUNT_HEADER)
_ETA = protocol.environ_key(protocol.ETA_HEADER)
_PREVIOUS_RESPONSE = protocol.environ_key(protocol.PREVIOUS_RESPONSE_HEADER)
_RETRY_REASON = protocol.environ_key(protocol.RETRY_REASON_HEADER)
_RETRY_LIMIT = protocol.environ_key(protocol.RETRY_LIMIT_HEADER)
_MAX_ATTEMPTS = protocol.environ_key(protocol.MAX_ATTEMPTS_HEADER)
_EARLIER_ATTEMPTS = protocol.environ_key(protocol.EARLIER_ATTEMPTS_HEADER)
_DEADLINE = protocol.environ_key(protocol.DEADLINE_HEADER)


def _number(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None


class TaskContext:
    """The task that is running: where it came from and how often it was tried.

    Its facts are the request's headers, described at
    https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers ; one that is absent or no
    number is None, or 0 for a count.
    """

    __slots__ = ("_call", "_request", "_started", "_token", "content", "environ", "error", "label")

    def __init__(self, environ: WSGIEnvironment, label: str = "") -> None:
        self.environ = environ
        self.label = label
        """The call's label, ``module/qualname``; while the payload is being loaded, what the URL says."""
        self.content: Content | None = None
        """The callable, its positional and its keyword arguments: what :attr:`call` is made of."""
        self.error: BaseException | None = None
        """What the attempt raised, for hooks; None while it runs, and if it went well."""
        self._call: Call | None = None
        self._request: webob.Request | None = None
        self._started = time.monotonic()

    @property
    def call(self) -> Call | None:
        """The call, made when first asked for; None while the payload is being loaded, or if it can't be."""
        if self._call is None and self.content is not None:
            self._call = Call.of(self.content)
        return self._call

    @property
    def name(self) -> str:
        """The task's name, chosen by the caller or by the queue."""
        return str(self.environ.get(_NAME, ""))

    @property
    def queue(self) -> str:
        """The queue's name."""
        return str(self.environ.get(_QUEUE, ""))

    @property
    def retry_count(self) -> int:
        """How often the task was tried before, attempts that found no instance included."""
        return _number(self.environ.get(_RETRY_COUNT)) or 0

    @property
    def execution_count(self) -> int:
        """How many earlier attempts got a response from a handler."""
        return _number(self.environ.get(_EXECUTION_COUNT)) or 0

    @property
    def attempt(self) -> int:
        """This attempt's number, from 1; it goes on where a task was enqueued again with ``RetryLater``."""
        return self.retry_count + 1 + (_number(self.environ.get(_EARLIER_ATTEMPTS)) or 0)

    @property
    def max_attempts(self) -> int | None:
        """The cap of attempts that the function's ``@task(max_attempts=…)`` sets; None if there is none."""
        return _number(self.environ.get(_MAX_ATTEMPTS))

    @property
    def retry_limit(self) -> int | None:
        """The ``task_retry_limit`` given in ``_retry_options``, where it alone decides; a queue's own isn't known."""
        return _number(self.environ.get(_RETRY_LIMIT))

    @property
    def is_last_attempt(self) -> bool | None:
        """Whether a failure of this attempt is final; None where the task can't know.

        A queue's own limit is not told to the handler: only ``max_attempts``, and a ``task_retry_limit`` of the task
        itself, make it known.
        """
        cap = self.max_attempts
        if cap is not None and self.attempt >= cap:
            return True
        limit = self.retry_limit
        return None if limit is None else self.retry_count >= limit

    @property
    def eta(self) -> datetime.datetime | None:
        """When the task was due, in UTC."""
        try:
            return datetime.datetime.fromtimestamp(float(self.environ[_ETA]), datetime.timezone.utc)
        except (KeyError, ValueError, OverflowError, OSError):
            return None

    @property
    def previous_response(self) -> int | None:
        """The HTTP status of the previous attempt, 0 after a timeout; None on the first."""
        return _number(self.environ.get(_PREVIOUS_RESPONSE))

    @property
    def retry_reason(self) -> str | None:
        """Why the task is tried again, in the platform's words; None on the first attempt."""
        reason = self.environ.get(_RETRY_REASON)
        return str(reason) if reason else None

    @property
    def service(self) -> str | None:
        """The service that runs the task; None where the platform doesn't say."""
        return current_deployment().service

    @property
    def version(self) -> str | None:
        """The version that runs the task; None where the platform doesn't say."""
        return current_deployment().version

    @property
    def deadline_seconds(self) -> float | None:
        """How long this attempt may take from its start; None where that isn't known.

        It is known where the call was given a ``_deadline``, and on the local server. The platform's own default is 10
        minutes with automatic scaling and 24 hours otherwise, and a process is not told how it is scaled.
        """
        try:
            return float(self.environ[_DEADLINE])
        except (KeyError, ValueError):
            pass
        return protocol.DEFAULT_DISPATCH_DEADLINE_SECONDS if protocol.LOCAL_SERVER_ENVIRON_KEY in self.environ else None

    @property
    def deadline(self) -> datetime.datetime | None:
        """When this attempt is cut off, in UTC; None where that isn't known. See :attr:`deadline_seconds`."""
        remaining = self.seconds_remaining
        if remaining is None:
            return None
        return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=remaining)

    @property
    def seconds_remaining(self) -> float | None:
        """Seconds until this attempt is cut off, negative afterwards; None where that isn't known."""
        seconds = self.deadline_seconds
        return None if seconds is None else seconds - self.elapsed_seconds

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since this attempt reached the handler."""
        return time.monotonic() - self._started

    @property
    def request(self) -> webob.Request:
        """The request that delivered the task, made when first asked for. Its body has been read."""
        if self._request is None:
            import webob

            self._request = webob.Request(self.environ)
        return self._request

    def __enter__(self) -> TaskContext:
        """Make this the current task; enter a context once at a time."""
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore what was current before."""
        _current.reset(self._token)

    def __repr__(self) -> str:
        return f"<TaskContext {self.label} name={self.name!r} queue={self.queue!r} attempt={self.attempt}>"


_current: contextvars.ContextVar[TaskContext | None] = contextvars.ContextVar(
    "deferred_middleware.current_task", default=None
)


def current_task() -> TaskContext | None:
    """Return the context of the task that is running, or None outside of tasks."""
    return _current.get()


_LEVELS: Final = (logging.INFO, logging.WARNING, logging.ERROR)


def log_as_retried(logger_or_message: logging.Logger | object, /, *args: Any, **kwargs: Any) -> None:
    """Log at INFO in a task's first attempt, at WARNING in its second, at ERROR in its third, then at CRITICAL.

    Outside of a task it is an ERROR. What can fail once or twice in a task is no reason to wake anybody; what fails
    again and again is::

        log_as_retried("no answer from %s", host)
        log_as_retried(logger, "no answer from %s", host)

    Args:
        logger_or_message: a logger, with the message as the next argument, or the message, for the root logger.
        args: the message if a logger was given, and what is formatted into it.
        kwargs: as for :meth:`logging.Logger.log`: ``exc_info``, ``extra`` and so on.
    """
    if isinstance(logger_or_message, logging.Logger):
        logger, (message, *values) = logger_or_message, args
    else:
        logger, message, values = logging.getLogger(), logger_or_message, list(args)
    task = current_task()
    if task is None:
        level = logging.ERROR
    else:
        # Attempts before a RetryLater count as well: attempt is the number in all.
        tried = task.attempt - 1
        level = _LEVELS[tried] if tried < len(_LEVELS) else logging.CRITICAL
    kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
    logger.log(level, message, *values, **kwargs)
