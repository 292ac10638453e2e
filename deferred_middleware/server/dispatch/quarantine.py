"""Tasks that take their app process down with them.

One that does so at every attempt would take the service down for ever. After :data:`DEATHS` such attempts in a row it
is kept as a dead letter, until a person has it tried again.

When a process dies, every task that was running in it may have been the cause. They are all suspects then, and from
there on tried one at a time: when the process dies again while a suspect runs, it is the suspect that is blamed and not
the others. So a task that was there by chance is soon cleared.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from deferred_middleware.server.apps.process_ends import ProcessEnd
from deferred_middleware.server.store.records import AttemptRecord, ClaimedTask

_log = logging.getLogger(__name__)

DEATHS = 3
"""How many attempts in a row a task may end by the death of its process."""

_BLAMED = "the app process died while it ran this task: it "
_CHANCE = "the app process died, which another task is suspected of: it "
# Of a service that runs elsewhere only its connections are seen. Those that break off together are one death.
_TOGETHER_SECONDS = 1.0


class Quarantine:
    """Finds out which tasks kill processes. ``attempts`` returns a task's attempts so far, by its id, oldest first."""

    def __init__(
        self, attempts: Callable[[int], list[AttemptRecord]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._attempts = attempts
        self._clock = clock
        self._lock = threading.Lock()
        self._suspects: set[int] = set()
        # By service: the suspects that are running, and when and by which death one was blamed last.
        self._running: dict[str, set[int]] = {}
        self._blamed: dict[str, tuple[float, int | None]] = {}

    def is_suspect(self, task: ClaimedTask) -> bool:
        """Tell whether a task has to be tried alone."""
        return task.id in self._suspects

    def begins(self, task: ClaimedTask, service: str) -> None:
        """Take note that an attempt begins."""
        if task.id in self._suspects:
            with self._lock:
                self._running.setdefault(service, set()).add(task.id)

    def survived(self, task: ClaimedTask, service: str) -> None:
        """Take note that an attempt ended without a death: the task is no suspect any more."""
        if task.id in self._suspects:
            with self._lock:
                self._suspects.discard(task.id)
                self._running.get(service, set()).discard(task.id)

    def died(self, task: ClaimedTask, service: str, end: ProcessEnd | None) -> tuple[str, bool]:
        """Take note that an attempt ended with its process, as far as can be seen.

        Return why, for a person, and whether the task is to be kept as a dead letter. ``end`` is None when the service
        runs elsewhere.
        """
        how = end.how if end is not None else "closed the connection without a response"
        with self._lock:
            running = self._running.setdefault(service, set())
            suspect = task.id in running
            running.discard(task.id)
            if not suspect and (running or self._is_known(service, end)):
                return f"{_CHANCE}{how}", False
            if suspect:
                self._blamed[service] = (self._clock(), end.number if end is not None else None)
            self._suspects.add(task.id)
        deaths = 1 + self._deaths_before(task)
        if deaths < DEATHS:
            _log.warning(
                "Task %s of queue %s (%s) is suspected of having ended the process of service %s, which %s.",
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
            f"{_BLAMED}{how}. That were {deaths} attempts in a row, so it is not tried again by itself; "
            "retry it when the cause is mended."
        ), True

    def _is_known(self, service: str, end: ProcessEnd | None) -> bool:
        at, number = self._blamed.get(service, (-_TOGETHER_SECONDS, None))
        return number == end.number if end is not None else self._clock() - at < _TOGETHER_SECONDS

    def _deaths_before(self, task: ClaimedTask) -> int:
        """Count the attempts just before this one that the task was blamed for."""
        deaths = 0
        before = self._attempts(task.id)[-task.retry_count :] if task.retry_count else []
        for attempt in reversed(before):
            if attempt.reason is None or not attempt.reason.startswith(_BLAMED):
                break
            deaths += 1
        return deaths
