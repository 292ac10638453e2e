"""Which app processes ended, and whether that was intended.

When a connection breaks during an attempt, the reason matters. If the process died, the attempt may have caused that.
If the process was restarted on purpose, because its code changed, the task has not failed. Whatever runs the processes
notes their ends here, and whatever delivers tasks asks for them:

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
"""How long after its connections have broken the end of a process is noted at the latest."""


@dataclass(frozen=True, kw_only=True)
class ProcessEnd:
    """The end of an app process. ``number`` counts those of its service, ``at`` is by the monotonic clock.

    ``how`` completes a sentence that begins with "it", such as ``was killed by signal 9 (SIGKILL)``.
    """

    service: str
    number: int
    how: str
    intended: bool
    at: float


class ProcessEnds:
    """The ends of the processes of ``services``, those that this server runs itself. For any thread."""

    def __init__(self, services: Iterable[str] = (), *, clock: Callable[[], float] = time.monotonic) -> None:
        self._services = frozenset(services)
        self._clock = clock
        # Guards the ends; notified at each of them.
        self._condition = threading.Condition()
        self._last: dict[str, ProcessEnd] = {}

    def watches(self, service: str) -> bool:
        """Tell whether the ends of this service's processes are noted here."""
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
        """Return the last end of a service's process if it came after ``since``, else None; wait for it if need be."""

        def found() -> ProcessEnd | None:
            last = self._last.get(service)
            return last if last is not None and last.at >= since else None

        with self._condition:
            return self._condition.wait_for(found, timeout_seconds if self.watches(service) else 0) or None
