"""A clock that tests advance and stop, so that a task of next week runs now.

    clock = VirtualClock()
    clock.advance(3600)          # an hour has passed for tasks, rates and blocked names
    clock.freeze()               # from now on, only advance() moves it
    clock.run()

Until a test asks for more, it is the time of this machine. Deadlines of requests are always measured by that time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from deferred_middleware.server.store.upkeep.steady_clock import elapsed_seconds


class _Source:
    """One of the clocks of the machine, moved."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._ahead = 0.0
        self._stands_at: float | None = None

    def now(self) -> float:
        stands_at = self._stands_at
        return self._read() + self._ahead if stands_at is None else stands_at

    def advance(self, seconds: float) -> None:
        if self._stands_at is None:
            self._ahead += seconds
        else:
            self._stands_at += seconds

    def freeze(self) -> None:
        self._stands_at = self.now()

    def run(self) -> None:
        if self._stands_at is not None:
            self._ahead = self._stands_at - self._read()
            self._stands_at = None


class VirtualClock:
    """The three clocks that the server reads, which move together. Any thread may call any method."""

    def __init__(self) -> None:
        self._wall, self._monotonic, self._elapsed = map(_Source, (time.time, time.monotonic, elapsed_seconds))
        self._sources = (self._wall, self._monotonic, self._elapsed)
        # Guards changes. A reader may see one clock before a change and another one after it.
        self._lock = threading.Lock()
        self._frozen = False

    @property
    def is_frozen(self) -> bool:
        """Whether the clock stands still."""
        return self._frozen

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return self._wall.now()

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self._monotonic.now()

    def elapsed(self) -> float:
        """Return seconds that never go back and that count while the machine sleeps."""
        return self._elapsed.now()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass at once. Raises :class:`ValueError` if they are not a number from 0 up."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a clock can't be advanced by {seconds!r} seconds")
        with self._lock:
            for source in self._sources:
                source.advance(seconds)

    def freeze(self) -> None:
        """Have the clock stand still."""
        with self._lock:
            for source in self._sources:
                source.freeze()
            self._frozen = True

    def run(self) -> None:
        """Have the clock run again."""
        with self._lock:
            for source in self._sources:
                source.run()
            self._frozen = False

    def real_seconds(self, seconds: float) -> float:
        """Return how long it takes until so many seconds have passed, unless somebody advances the clock."""
        return math.inf if self._frozen and seconds > 0 else seconds
