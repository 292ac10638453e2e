"""How the server stands, put together from the scheduler and the app processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from deferred_middleware.server.apps.process import ProcessStatus
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory, UnknownServiceError
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.dispatch.scheduler import Scheduler
from deferred_middleware.server.standing import server_standing
from deferred_middleware.server.store.records import NewTask
from deferred_middleware.server.store.store import TaskStore

SERVICES = [
    Service(name=name, version="local", host="127.0.0.1", port=port, concurrency=6, external=port == 9000)
    for port, name in enumerate(("default", "starting", "down", "elsewhere"), 8997)
]
PROCESSES = {
    "default": ProcessStatus(pid=10, is_serving=True, starts=3, since=100.0),
    "starting": ProcessStatus(pid=11, is_serving=False, starts=1, since=None),
    "down": ProcessStatus(pid=None, is_serving=False, starts=1, since=None),
}


def test_services_and_queues_stand(tmp_path: Path) -> None:
    """Each service has the state of its process; a task has its service."""
    store = TaskStore(tmp_path / "tasks.sqlite")
    scheduler = Scheduler(store, ServiceDirectory(SERVICES), TaskRequests(), queues=QueueRegistry())
    standing = server_standing(scheduler, SERVICES, process_of=PROCESSES.get)
    store.add([NewTask(queue="default", url="/", eta_usec=2**61, target=target) for target in ("down", "nowhere")])
    nowhere, down = store.queries.find().tasks

    assert [(one.id, one.state, one.pid, one.restarts) for one in standing.services()] == [
        ("default", "up", 10, 2),
        ("starting", "starting", 11, 0),
        ("down", "down", None, 0),
        ("elsewhere", "elsewhere", None, 0),
    ]
    assert standing.queue("default").in_flight == 0
    assert standing.service_of(down) == "down"
    with pytest.raises(UnknownServiceError):
        standing.service_of(nowhere)
    scheduler.stop(0)
    store.close()
