"""``RetryLater``: a task asks for another attempt at a time of its own choice."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final

from google.appengine.ext.deferred import SingularTaskFailure

from deferred_middleware.errors import DeferredError
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.execution.context import TaskContext

DEFAULT_MAX_ATTEMPTS: Final = 100
"""The cap where neither ``RetryLater`` nor the function's ``@task`` has one."""

_LONGEST_SECONDS: Final = protocol.MAX_ETA_DAYS * 24 * 3600


class RetryLater(DeferredError, SingularTaskFailure):  # type: ignore[misc] # the SDK ships no types
    """Raise it in a task to have the same call tried again after ``countdown``.

    The task is acknowledged, and the same call, with the arguments it came with, is enqueued again in the same queue.
    The attempts are counted on (:attr:`TaskContext.attempt`); the queue's own retry options begin anew. It is a
    ``SingularTaskFailure`` too, so that the older library's handler retries it.

    Args:
        countdown: seconds from now, or a timedelta; at most 30 days.
        max_attempts: how many attempts there may be in all. By default what the function's ``@task(max_attempts=…)``
            says, or 100. In the last one a ``RetryLater`` makes the task a dead letter.

    Raises:
        ValueError: ``countdown`` is no number of seconds from 0 to 30 days, or ``max_attempts`` is less than 1.
    """

    def __init__(self, countdown: float | datetime.timedelta, *, max_attempts: int | None = None) -> None:
        seconds = countdown.total_seconds() if isinstance(countdown, datetime.timedelta) else countdown
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST_SECONDS:
            raise ValueError(
                f"RetryLater({countdown!r}): the countdown is seconds from 0 to {_LONGEST_SECONDS:,}, or a timedelta."
            )
        if max_attempts is not None and (isinstance(max_attempts, bool) or not max_attempts >= 1):
            raise ValueError(f"RetryLater(max_attempts={max_attempts!r}): it is a whole number, at least 1.")
        self.countdown_seconds = float(seconds)
        self.max_attempts = max_attempts
        super().__init__(countdown)

    def __str__(self) -> str:
        return f"again in {self.countdown_seconds:g} s"

    def cap_for(self, context: TaskContext) -> int:
        """Return how many attempts the task may have in all."""
        caps = [cap for cap in (self.max_attempts, context.max_attempts) if cap is not None]
        return min(caps, default=DEFAULT_MAX_ATTEMPTS)
