"""The running task: :class:`TaskContext` holds its facts, and :func:`current_task` returns it.

:func:`log_as_retried` logs at a level that depends on the number of the running task's attempts.
"""

from __future__ import annotations

import contextvars
import datetime
import logging
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deferred_middleware.config.process import current_deployment
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    import webob
    from _typeshed.wsgi import WSGIEnvironment

    from deferred_middleware.calls.call import Call, Content
    from deferred_middleware.wire import overflow


class _PlatformKeys(NamedTuple):
    """The keys in ``environ`` of the headers in which the platform describes a task."""

    name: str
    queue: str
    retry_count: str
    execution_count: str
    eta: str
    previous_response: str
    retry_reason: str


_APP_ENGINE: Final = _PlatformKeys(
    name=protocol.environ_key(protocol.TASK_NAME_HEADER),
    queue=protocol.environ_key(protocol.QUEUE_NAME_HEADER),
    retry_count=protocol.environ_key(protocol.RETRY_COUNT_HEADER),
    execution_count=protocol.environ_key(protocol.EXECUTION_COUNT_HEADER),
    eta=protocol.environ_key(protocol.ETA_HEADER),
    previous_response=protocol.environ_key(protocol.PREVIOUS_RESPONSE_HEADER),
    retry_reason=protocol.environ_key(protocol.RETRY_REASON_HEADER),
)
_CLOUD_TASKS: Final = _PlatformKeys(
    name=protocol.environ_key(protocol.CLOUD_TASKS_TASK_NAME_HEADER),
    queue=protocol.environ_key(protocol.CLOUD_TASKS_QUEUE_NAME_HEADER),
    retry_count=protocol.environ_key(protocol.CLOUD_TASKS_RETRY_COUNT_HEADER),
    execution_count=protocol.environ_key(protocol.CLOUD_TASKS_EXECUTION_COUNT_HEADER),
    eta=protocol.environ_key(protocol.CLOUD_TASKS_ETA_HEADER),
    previous_response=protocol.environ_key(protocol.CLOUD_TASKS_PREVIOUS_RESPONSE_HEADER),
    retry_reason=protocol.environ_key(protocol.CLOUD_TASKS_RETRY_REASON_HEADER),
)
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
    """The task that is running: its queue, its name, its attempts and its deadline.

    The facts come from the headers of the request, which are described at
    https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers, and for a task that Cloud
    Tasks delivers to a URL at https://cloud.google.com/tasks/docs/creating-http-target-tasks . If a header is absent or
    not a number, the fact is None, or 0 for a count.
    """

    __slots__ = ("_call", "_request", "_started", "content", "environ", "error", "label", "stored")

    def __init__(self, environ: WSGIEnvironment, label: str = "") -> None:
        self.environ: WSGIEnvironment = environ
        self.label: str = label
        """The call's label, ``module/qualname``. Until the payload is read, it is the label in the URL."""
        self.content: Content | None = None
        """The callable, its positional arguments and its keyword arguments, from which :attr:`call` is made."""
        self.error: BaseException | None = None
        """The exception that the attempt raised, for hooks; None while it runs, and if it succeeded."""
        self.stored: overflow.Reference | None = None
        """The reference to the payload, if it is in the datastore."""
        self._call: Call | None = None
        self._request: webob.Request | None = None
        self._started = time.monotonic()

    @property
    def call(self) -> Call | None:
        """The call; None until the payload is read, and if the payload can't be read."""
        if self._call is None and self.content is not None:
            from deferred_middleware.calls.call import Call

            self._call = Call.of(self.content)
        return self._call

    @property
    def _keys(self) -> _PlatformKeys:
        """The keys of the headers that the request has. They are not kept, because few tasks ask for them."""
        is_by_url = _APP_ENGINE.name not in self.environ and _CLOUD_TASKS.name in self.environ
        return _CLOUD_TASKS if is_by_url else _APP_ENGINE

    @property
    def name(self) -> str:
        """The task's name, which the caller or the queue chose."""
        return str(self.environ.get(self._keys.name, ""))

    @property
    def queue(self) -> str:
        """The queue's name."""
        return str(self.environ.get(self._keys.queue, ""))

    @property
    def retry_count(self) -> int:
        """The number of earlier attempts, including those for which no instance was available."""
        return _number(self.environ.get(self._keys.retry_count)) or 0

    @property
    def execution_count(self) -> int:
        """The number of earlier attempts that got a response from a handler.

        For a task that Cloud Tasks delivers to a URL, the responses 500 and 503 don't count.
        """
        return _number(self.environ.get(self._keys.execution_count)) or 0

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1. After ``RetryLater``, the count continues in the next task."""
        return self.retry_count + 1 + (_number(self.environ.get(_EARLIER_ATTEMPTS)) or 0)

    @property
    def max_attempts(self) -> int | None:
        """The total number of attempts that the function's ``@task(max_attempts=…)`` allows; None if it sets none."""
        return _number(self.environ.get(_MAX_ATTEMPTS))

    @property
    def retry_limit(self) -> int | None:
        """The ``task_retry_limit`` of ``_retry_options``, if there is no age limit; the queue's limit is not known."""
        return _number(self.environ.get(_RETRY_LIMIT))

    @property
    def is_last_attempt(self) -> bool | None:
        """Whether the task is not retried if this attempt fails; None if that is not known.

        It is known from ``max_attempts``, or from a ``task_retry_limit`` of the task itself. The platform does not tell
        the handler the limit of the queue.
        """
        max_attempts = self.max_attempts
        if max_attempts is not None and self.attempt >= max_attempts:
            return True
        limit = self.retry_limit
        return None if limit is None else self.retry_count >= limit

    @property
    def eta(self) -> datetime.datetime | None:
        """The time at which the task was due, in UTC."""
        try:
            return datetime.datetime.fromtimestamp(float(self.environ[self._keys.eta]), datetime.timezone.utc)
        except (KeyError, ValueError, OverflowError, OSError):
            return None

    def eta_as_sent(self) -> str:
        """Return the time at which the task was due, as the platform writes it; empty if it is not known."""
        return str(self.environ.get(self._keys.eta, ""))

    @property
    def previous_response(self) -> int | None:
        """The HTTP status of the previous attempt; None in the first attempt.

        After a timeout it is 0, or 504 for a task that Cloud Tasks delivers to a URL.
        """
        return _number(self.environ.get(self._keys.previous_response))

    @property
    def retry_reason(self) -> str | None:
        """Why the task was retried, in the platform's words; None in the first attempt."""
        reason = self.environ.get(self._keys.retry_reason)
        return str(reason) if reason else None

    @property
    def service(self) -> str | None:
        """The service that runs the task; None where the platform sets none."""
        return current_deployment().service

    @property
    def version(self) -> str | None:
        """The version that runs the task; None where the platform sets none."""
        return current_deployment().version

    @property
    def deadline_seconds(self) -> float | None:
        """How long this attempt may take from its start; None if that is not known.

        It is known if the call has a ``_deadline``, and on the local server. The platform's default is 10 minutes with
        automatic scaling and 24 hours otherwise, but a process can't find out how it is scaled.
        """
        try:
            return float(self.environ[_DEADLINE])
        except (KeyError, ValueError):
            pass
        return protocol.DEFAULT_DISPATCH_DEADLINE_SECONDS if protocol.LOCAL_SERVER_ENVIRON_KEY in self.environ else None

    @property
    def deadline(self) -> datetime.datetime | None:
        """The time at which this attempt is aborted, in UTC; None if it is not known. See :attr:`deadline_seconds`."""
        remaining = self.seconds_remaining
        if remaining is None:
            return None
        return datetime.datetime.fromtimestamp(time.time() + remaining, datetime.timezone.utc)

    @property
    def seconds_remaining(self) -> float | None:
        """The seconds until this attempt is aborted, negative afterwards; None if they are not known."""
        seconds = self.deadline_seconds
        return None if seconds is None else seconds - self.elapsed_seconds

    @property
    def elapsed_seconds(self) -> float:
        """The seconds since this attempt reached the handler."""
        return time.monotonic() - self._started

    @property
    def request(self) -> webob.Request:
        """The request that delivered the task. Its body has been read already."""
        if self._request is None:
            import webob

            self._request = webob.Request(self.environ)
        return self._request

    def __repr__(self) -> str:
        return f"<TaskContext {self.label} name={self.name!r} queue={self.queue!r} attempt={self.attempt}>"


