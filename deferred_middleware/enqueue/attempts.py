"""How often and how long an enqueue is tried: arithmetic of deadlines and back-off, with clock and chance given."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Final

LONGEST_RPC_SECONDS: Final = 10.0
"""How long one attempt may wait for the queue's answer; the platform's own is typically 5 s (SDK: create_rpc)."""
FEWEST_ATTEMPTS: Final = 3
"""One attempt that hangs takes only this part of the time, so that others can follow."""
FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Where time and chance come from. ``clock`` and ``sleep`` count seconds, ``chance`` is in [0, 1)."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = random.random


REAL: Final = Timing()


class Attempts:
    """The attempts at one add, in at most ``seconds``; 0 means a single one."""

    __slots__ = ("_ends", "_seconds", "_timing", "failed")

    def __init__(self, seconds: float, timing: Timing = REAL) -> None:
        self._seconds = seconds
        self._timing = timing
        self._ends = timing.clock() + seconds
        self.failed = 0
        """How many attempts have failed."""

    def rpc_seconds(self) -> float | None:
        """Return how long the next attempt may wait for its answer; None leaves it to the SDK."""
        if not self._seconds:
            return None
        shortest = self._seconds / 10
        left = max(self._ends - self._timing.clock(), shortest)
        return min(LONGEST_RPC_SECONDS, self._seconds / FEWEST_ATTEMPTS, left)

    def delay(self) -> float | None:
        """Count a failed attempt; return how many seconds to wait before the next, or None if there is none.

        The bound doubles with each failure, and chance takes up to half of it away, so that clients that failed
        together don't come back together.
        """
        self.failed += 1
        bound = min(FIRST_DELAY_SECONDS * 2.0 ** min(self.failed - 1, 16), LONGEST_DELAY_SECONDS)
        delay = bound * (1 - self._timing.chance() / 2)
        return delay if self._timing.clock() + delay < self._ends else None
