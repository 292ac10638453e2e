"""Which app processes ended, and whether that was meant.

When a connection breaks off in the middle of an attempt, what became of the process behind it makes the difference: a
process that died takes the attempt down, and perhaps the attempt took it down; one that was restarted on purpose (its
code changed) is no failure of the task. Who runs the processes notes their ends here, who delivers tasks asks:

    ends = ProcessEnds(["default", "background"])
    ends.note("default", "was killed by signal 9 (SIGKILL)", intended=False)
    ends.wait_for("default", since=began)       # ProcessEnd(service="default", number=1, …)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PATIENCE_SECONDS = 2.0
"""How long after its connections the end of a process may be noted."""


@dataclass(frozen=True, kw_only=True)
class ProcessEnd:
    """The end of an app process. ``number`` counts those of its service, ``at`` is by the monotonic clock.

    ``how`` goes on from "it", such as ``was killed by signal 9 (SIGKILL)``.
    """

    service: str
    number: int
    how: str
    intended: bool
    at: float


class ProcessEnds:
    """Notes the ends of the processes of ``services``, those that this server runs itself."""

    def __init__(self, services: Iterable[str] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._services = frozenset(services)
        self._clock = clock
        self._condition = threading.Condition()
        self._last: dict[str, ProcessEnd] = {}

    def watches(self, service: str) -> bool:
        """Tell whether the ends of this service's processes are noted at all."""
        return service in self._services

    def note(self, service: str, how: str, *, intended: bool) -> None:
        """Note that the process of a service ended."""
        with self._condition:
            last = self._last.get(service)
            self._last[service] = ProcessEnd(
                service=service,
                number=last.number + 1 if last is not None else 1,
                how=how,
                intended=intended,
                at=self._clock(),
            )
            self._condition.notify_all()

    def wait_for(self, service: str, *, since: float, timeout_seconds: float = PATIENCE_SECONDS) -> ProcessEnd | None:
        """Return the last end of a service's process if it was after ``since``; wait for it for a moment."""

        def found() -> ProcessEnd | None:
            last = self._last.get(service)
            return last if last is not None and last.at >= since else None

        with self._condition:
            return self._condition.wait_for(found, timeout_seconds if self.watches(service) else 0) or None
