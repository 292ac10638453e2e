"""The wall clock, and what happens when somebody sets it.

ETAs are times of the wall clock. A person or the network may set that clock, and it continues while a laptop sleeps.
The back-off of a failed task and the age of a task are durations, which such a change must not alter; and a task that
was due must stay due. So the server compares the wall clock with the monotonic clock. If the two drift apart by more
than :data:`JUMP_SECONDS`, the ETAs of the tasks that wait for their back-off are moved by the same amount. A task whose
own ETA is still ahead keeps it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

logger: Final = logging.getLogger(__name__)

JUMP_SECONDS = 1.0


class WatchedClock:
    """The time by ``wall`` and by ``monotonic``; it reports a wall clock that was set to ``on_jump``.

    ``on_jump`` is called with three numbers of microseconds: by how much the clock was set (negative: set back), and
    the time before and after. The thread that reads the clock first after the jump calls it.
    """

    def __init__(
        self,
        on_jump: Callable[[int, int, int], object],
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.monotonic = monotonic
        self._on_jump = on_jump
        self._wall = wall
        self._lock = threading.Lock()
        # How far the wall clock was ahead of the monotonic one. Written under the lock; any thread reads it.
        self._offset = self._read()[1]

    def now_usec(self) -> int:
        """Return the microseconds since the epoch."""
        now, offset = self._read()
        if abs(offset - self._offset) > JUMP_SECONDS:
            with self._lock:
                # Read again: another thread may have handled the jump while this one waited for the lock.
                now, offset = self._read()
                if abs(offset - self._offset) > JUMP_SECONDS:
                    self._handle_jump(now, offset)
        return int(now * 1e6)

    def check_against(self, newest_usec: int | None) -> None:
        """Handle a clock that was set back while no server ran: the newest time that is known is then ahead."""
        now_usec = self.now_usec()
        if newest_usec is not None and newest_usec - now_usec > JUMP_SECONDS * 1e6:
            self._on_jump(now_usec - newest_usec, newest_usec, now_usec)

    def _handle_jump(self, now: float, offset: float) -> None:
        jump_seconds = offset - self._offset
        logger.warning("The clock was set by %+.1f s; the ETAs of tasks that wait for a retry are moved.", jump_seconds)
        try:
            self._on_jump(int(jump_seconds * 1e6), int((now - jump_seconds) * 1e6), int(now * 1e6))
        except Exception:  # the caller only wants the time; the next call tries again
            logger.exception("The ETAs could not be moved; the server tries again.")
        else:
            self._offset = offset

    def _read(self) -> tuple[float, float]:
        """Return the wall clock's time, and by how much it is ahead of the monotonic clock."""
        while True:
            before, now, after = self.monotonic(), self._wall(), self.monotonic()
            # A thread that is interrupted between the two readings would see a jump where there is none.
            if after - before < JUMP_SECONDS / 2:
                return now, now - before
