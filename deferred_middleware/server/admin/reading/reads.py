"""What people can see. Answers are dictionaries that can be written as JSON."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.reading.health import health_of
from deferred_middleware.server.admin.reading.reasons import Reasons
from deferred_middleware.server.admin.reading.search import DUE, STATES, WAITING, TaskSearch
from deferred_middleware.server.admin.reading.standing import NOTHING_RUNS, ServerStanding, ServiceStatus
from deferred_middleware.server.admin.reading.why import rate_text
from deferred_middleware.server.admin.views import function_from_url, task_details, task_summary, view_of
from deferred_middleware.server.config.queues import IMPLICIT_DEFAULT, QueueConfig
from deferred_middleware.server.config.services import name_and_version
from deferred_middleware.server.store.listing.backlogs import Backlog
from deferred_middleware.server.store.listing.extracts import Extract
from deferred_middleware.server.store.listing.filters import Condition, Destination, condition_of
from deferred_middleware.server.store.records import StoredTask, TaskPage, TaskSummary
from deferred_middleware.server.store.statistics.statistics import QueueFigures
from deferred_middleware.server.store.store import TaskStore

_MAX_CALL_CHARACTERS = 200
# A list reads no larger payloads than this.
_MAX_BODY_BYTES = 64 * 1024
# How long one search may go on looking when the tasks that it reads don't match.
_SEARCH_SECONDS = 0.05
_COUNT_SECONDS = 1.0
_COUNT_BATCH = 2000

_NO_FIGURES = QueueFigures(
    executed_per_minute=(0,) * 60,
    executed=0,
    failed=0,
    enqueued=0,
    waited_p50=None,
    waited_p95=None,
    took_p50=None,
    took_p95=None,
)


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
        counts, backlogs = self.store.queries.counts(), self.store.queries.backlogs()
        configured = self._queues()
        names = sorted({*configured, *counts})
        return {"queues": [self._queue(name, counts, backlogs, configured) for name in names]}

    def queue_names(self) -> list[str]:
        """Return the names of the queues that are configured or have tasks."""
        return sorted({*self._queues(), *self.store.queries.counts()})

    def number_of_tasks(self) -> int:
        """Return how many tasks there are."""
        return sum(sum(states.values()) for states in self.store.queries.counts().values())

    def overview(self) -> dict[str, Any]:
        """Return the services, the queues with their figures of the last hour, and the health of the server."""
        queues = self.list_queues()["queues"]
        figures = self.store.statistics.queues_last_hour()
        standings = {queue["name"]: self.standing.queue(queue["name"]) for queue in queues}
        for queue in queues:
            name = queue["name"]
            queue["figures"] = figures.get(name, _NO_FIGURES)
            queue["standing"] = standings[name]
            queue["rate"] = rate_text(self.config_of(name))
        services = self.services()
        health = health_of(services, queues, standings, time.time_ns() // 1000)
        purges = self.store.purges.list()
        return {"queues": queues, "services": services, "health": health, "purges": purges}

    def show_queue(self, queue: str) -> dict[str, Any]:
        """Return a queue with its numbers of tasks and its configuration."""
        queries = self.store.queries
        found = self._queue(self.known_queue(queue), queries.counts(), queries.backlogs(queue), self._queues())
        return {"queue": found}

    def unfinished(self, queue: str) -> int:
        """Return how many unfinished tasks a queue has."""
        numbers = self.store.queries.counts().get(self.known_queue(queue), {})
        return numbers.get("ready", 0) + numbers.get("running", 0)

    def services(self) -> list[ServiceStatus]:
        """Return the services, in the order of the command line."""
        return list(self.standing.services())

    def known_queue(self, queue: str) -> str:
        """Return the name of a queue that is configured or has tasks."""
        configured = self._queues()
        if queue not in configured and queue not in self.store.queries.counts():
            known = tuple(self.queue_names())
            raise OperationError(
                HTTPStatus.NOT_FOUND,
                "no-such-queue",
                f"There is no queue {queue!r}; the queues are: {', '.join(sorted(configured))}.",
                known=known,
            )
        return queue

    def push_queues(self) -> list[str]:
        """Return the configured queues whose tasks are run."""
        return sorted(name for name, config in self._queues().items() if config.mode == "push")

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
            reasons = self.reasons()
            reasons.look_ahead(page.tasks)
            extracts = self.store.queries.extracts([task.id for task in page.tasks], most_bytes=_MAX_BODY_BYTES)
            tasks = [
                {**shown, **_call(task, extracts.get(task.id, Extract())), "why": reasons.of(task)}
                for shown, task in zip(tasks, page.tasks, strict=True)
            ]
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

    def count(self, search: TaskSearch, newest_id: int) -> tuple[int, bool]:
        """Return how many tasks up to ``newest_id`` match a search, and whether there may be more than were counted."""
        if search.state in (None, *STATES) and search == TaskSearch(queue=search.queue, state=search.state):
            # The store keeps these numbers.
            counts = self.store.queries.counts()
            queues = counts if search.queue is None else [self.known_queue(search.queue)]
            states = STATES if search.state is None else (search.state,)
            return sum(counts.get(queue, {}).get(state, 0) for queue in queues for state in states), False  # type: ignore[call-overload] # one of the states
        until = time.monotonic() + _COUNT_SECONDS
        number = 0
        before: int | None = newest_id + 1
        while before is not None:
            if time.monotonic() > until:
                return number, True
            page = self.search(search, before=before, limit=_COUNT_BATCH)
            number += len(page.tasks)
            before = page.next_before_id
        return number, False

    def newest_id(self) -> int:
        """Return the ID of the newest task; 0 if there is none."""
        newest = self.store.queries.find(limit=1).tasks
        return newest[0].id if newest else 0

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
                found = self.store.queries.get_by_id(int(queue_or_id), or_held=True)
            shown = queue_or_id
        else:
            found = self.store.queries.get(queue_or_id, name, or_held=True)
            shown = f"{queue_or_id}/{name}"
        if found is None:
            raise OperationError(
                HTTPStatus.NOT_FOUND, "no-such-task", f"There is no task {shown!r}; it may be deleted."
            )
        return found

    def why(self, task: TaskSummary) -> str | None:
        """Return why a task doesn't run now, as a sentence; None for one that runs or is finished."""
        return self.reasons().of(task)

    def reasons(self) -> Reasons:
        """Return what tells why tasks don't run, at this moment."""
        return Reasons(self.store, self.standing, self.config_of)

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
        name, version = name_and_version(service_id.lower())
        names = [name_and_version(one.lower())[0] for one in ids]
        targets = [f"{version}.{name}"]
        if names.index(name) == ids.index(service_id):
            # A target without a version means the first version of a service.
            targets.append(name)
        if ids[0] == service_id:
            targets.append("")
        if name == names[0] and version not in names:
            # A single label may be a version of the default service.
            targets.append(version)
        routed = {queue: config.target.lower() for queue, config in self._queues().items() if config.target is not None}
        return Destination(
            queues=tuple(queue for queue, target in routed.items() if target in targets),
            elsewhere=tuple(routed),
            targets=tuple(targets),
            version=f"{version}.{name}",
        )

    def _queue(
        self,
        name: str,
        counts: Mapping[str, Mapping[Any, int]],
        backlogs: Mapping[str, Backlog],
        configured: Mapping[str, QueueConfig],
    ) -> dict[str, Any]:
        config = configured.get(name)
        numbers = counts.get(name, {})
        return {
            "name": name,
            "configured": config is not None,
            "paused": name in self.store.operations.paused(),
            **{state: numbers.get(state, 0) for state in STATES},
            **dataclasses.asdict(backlogs.get(name, Backlog())),
            "executed_last_minute": self.store.queries.executed(name)[0],
            "config": None if config is None else dataclasses.asdict(config),
        }


def _call(task: TaskSummary, extract: Extract) -> dict[str, Any]:
    """Return a task's call as text, and how long its last attempt took. A large payload is not read for that."""
    is_large = extract.body_bytes > _MAX_BODY_BYTES
    call = None if is_large else view_of(extract.body)
    text = call.text[:_MAX_CALL_CHARACTERS] if call is not None and call.kind == "call" else None
    if is_large and (function := function_from_url(task.url)) is not None:
        text = f"{function.replace('/', '.')}(…)  # {extract.body_bytes:,} bytes"
    return {"call": text, "duration_usec": extract.duration_usec}
