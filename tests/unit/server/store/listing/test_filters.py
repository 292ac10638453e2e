"""Filters of tasks: each against tasks that match and tasks that don't."""

from __future__ import annotations

import dataclasses
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.server.store.listing.filters import Destination, TaskFilter, body_has, condition_of
from deferred_middleware.server.store.records import Lane, NewTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import NOW, Clock, completion

HOUR = 3600


def added(path: Path, *tasks: dict[str, Any]) -> TaskStore:
    """Return a store with tasks, each added an hour after the one before; the last one just now."""
    clock = Clock()
    clock.usec = NOW - (len(tasks) - 1) * HOUR * 1_000_000
    store = TaskStore(path / "tasks.sqlite", clock=clock)
    for task in tasks:
        store.add([NewTask(**{"queue": "default", "url": "/work", "eta_usec": NOW, **task})])
        clock.usec += HOUR * 1_000_000
    return store


TASKS: tuple[dict[str, Any], ...] = (
    {"name": "Order-4711", "target": "worker", "body": pickle.dumps(("alice@example.com", 1))},
    {"name": "order-12", "target": "local.worker", "body": zlib.compress(b"x" * 5000 + b"alice@example.com")},
    {"name": "mail", "queue": "routed", "body": b"\x78 not compressed"},
    {"name": "100%_done", "target": "v2.other", "eta_usec": NOW + 1},
)
WORKER = Destination(
    queues=("routed",), elsewhere=("routed",), targets=("local.worker", "worker"), version="local.worker"
)
DEFAULT = Destination(
    queues=(), elsewhere=("routed",), targets=("local.default", "default", ""), version="local.default"
)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (TaskFilter(), {"Order-4711", "order-12", "mail", "100%_done"}),
        (TaskFilter(name="ORDER"), {"Order-4711", "order-12"}),
        (TaskFilter(name="%"), {"100%_done"}),
        (TaskFilter(name="_"), {"100%_done"}),
        (TaskFilter(text="alice@example.com"), {"Order-4711", "order-12"}),
        (TaskFilter(text="ALICE"), set()),
        (TaskFilter(older_seconds=2 * HOUR), {"Order-4711", "order-12"}),
        (TaskFilter(newer_seconds=HOUR), {"mail", "100%_done"}),
        (TaskFilter(older_seconds=HOUR, newer_seconds=2 * HOUR), {"order-12", "mail"}),
        (TaskFilter(slower_seconds=0), set()),
        (TaskFilter(due=True), {"Order-4711", "order-12", "mail"}),
        (TaskFilter(destination=WORKER), {"Order-4711", "order-12", "mail"}),
        (TaskFilter(destination=DEFAULT), set()),
        (TaskFilter(name="order", text="x" * 5000), {"order-12"}),
    ],
)
def test_a_filter_finds_what_it_says(tmp_path: Path, wanted: TaskFilter, names: set[str]) -> None:
    """A filter finds each task that matches all of it, and no other."""
    store = added(tmp_path, *TASKS)

    page = store.queries.find(also=condition_of(wanted, NOW))

    assert {task.name for task in page.tasks} == names
    store.close()


@pytest.mark.parametrize("retried", [False, True])
def test_the_duration_is_that_of_the_last_attempt(tmp_path: Path, retried: bool) -> None:
    """A task is found by how long its last attempt took, also one that succeeded at once."""
    store = added(tmp_path, {"name": "one"}, {"name": "two"})
    took = {"one": [9.0, 1.5] if retried else [1.5], "two": [9.0, 0.1] if retried else [0.1]}
    while any(took.values()):
        for claimed in store.claim({Lane("default", ""): 2}, 2**61):
            seconds = took[claimed.name].pop(0)
            is_last = not took[claimed.name]
            made = completion(claimed, "succeeded" if is_last else "ready")
            attempt = dataclasses.replace(
                made.attempt,
                duration_usec=int(seconds * 1e6),
                **({"status": 200, "reason": None} if is_last else {}),  # type: ignore[arg-type] # two of the fields
            )
            result = dataclasses.replace(made, attempt=attempt, previous_response=200 if is_last else 500)
            assert store.complete([result]) == [True]

    found = {
        name: {task.name for task in store.queries.find(also=condition_of(wanted, NOW)).tasks}
        for name, wanted in [("slow", TaskFilter(slower_seconds=1)), ("fast", TaskFilter(faster_seconds=0.5))]
    }

    assert found == {"slow": {"one"}, "fast": {"two"}}
    store.close()


def test_a_target_that_only_looks_like_the_service_is_another(tmp_path: Path) -> None:
    """Wildcards of SQL in a target are letters like others, and an instance is one label."""
    targets = ("a_b.c", "0.a_b.c", "aXb.c", "0.aXb.c", "x.0.a_b.c", "")
    store = added(tmp_path, *({"name": f"t{index}", "target": target} for index, target in enumerate(targets)))
    wanted = Destination(queues=(), elsewhere=(), targets=("a_b.c",), version="a_b.c")

    page = store.queries.find(also=condition_of(TaskFilter(destination=wanted), NOW))

    assert {task.name for task in page.tasks} == {"t0", "t1"}
    store.close()


@pytest.mark.parametrize("body", [b"", b"\x78", b"\x78\x9c\xff\xff", b"\xff\xfe"])
def test_any_body_can_be_searched(body: bytes) -> None:
    """A damaged body has no text in it, and is no error."""
    assert not body_has(body, "alice")
    assert not body_has(body, "\ud800")
