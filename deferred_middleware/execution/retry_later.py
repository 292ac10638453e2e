"""``RetryLater``: a task asks for another attempt at a time that it chooses, and its call is enqueued again.

Importing this module imports the SDK, except in a process that does without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import time
import urllib.parse
from typing import TYPE_CHECKING, Final

from deferred_middleware.calls import headers
from deferred_middleware.calls.options import Options
from deferred_middleware.config.process import current_deployment, current_settings
from deferred_middleware.errors import DeferredError
from deferred_middleware.errors.task_failures import SingularTaskFailure
from deferred_middleware.wire import namespace, protocol

if TYPE_CHECKING:
    from deferred_middleware.execution.context import TaskContext

DEFAULT_MAX_ATTEMPTS: Final = 100
"""The total number of attempts if neither ``RetryLater`` nor the function's ``@task`` sets one."""

_LONGEST_SECONDS: Final = protocol.MAX_ETA_DAYS * 24 * 3600


class RetryLater(DeferredError, SingularTaskFailure):
    """Raise it in a task to run the same call again after ``countdown``.

    The task is acknowledged, and the same call is enqueued again in the same queue, with its original arguments. The
    count of attempts continues (:attr:`TaskContext.attempt`), but the retry options of the queue apply anew. A
    RetryLater is also a ``SingularTaskFailure``, so the older library's handler retries the task.

    Args:
        countdown: the seconds until the next attempt, or a timedelta; at most 30 days.
        max_attempts: the total number of attempts. The default is that of the function's ``@task(max_attempts=…)``, or
            100. If the last attempt raises RetryLater, the task becomes a dead letter.

    Raises:
        ValueError: ``countdown`` is not a number of seconds from 0 to 30 days, or ``max_attempts`` is less than 1.
    """

    def __init__(self, countdown: float | datetime.timedelta, *, max_attempts: int | None = None) -> None:
        seconds = countdown.total_seconds() if isinstance(countdown, datetime.timedelta) else countdown
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST_SECONDS:
            raise ValueError(
                f"RetryLater({countdown!r}): expected a countdown of 0 to {_LONGEST_SECONDS:,} seconds, or a timedelta."
            )
        if max_attempts is not None and (isinstance(max_attempts, bool) or not max_attempts >= 1):
            raise ValueError(f"RetryLater(max_attempts={max_attempts!r}): expected a whole number, at least 1.")
        self.countdown_seconds: float = float(seconds)
        self.max_attempts = max_attempts
        super().__init__(countdown)

    def __str__(self) -> str:
        return f"again in {self.countdown_seconds:g} s"

    def max_attempts_of(self, context: TaskContext) -> int:
        """Return the total number of attempts that the task may have."""
        limits = [limit for limit in (self.max_attempts, context.max_attempts) if limit is not None]
        return min(limits, default=DEFAULT_MAX_ATTEMPTS)


_ENQUEUED = protocol.environ_key(protocol.ENQUEUED_HEADER)


def enqueue_again(context: TaskContext, content: bytes, retry: RetryLater) -> None:
    """Enqueue the call of ``context`` again, with its original payload and its options.

    When this function returns, the call is enqueued. If it is called again for the same task, the call is still
    enqueued only once. Raises the errors of :func:`deferred_middleware.defer`.
    """
    from deferred_middleware.enqueue.add import add
    from deferred_middleware.enqueue.prepare import prepare
    from deferred_middleware.errors.sdk_types import taskqueue

    assert context.call is not None  # the call has just run
    call = dataclasses.replace(context.call, options=_options(context, retry))
    # If the name is taken, an earlier delivery of this task has enqueued the call already: the name is only for that.
    taken = contextlib.suppress(taskqueue.TaskAlreadyExistsError, taskqueue.TombstonedTaskError)
    with namespace.restored(context.environ), taken:  # the call may have changed the namespace
        add(prepare(call, content))


def _options(context: TaskContext, retry: RetryLater) -> Options:
    environ = context.environ
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    ours = path.startswith(f"{current_settings().url_prefix}/")
    # A name that the caller chose may be used again later; a name that the queue chose is never used again. A task of
    # the older library does not tell who chose its name.
    seed = environ.get(_ENQUEUED) or ("" if ours else context.eta_as_sent())
    deployment = current_deployment()
    return Options(
        queues=(context.queue,),
        eta_posix=time.time() + retry.countdown_seconds,
        name=_name_of_next(context, seed),
        target=f"{deployment.version}.{deployment.service}" if deployment.version and deployment.service else None,
        url=None if ours else urllib.parse.quote(path, safe="/", encoding="latin-1"),
        earlier_attempts=context.attempt,
        **headers.options_in(environ),
    )


def _name_of_next(context: TaskContext, seed: str) -> str:
    """Return the name of the task that follows a ``RetryLater``; it is always the same for the same task.

    If the worker dies after the next task was enqueued, the queue delivers this task again. The name prevents a second
    next task then. ``seed`` distinguishes tasks that had the same name at different times.
    """
    digest = hashlib.sha256("\0".join((context.queue, context.name, seed)).encode()).hexdigest()
    return f"later-{digest[:40]}"
