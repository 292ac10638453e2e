"""What people can see. Answers are dictionaries that can be written as JSON."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.reading.search import DUE, STATES, WAITING, TaskSearch
from deferred_middleware.server.admin.reading.standing import NOTHING_RUNS, ServerStanding, ServiceStatus
from deferred_middleware.server.admin.reading.why import Circumstances, why_waiting
from deferred_middleware.server.admin.views import task_details, task_summary, view_of
from deferred_middleware.server.config.queues import IMPLICIT_DEFAULT, QueueConfig
from deferred_middleware.server.config.services import LOCAL_VERSION, UnknownServiceError, name_and_version
from deferred_middleware.server.store.listing.filters import Condition, Destination, condition_of
from deferred_middleware.server.store.records import StoredTask, TaskPage, TaskSummary
from deferred_middleware.server.store.store import TaskStore

_MAX_CALL_CHARACTERS = 200
# How long one search may go on looking when the tasks that it reads don't match.
_SEARCH_SECONDS = 0.05


class Reads:
    """Reads of queues, tasks and services.

    ``queues`` returns the configured queues, and ``standing`` how the server stands. ``about`` is its description.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        queues: Callable[[], Mapping[str, QueueConfig]],
        about: Mapping[str, object],
        standing: ServerStanding = NOTHING_RUNS,
    ) -> None:
        self.store: TaskStore = store
        self.about: dict[str, object] = dict(about)
        self.standing: ServerStanding = standing
        self._queues = queues

    # Queues and services.

    def list_queues(self) -> dict[str, Any]:
        """Return all queues, each with its numbers of tasks and its configuration."""
        counts = self.store.queries.counts()
        configured = self._queues()
        return {"queues": [self._queue(name, counts, configured) for name in sorted({*configured, *counts})]}

    def services(self) -> list[ServiceStatus]:
        """Return the services, in the order of the command line."""
        return list(self.standing.services())

    def known_queue(self, queue: str) -> str:
        """Return the name of a queue that is configured or has tasks."""
        configured = self._queues()
        if queue not in configured and queue not in self.store.queries.counts():
            known = tuple(sorted({*configured, *self.store.queries.counts()}))
            raise OperationError(
                HTTPStatus.NOT_FOUND,
                "no-such-queue",
                f"There is no queue {queue!r}; the queues are: {', '.join(sorted(configured))}.",
                known=known,
            )
        return queue

    def config_of(self, queue: str) -> QueueConfig:
        """Return the configuration of a queue; that of an unlisted ``default`` for one that has none."""
        return self._queues().get(queue) or dataclasses.replace(IMPLICIT_DEFAULT, name=queue)

    # Tasks.

    def find_tasks(
        self, search: TaskSearch, *, before: int | None = None, limit: int = 100, calls: bool = False
    ) -> dict[str, Any]:
        """Return a page of tasks, the newest first; with ``calls``, also each task's call as text."""
        page = self.search(search, before=before, limit=limit)
        tasks = [task_summary(task) for task in page.tasks]
        if calls:
            tasks = [{**task, **self._call(task["id"])} for task in tasks]
        return {"tasks": tasks, "next_before": page.next_before_id}

    def search(self, search: TaskSearch, *, before: int | None = None, limit: int = 100) -> TaskPage:
        """Return tasks, the newest first. If few match, it stops after a while, and says where to go on."""
        until = time.monotonic() + _SEARCH_SECONDS
        found: list[TaskSummary] = []
        condition = self.condition_of(search)
        while True:
            page = self._find(search, condition, before, limit - len(found))
            found += page.tasks
            before = page.next_before_id
            if before is None or len(found) >= limit or time.monotonic() > until:
                return TaskPage(tasks=tuple(found), next_before_id=before)

    def condition_of(self, search: TaskSearch) -> Condition | None:
        """Return the store's condition for a search. Raises :class:`OperationError` for what is not there."""
        if search.queue is not None:
            self.known_queue(search.queue)
        return condition_of(search.task_filter(self._destination), time.time_ns() // 1000)

    def show_task(self, queue_or_id: str, name: str | None = None) -> dict[str, Any]:
        """Return a task, given by its id or by its queue and name, with its payload and its attempts."""
        task = self.task(queue_or_id, name)
        details = task_details(task, self.store.queries.attempts(task.id))
        return {"task": {**details, "why": self.why(task)}}

    def task(self, queue_or_id: str, name: str | None = None) -> StoredTask:
        """Return a task, given by its id or by its queue and name."""
        if name is None:
            found = None
            if queue_or_id.isascii() and queue_or_id.isdecimal() and len(queue_or_id) < 19:
                found = self.store.queries.get_by_id(int(queue_or_id))
            shown = queue_or_id
        else:
            found = self.store.queries.get(queue_or_id, name)
            shown = f"{queue_or_id}/{name}"
        if found is None:
            raise OperationError(
                HTTPStatus.NOT_FOUND, "no-such-task", f"There is no task {shown!r}; it may be deleted."
            )
        return found

    def why(self, task: TaskSummary) -> str | None:
        """Return why a task doesn't run now, as a sentence; None for one that runs or is finished."""
        if task.state != "ready":
            return None
        service, not_served = None, ""
        try:
            service_id = self.standing.service_of(task)
            service = next((one for one in self.standing.services() if one.id == service_id), None)
        except UnknownServiceError as error:
            not_served = str(error)
        now_usec = time.time_ns() // 1000
        ahead, is_more = self.store.queries.ahead_of(task) if task.eta_usec <= now_usec else (0, False)
        return why_waiting(
            task,
            Circumstances(
                now_usec=now_usec,
                config=self.config_of(task.queue),
                paused_by_a_person=task.queue in self.store.operations.paused(),
                standing=self.standing.queue(task.queue),
                service=service,
                not_served=not_served,
                running=[one.id for one in self.store.queries.find(queue=task.queue, state="running", limit=50).tasks],
                ahead=ahead,
                ahead_is_more=is_more,
            ),
        )

    def _find(self, search: TaskSearch, condition: Condition | None, before: int | None, limit: int) -> TaskPage:
        state = "ready" if search.state == DUE else search.state
        return self.store.queries.find(
            queue=search.queue,
            state=state if state in STATES else None,  # type: ignore[arg-type] # one of the states
            waiting=state if state in WAITING else None,  # type: ignore[arg-type] # one of the waits
            contains=search.function,
            also=condition,
            before_id=before,
            limit=limit,
        )

    def _destination(self, service_id: str) -> Destination:
        """Return which tasks go to a service. Raises :class:`OperationError` if there is no such service."""
        services = self.services()
        ids = [service.id for service in services]
        if service_id not in ids:
            known = ", ".join(ids) or "none"
            raise bad(f"service={service_id!r} is not served here; the services are: {known}.")
        name, version = name_and_version(service_id)
        targets = [f"{version}.{name}"]
        if [name_and_version(one)[0] for one in ids].index(name) == ids.index(service_id):
            # A target without a version means the first version of a service.
            targets.append(name)
        if services[0].id == service_id:
            targets.append("")
        if name == name_and_version(ids[0])[0] and version != LOCAL_VERSION:
            targets.append(version)
        own: list[str] = []
        others: list[str] = []
        for queue, config in self._queues().items():
            if config.target is not None:
                (own if self._is_target_of(config.target, targets) else others).append(queue)
        return Destination(queues=tuple(own), elsewhere=(*own, *others), targets=tuple(targets))

    @staticmethod
    def _is_target_of(target: str, targets: Sequence[str]) -> bool:
        return any(target == one or (one and target.endswith(f".{one}")) for one in targets)

    def _queue(
        self, name: str, counts: Mapping[str, Mapping[Any, int]], configured: Mapping[str, QueueConfig]
    ) -> dict[str, Any]:
        config = configured.get(name)
        numbers = counts.get(name, {})
        return {
            "name": name,
            "configured": config is not None,
            "paused": name in self.store.operations.paused(),
            **{state: numbers.get(state, 0) for state in STATES},
            **dataclasses.asdict(self.store.queries.backlog(name)),
            "executed_last_minute": self.store.queries.executed(name)[0],
            "config": None if config is None else dataclasses.asdict(config),
        }

    def _call(self, task_id: int) -> dict[str, Any]:
        """Return a task's call as text, and how long its last attempt took."""
        task = self.store.queries.get_by_id(task_id)
        attempts = self.store.queries.attempts(task_id)
        call = view_of(task.body) if task is not None else None
        return {
            "call": call.text[:_MAX_CALL_CHARACTERS] if call is not None and call.kind == "call" else None,
            "duration_usec": attempts[-1].duration_usec if attempts else None,
        }
