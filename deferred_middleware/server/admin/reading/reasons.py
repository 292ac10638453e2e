"""Tells why tasks don't run, from the store, the configuration, and how the server stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from deferred_middleware.server.admin.reading.standing import QueueStanding, ServerStanding
from deferred_middleware.server.admin.reading.why import MOST_RUNNING, Circumstances, why_waiting
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.config.services import UnknownServiceError
from deferred_middleware.server.store.listing.backlogs import MOST_COUNTED
from deferred_middleware.server.store.records import PULL, TaskSummary
from deferred_middleware.server.store.store import TaskStore

MOST_AHEAD_IN_LISTS = 1000


class Reasons:
    """Why tasks of ``store`` don't run, for one page or answer: what several tasks need is looked up once."""

    def __init__(self, store: TaskStore, standing: ServerStanding, config_of: Callable[[str], QueueConfig]) -> None:
        self._store = store
        self._standing = standing
        self._config_of = config_of
        self._now_usec = time.time_ns() // 1000
        self._services = {service.id: service for service in standing.services()}
        self._ahead: dict[int, tuple[int, bool]] = {}
        self._queues: dict[str, tuple[QueueStanding, Sequence[int]]] = {}

    def look_ahead(self, tasks: Sequence[TaskSummary]) -> None:
        """Count what is ahead of tasks that :meth:`of` will be asked for, up to :data:`MOST_AHEAD_IN_LISTS`."""
        due = [task.id for task in tasks if task.state == "ready" and self._is_due(task)]
        if due:
            self._ahead.update(self._store.queries.ahead_of(due, most=MOST_AHEAD_IN_LISTS))

    def of(self, task: TaskSummary) -> str | None:
        """Return why a task doesn't run now, as a sentence; None for one that runs or is finished."""
        if task.state not in ("ready", "held"):
            return None
        service, not_served = None, ""
        try:
            service = self._services.get(self._standing.service_of(task))
        except UnknownServiceError as error:
            not_served = str(error)
        if self._is_due(task) and task.id not in self._ahead:
            self._ahead.update(self._store.queries.ahead_of([task.id], most=MOST_COUNTED))
        ahead, is_more = self._ahead.get(task.id, (0, False))
        standing, running = self._queue(task.queue)
        return why_waiting(
            task,
            Circumstances(
                now_usec=self._now_usec,
                config=self._config_of(task.queue),
                paused_by_a_person=task.queue in self._store.operations.paused(),
                standing=standing,
                service=service,
                not_served=not_served,
                is_next=self._store.queries.is_claimed(task.id),
                running=running,
                ahead=ahead,
                ahead_is_more=is_more,
            ),
        )

    def _is_due(self, task: TaskSummary) -> bool:
        return task.method != PULL and task.eta_usec <= self._now_usec

    def _queue(self, queue: str) -> tuple[QueueStanding, Sequence[int]]:
        if queue not in self._queues:
            running = self._store.queries.find(queue=queue, state="running", limit=MOST_RUNNING).tasks
            self._queues[queue] = self._standing.queue(queue), [task.id for task in running]
        return self._queues[queue]
