"""Tasks that end their app process.

A task that does so at every attempt would keep its service down for ever. After :data:`DEATHS` such attempts in a row
the task becomes a dead letter, until a person retries it.

When a process dies, each task that was running in it may be the cause. All of them become suspects, and from then on
each suspect runs while no other suspect does. If the process dies again while a suspect runs, the suspect is blamed and
the other tasks are not. So a task that was running by chance is soon cleared.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from deferred_middleware.server.delivery.attempt_result import ProcessEnd
from deferred_middleware.server.store.records import AttemptRecord, ClaimedTask

logger: Final = logging.getLogger(__name__)

DEATHS = 3
"""How many attempts in a row of one task may end with the death of the process."""

# The store keeps these texts as attempts' reasons, and blamed attempts are counted by them.
_BLAMED = "the app process died while it ran this task: it "
_CHANCE = "the app process died, which another task is suspected of: it "
# For a service that runs elsewhere only broken connections are seen. Those that break together are one death.
_TOGETHER_SECONDS = 1.0


class Quarantine:
    """Finds out which tasks end processes. ``clock`` returns seconds that never go back."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Guards the other three. is_suspect() and its like read _suspects without it.
        self._lock = threading.Lock()
        self._suspects: set[int] = set()
        # By service: the suspects that are running, and when and by which death one was blamed last.
        self._running: dict[str, set[int]] = {}
        self._blamed: dict[str, tuple[float, int | None]] = {}

    def is_suspect(self, task: ClaimedTask) -> bool:
        """Tell whether a task must not run together with other suspects."""
        return task.id in self._suspects

    def attempt_begins(self, task: ClaimedTask, service: str) -> None:
        """Take note that an attempt begins."""
        if task.id in self._suspects:
            with self._lock:
                self._running.setdefault(service, set()).add(task.id)

    def attempt_not_begun(self, task: ClaimedTask, service: str) -> None:
        """Take note that an attempt did not begin after all."""
        if task.id in self._suspects:
            with self._lock:
                self._running.get(service, set()).discard(task.id)

    def attempt_survived(self, task: ClaimedTask, service: str) -> None:
        """Take note that the process outlived an attempt: the task is no suspect any more."""
        if task.id in self._suspects:
            with self._lock:
                self._suspects.discard(task.id)
                self._running.get(service, set()).discard(task.id)

    def process_died(
        self, task: ClaimedTask, service: str, end: ProcessEnd | None, earlier: Sequence[AttemptRecord]
    ) -> tuple[str, bool]:
        """Take note that an attempt ended with its process, as far as can be seen.

        ``earlier`` are the task's attempts so far, oldest first. ``end`` is None when the service runs elsewhere.
        Return the attempt's reason, for a person, and whether the task becomes a dead letter.
        """
        how = end.how if end is not None else "closed the connection without a response"
        with self._lock:
            running = self._running.setdefault(service, set())
            is_suspect = task.id in running
            running.discard(task.id)
            if not is_suspect and (running or self._is_blamed_already(service, end)):
                return f"{_CHANCE}{how}", False
            if is_suspect:
                self._blamed[service] = (self._clock(), end.number if end is not None else None)
            self._suspects.add(task.id)
        deaths = 1 + _deaths_before(task, earlier)
        if deaths < DEATHS:
            logger.warning(
                "Task %s of queue %s (%s) may have ended the process of service %s, which %s.",
                task.name,
                task.queue,
                task.url,
                service,
                how,
            )
            return f"{_BLAMED}{how}", False
        with self._lock:
            self._suspects.discard(task.id)
        return (
            f"{_BLAMED}{how}. This happened at {deaths} attempts in a row, so the task is not retried automatically; "
            "fix the cause, and then retry it."
        ), True

    def _is_blamed_already(self, service: str, end: ProcessEnd | None) -> bool:
        """Tell whether a suspect was blamed for this death."""
        at, number = self._blamed.get(service, (-_TOGETHER_SECONDS, None))
        return number == end.number if end is not None else self._clock() - at < _TOGETHER_SECONDS


def _deaths_before(task: ClaimedTask, earlier: Sequence[AttemptRecord]) -> int:
    """Count the attempts just before this one that the task was blamed for."""
    deaths = 0
    # Attempts from before a person's retry don't count.
    counted = earlier[-task.retry_count :] if task.retry_count else []
    for attempt in reversed(counted):
        if attempt.reason is None or not attempt.reason.startswith(_BLAMED):
            break
        deaths += 1
    return deaths
