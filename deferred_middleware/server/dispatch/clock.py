"""The wall clock, and what happens when it is set.

ETAs are points in time by the wall clock, which a person or the network may set, and which goes on while a laptop
sleeps. Two things are durations all the same: the back-off of a task that failed, and its age. And what was due has to
stay due. So when the wall clock and the monotonic one part by more than :data:`JUMP_SECONDS`, the tasks that wait for
their back-off are moved along; a task that has an ETA still ahead keeps it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

JUMP_SECONDS = 1.0


class WatchedClock:
    """Tells the time by ``wall``, and ``jumped`` by how many microseconds it was set: negative when it was set back.

    ``jumped`` is also given the time before and after the jump, and is called by whoever looks at the clock first.
    """

    def __init__(
        self,
        jumped: Callable[[int, int, int], object],
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jumped = jumped
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._offset = self._read()[1]

    def now_usec(self) -> int:
        """Return the microseconds since the epoch."""
        now, offset = self._read()
        if abs(offset - self._offset) > JUMP_SECONDS:
            with self._lock:
                # Read again: another thread may have seen to it while this one waited.
                now, offset = self._read()
                if abs(offset - self._offset) > JUMP_SECONDS:
                    self._tell(now, offset)
        return int(now * 1e6)

    def _tell(self, now: float, offset: float) -> None:
        jump_seconds = offset - self._offset
        _log.warning("The clock was set by %+.1f s; what waits is moved along.", jump_seconds)
        try:
            self._jumped(int(jump_seconds * 1e6), int((now - jump_seconds) * 1e6), int(now * 1e6))
        except Exception:  # noqa: BLE001 - whoever asks for the time gets it; the next one tries again
            _log.exception("The tasks that wait could not be moved along, which will be tried again.")
        else:
            self._offset = offset

    def _read(self) -> tuple[float, float]:
        """Return the wall clock's time, and by how much it is ahead of the monotonic clock."""
        while True:
            before, now, after = self._monotonic(), self._wall(), self._monotonic()
            # Who is interrupted between the two would see a jump where there is none.
            if after - before < JUMP_SECONDS / 2:
                return now, now - before
