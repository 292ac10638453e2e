"""The token bucket that a queue's ``rate`` and ``bucket_size`` describe. Pure arithmetic: the clock is injected.

A token is what an attempt costs. A bucket holds ``size`` of them at most and is filled at a steady rate, so that in any
span of time no more than ``size`` and what the rate gives in that time can begin. Source:
https://cloud.google.com/appengine/docs/standard/reference/queueref#bucket_size .
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# A wait for a token ends at a clock's next tick, where a sum of floats may be a hair short of a whole token.
_HAIR = 1e-6


class TokenBucket:
    """A bucket that is full at first. ``clock`` returns seconds that never go back. Not for several threads at once."""

    def __init__(self, rate_per_second: float, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_second = rate_per_second
        self._size = size
        self._clock = clock
        self._tokens = float(size)
        self._filled_at = clock()

    def available(self) -> int:
        """Return how many tokens there are."""
        self._fill()
        return int(self._tokens + _HAIR)

    def take(self, number: int) -> None:
        """Take tokens out; whoever takes more than there are is paid back by the following wait."""
        self._fill()
        self._tokens -= number

    def wait_seconds(self) -> float:
        """Return how long it takes until there is a token: 0 if there is one, infinity if there will be none."""
        if self.available() >= 1:
            return 0.0
        return (1 - self._tokens) / self._rate_per_second if self._rate_per_second > 0 else math.inf

    def change(self, rate_per_second: float, size: int) -> None:
        """Have another rate and size from now on. What was saved up stays, as far as there is room."""
        self._fill()
        self._rate_per_second = rate_per_second
        self._size = size
        self._tokens = min(self._tokens, float(size))

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._size, self._tokens + (now - self._filled_at) * self._rate_per_second)
        self._filled_at = now
