"""A time that only grows, whatever happens to the wall clock, for names that stay blocked for some days.

If the wall clock is a year ahead for a minute, the names of finished tasks must not become free. While a server runs,
this clock moves with the time that passes. While none runs, nobody can tell a stop from a wrong wall clock: it moves
with the wall clock, by at most :data:`MOST_STOPPED_USEC`. It may lag behind the wall clock, so names may be blocked for
longer than they have to be.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MOST_STOPPED_USEC = 2 * 24 * 3600 * 1_000_000
"""Of the time between two servers, at most this much counts."""


def elapsed_seconds() -> float:
    """Return seconds that only grow, with the time in which the machine sleeps if the system tells that."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SteadyClock:
    """A clock that continues from ``last_usec``, when the wall clock stood at ``last_wall_usec``; for any thread.

    ``last_usec`` is 0 if there was none before: it begins at ``wall_usec``, the time of the wall clock. If
    ``last_wall_usec`` is None, the time between the servers doesn't count. ``elapsed`` returns seconds that only grow.
    """

    def __init__(
        self,
        *,
        last_usec: int,
        last_wall_usec: int | None,
        wall_usec: int,
        elapsed: Callable[[], float] = elapsed_seconds,
    ) -> None:
        self._elapsed = elapsed
        self._began = elapsed()
        if not last_usec:
            self._base_usec = wall_usec
        else:
            stopped_usec = 0 if last_wall_usec is None else wall_usec - last_wall_usec
            self._base_usec = last_usec + min(max(0, stopped_usec), MOST_STOPPED_USEC)

    def now_usec(self) -> int:
        """Return the microseconds since the epoch, as this clock has counted them."""
        return self._base_usec + int((self._elapsed() - self._began) * 1e6)
