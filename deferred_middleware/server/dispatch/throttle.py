"""How a queue slows down when its service says 503, and how it recovers. Pure arithmetic: the clock is injected.

On App Engine a 503 means that the service can't take more, and throttles the whole queue; how much is not documented
(https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers). Here the queue begins nothing
for :data:`FIRST_PAUSE_SECONDS`, then one attempt at a time. Each attempt that is answered with anything but 503 doubles
how many may be under way, up to :data:`RECOVERED`, from where on there is no limit. The next 503 begins it anew, with
twice the pause, up to :data:`LONGEST_PAUSE_SECONDS`, unless the queue has recovered in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
RECOVERED = 64


class Throttle:
    """What 503s mean for one queue. ``clock`` returns seconds that never go back. Not for several threads at once."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit: int | None = None
        self._pause_seconds = 0.0
        self._until = 0.0

    @property
    def limit(self) -> int | None:
        """How many attempts may be under way once the pause is over; None is no limit."""
        return self._limit

    def wait_seconds(self) -> float:
        """Return how long nothing may begin."""
        return max(0.0, self._until - self._clock()) if self._limit is not None else 0.0

    def answered(self, status: int | None, began_at: float) -> bool:
        """Take note of how an attempt that began at ``began_at`` ended; return whether the queue was slowed down.

        Attempts that were under way when it was slowed down say nothing new. No answer (None) says nothing either.
        """
        if status == 503:
            if self._limit is not None and began_at < self._until:
                return False
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds))
            self._until = self._clock() + self._pause_seconds
            self._limit = 1
            return True
        if status is not None and self._limit is not None and began_at >= self._until:
            self._limit *= 2
            if self._limit > RECOVERED:
                self._limit = None
                self._pause_seconds = 0.0
        return False
