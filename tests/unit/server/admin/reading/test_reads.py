"""Reads: tasks by service, and the sentence about what a task waits for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.reading.reads import Reads
from deferred_middleware.server.admin.reading.search import TaskSearch, search_of
from deferred_middleware.server.admin.reading.standing import QueueStanding, ServerStanding, ServiceStatus
from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.dispatch.planning import Destinations
from deferred_middleware.server.store.records import NewTask
from deferred_middleware.server.store.store import TaskStore

IDS = ("default", "v2.default", "worker")
SERVICES = [
    Service(name=name, version=version, host="127.0.0.1", port=port, concurrency=4)
    for name, version, port in [("default", "local", 8080), ("default", "v2", 8081), ("worker", "local", 8082)]
]
QUEUES = QueueRegistry([QueueConfig(name="routed", target="worker"), QueueConfig(name="still", rate_per_second=0)])
TARGETS = (
    "",
    "default",
    "local.default",
    "v2",
    "v2.default",
    "0.v2.default",
    "worker",
    "local.worker",
    "0.local.worker",
    "LOCAL.Worker",
    "unknown",
    "v3.worker",
)


@pytest.fixture
def reads(tmp_path: Path) -> Iterator[Reads]:
    """Reads of a store with a task of each target in two queues."""
    store = TaskStore(tmp_path / "tasks.sqlite")
    store.add(
        [
            NewTask(queue=queue, name=f"t{index}", url="/work", eta_usec=0, target=target)
            for queue in ("default", "routed")
            for index, target in enumerate(TARGETS)
        ]
    )
    destinations = Destinations(QUEUES, ServiceDirectory(SERVICES))
    standing = ServerStanding(
        services=lambda: [
            ServiceStatus(id=one.id, url=one.url, state="up", concurrency=4, running=0) for one in SERVICES
        ],
        queue=lambda _queue: QueueStanding(),
        service_of=lambda task: destinations.service_of(task).id,
    )
    yield Reads(store, queues=lambda: QUEUES, about={}, standing=standing)
    store.close()


@pytest.mark.parametrize("service", IDS)
def test_the_filter_by_service_agrees_with_the_scheduler(reads: Reads, service: str) -> None:
    """The tasks that are found for a service are those that the scheduler would send there."""
    found = {(task.queue, task.name) for task in reads.search(TaskSearch(service=service)).tasks}

    destinations = Destinations(QUEUES, ServiceDirectory(SERVICES))
    expected = set()
    for task in reads.search(TaskSearch()).tasks:
        try:
            if destinations.service_of(task).id == service:
                expected.add((task.queue, task.name))
        except LookupError:
            continue
    assert found == expected
    assert expected


def test_an_unknown_service_is_named(reads: Reads) -> None:
    """The error says which services there are."""
    with pytest.raises(OperationError, match=r"the services are: default, v2\.default, worker"):
        reads.search(TaskSearch(service="wroker"))


def test_a_search_goes_on_where_it_stopped(reads: Reads) -> None:
    """All pages together have each task once."""
    names: list[str] = []
    before = None
    while True:
        page = reads.search(search_of({"queue": "default", "name": "t"}), before=before, limit=5)
        names += [task.name for task in page.tasks]
        before = page.next_before_id
        if before is None:
            break

    assert sorted(names) == sorted(f"t{index}" for index in range(len(TARGETS)))


def test_the_sentence_is_in_what_show_returns(reads: Reads) -> None:
    """A task whose target nobody serves says so; one that is finished has no sentence."""
    task = reads.store.queries.get("default", f"t{TARGETS.index('unknown')}")
    assert task is not None

    why = reads.show_task(str(task.id))["task"]["why"]

    assert why.startswith("No service answers to 'unknown'")
    assert why == reads.why(task)
    assert "other tasks are ahead of it" not in why


def test_tasks_ahead_are_counted(reads: Reads) -> None:
    """The tasks of the same queue and target that come first are counted."""
    reads.store.add([NewTask(queue="still", name=f"s{index}", url="/work", eta_usec=5 - index) for index in range(4)])
    first, last = reads.store.queries.get("still", "s3"), reads.store.queries.get("still", "s0")
    assert first is not None
    assert last is not None

    assert "3 other tasks are ahead of it" in str(reads.why(last))
    assert "ahead" not in str(reads.why(first))
    assert "its rate is 0" in str(reads.why(first))


def test_a_list_does_not_read_large_payloads(reads: Reads) -> None:
    """The call of a task with a large payload is its function and its size."""
    reads.store.add(
        [NewTask(queue="default", url="/_cb/deferred/shop/big", eta_usec=0, body=b"\x80" + b"x" * 10_000_000)]
    )

    (task, *_rest) = reads.find_tasks(TaskSearch(), limit=1, calls=True)["tasks"]

    assert task["call"] == "shop.big(…)  # 10,000,001 bytes"