CURRENT_TASK: Final[contextvars.ContextVar[TaskContext | None]] = contextvars.ContextVar(
    "deferred_middleware.current_task", default=None
)
"""The context of the task that is running."""


def current_task() -> TaskContext | None:
    """Return the context of the task that is running, or None outside of tasks."""
    return CURRENT_TASK.get()


_LEVELS: Final = (logging.INFO, logging.WARNING, logging.ERROR)


def log_as_retried(logger_or_message: logging.Logger | object, /, *args: Any, **kwargs: Any) -> None:
    """Log at INFO in a task's first attempt, at WARNING in the second, at ERROR in the third, and then at CRITICAL.

    Outside of a task, log at ERROR. Use it for a problem that may be temporary: it needs attention only if it occurs
    again and again::

        log_as_retried("no answer from %s", host)
        log_as_retried(logger, "no answer from %s", host)

    Args:
        logger_or_message: a logger, with the message as the next argument; or the message, for the root logger.
        args: the message if a logger is given, and the arguments of the message.
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
        # The number of the attempt includes the attempts before a RetryLater.
        earlier_attempts = task.attempt - 1
        level = _LEVELS[earlier_attempts] if earlier_attempts < len(_LEVELS) else logging.CRITICAL
    kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
    logger.log(level, message, *values, **kwargs)
