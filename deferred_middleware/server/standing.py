"""How the server stands, for people: put together from the scheduler and the app processes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

from deferred_middleware.server.admin.reading.standing import ServerStanding, ServiceState, ServiceStatus
from deferred_middleware.server.apps.process import ProcessStatus
from deferred_middleware.server.config.services import Service, UnknownServiceError
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.dispatch.scheduler import Scheduler
from deferred_middleware.server.store.records import Headers, StoredTask


def server_standing(
    scheduler: Scheduler, services: Sequence[Service], *, process_of: Callable[[str], ProcessStatus | None]
) -> ServerStanding:
    """Return what answers how the server stands; ``process_of`` is :meth:`AppProcesses.status`."""

    def status(service: Service) -> ServiceStatus:
        found = process_of(service.id)
        state: ServiceState = "elsewhere"
        if found is not None:
            state = "up" if found.is_serving else "starting" if found.pid is not None else "down"
        return ServiceStatus(
            id=service.id,
            url=service.url,
            state=state,
            concurrency=service.concurrency,
            running=scheduler.running_in(service.id),
            pid=None if found is None else found.pid,
            restarts=0 if found is None else max(0, found.starts - 1),
            since=None if found is None else found.since,
        )

    return ServerStanding(
        services=lambda: [status(service) for service in services],
        queue=scheduler.queue_standing,
        service_of=scheduler.service_of,
    )


def headers_in_queues(scheduler: Scheduler, requests: TaskRequests) -> Callable[[StoredTask, str], Headers]:
    """Return what tells the headers that a task has in another queue; see :meth:`TaskRequests.moved`."""

    def moved(task: StoredTask, queue: str) -> Headers:
        service = None
        with contextlib.suppress(UnknownServiceError):
            service = scheduler.service_of(dataclasses.replace(task, queue=queue))
        return requests.moved(task, queue, service)

    return moved
