"""Call functions later, in one thread of the process."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger("deferred_middleware")

_IDLE_SECONDS: Final = 10.0
"""How long the thread waits for more to do before it ends."""


class Alarm:
    """A thread that calls functions when they are due; it is there only while there is something to wait for.

    The functions must not block: they delay the others.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._running = False

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call ``function`` in ``seconds``. What it raises is logged."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), function))
            if self._running:
                self._changed.notify()
            else:
                threading.Thread(target=self._work, name="deferred_middleware alarm", daemon=True).start()
                self._running = True

    def _work(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                if not self._due:
                    if not self._changed.wait(_IDLE_SECONDS) and not self._due:
                        self._running = False
                        return
                    continue
                if self._due[0][0] > now:
                    self._changed.wait(self._due[0][0] - now)
                    continue
                function = heapq.heappop(self._due)[2]
            try:
                function()
            except Exception:
                logger.exception("what was to be done later failed")


ALARM: Final = Alarm()
"""The process's alarm."""
