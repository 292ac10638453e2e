"""Leases of pull tasks."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from deferred_middleware.server.store import leases, queries
from deferred_middleware.server.store.records import RetryPolicy, StoredTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import NOW, Clock, new_task, pull_task, run_all

MINUTE_USEC = 60_000_000


def lease(
    store: TaskStore,
    limit: int = 10,
    *,
    policy: RetryPolicy | None = None,
    tag: str | None = None,
    by_tag: bool = False,
) -> list[StoredTask]:
    """Lease tasks of the queue ``pull`` for a minute."""
    return store.leases.lease(
        "pull",
        lease_usec=MINUTE_USEC,
        limit=limit,
        policy=policy or RetryPolicy(),
        group_by_tag=by_tag or tag is not None,
        tag=tag,
    )


def names(tasks: list[StoredTask]) -> list[str]:
    """Return the tasks' names."""
    return [task.name for task in tasks]


def test_a_leased_task_is_not_leased_again_until_its_lease_ends(store: TaskStore, clock: Clock) -> None:
    """The oldest tasks are leased first, are leased again only after their lease ends, and count their leases."""
    store.add(
        [pull_task("b", eta_usec=NOW - 1), pull_task("a", eta_usec=NOW - 2, tag="t"), pull_task("c", eta_usec=NOW + 1)]
    )
    first = lease(store, 1)
    assert [(t.name, t.body, t.tag, t.retry_count, t.eta_usec) for t in first] == [
        ("a", b"payload", "t", 1, NOW + MINUTE_USEC)
    ]
    assert names(lease(store)) == ["b"]
    assert lease(store) == []
    clock.usec = NOW + MINUTE_USEC
    again = lease(store)
    assert names(again) == ["c", "b", "a"]
    assert [task.retry_count for task in again] == [1, 2, 2]


def test_a_lease_survives_a_restart(store: TaskStore, tmp_path: Path, clock: Clock) -> None:
    """A lease is still valid after a restart."""
    store.add([pull_task("a")])
    lease(store)
    store.close()
    reopened = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    assert lease(reopened) == []
    reopened.close()


def test_pull_tasks_are_never_claimed_and_push_tasks_never_leased(store: TaskStore) -> None:
    """In a queue with both kinds of tasks, push tasks are claimed and pull tasks are leased."""
    store.add([pull_task("a"), new_task("b", queue="pull")])
    assert [lane.queue for lane, _eta in store.queries.lanes()] == ["pull"]
    run_all(store, queue="pull")
    assert names(lease(store)) == ["a"]
    assert store.queries.lanes() == []


@pytest.mark.parametrize(
    ("tag", "expected"), [("x", ["x1", "x2"]), ("y", ["y1"]), (None, ["none1", "none2"]), ("unknown", [])]
)
def test_tasks_are_leased_by_tag(store: TaskStore, tag: str | None, expected: list[str]) -> None:
    """A lease by tag returns tasks with one tag: the given one, or the oldest task's, which may be no tag."""
    for offset, (name, its_tag) in enumerate([("none1", None), ("x1", "x"), ("y1", "y"), ("none2", None), ("x2", "x")]):
        store.add([pull_task(name, tag=its_tag, eta_usec=NOW - 10 + offset)])
    assert names(lease(store, tag=tag, by_tag=True)) == expected


def test_the_tag_of_the_oldest_task_is_taken(store: TaskStore) -> None:
    """If no tag is given, the tasks with the tag of the oldest task are leased."""
    store.add([pull_task("y1", tag="y", eta_usec=NOW - 3), pull_task("x1", tag="x", eta_usec=NOW - 5)])
    store.add([pull_task("x2", tag="x", eta_usec=NOW - 1)])
    assert names(lease(store, by_tag=True)) == ["x1", "x2"]
    assert names(lease(store, by_tag=True)) == ["y1"]


def test_a_lease_can_be_prolonged_and_ended(store: TaskStore, clock: Clock) -> None:
    """Changing a lease requires its current end; a change to 0 ends the lease."""
    store.add([pull_task("a")])
    (task,) = lease(store)
    clock.usec += 1000
    longer = store.leases.change("pull", "a", eta_usec=task.eta_usec, lease_usec=2 * MINUTE_USEC)
    assert (longer.outcome, longer.eta_usec) == ("changed", NOW + 1000 + 2 * MINUTE_USEC)
    assert store.leases.change("pull", "a", eta_usec=task.eta_usec, lease_usec=0).outcome == "expired"
    assert store.leases.change("pull", "a", eta_usec=longer.eta_usec, lease_usec=0).outcome == "changed"
    assert names(lease(store)) == ["a"]


def test_a_lease_that_is_over_cannot_be_changed(store: TaskStore, clock: Clock) -> None:
    """A lease that has ended, a deleted task and an unknown task have different outcomes."""
    store.add([pull_task("a"), pull_task("b")])
    ends = {task.name: task.eta_usec for task in lease(store)}
    store.operations.delete_by_name("pull", ["b"])
    clock.usec = NOW + MINUTE_USEC + 1
    change = {"lease_usec": MINUTE_USEC, "eta_usec": ends["a"]}
    assert store.leases.change("pull", "a", **change).outcome == "expired"
    assert store.leases.change("pull", "b", **change).outcome == "tombstoned"
    assert store.leases.change("pull", "c", **change).outcome == "unknown"


def test_a_task_that_was_leased_too_often_is_a_dead_letter(store: TaskStore, clock: Clock) -> None:
    """A task becomes a dead letter after as many leases as its own retry limit allows, or else its queue's."""
    store.add([pull_task("queue's"), pull_task("own", retry=RetryPolicy(retry_limit=5)), pull_task()])
    for _ in range(2):
        assert len(lease(store, policy=RetryPolicy(retry_limit=2))) == 3
        clock.usec += MINUTE_USEC
    assert names(lease(store, policy=RetryPolicy(retry_limit=2))) == ["own"]
    assert store.queries.counts() == {"pull": {"ready": 1, "failed": 2}}
    dead = store.queries.get("pull", "queue's")
    assert dead is not None
    assert (dead.state, dead.retry_count) == ("failed", 2)
    assert store.add([pull_task("queue's")])[0].outcome == "tombstoned"
    assert store.operations.retry(dead.id) == "retried"
    assert names(lease(store, policy=RetryPolicy(retry_limit=2))) == ["queue's"]


def test_dead_letters_do_not_make_a_lease_short(store: TaskStore, clock: Clock) -> None:
    """Tasks that become dead letters don't count toward the lease's limit."""
    store.add([pull_task(f"old{n}", eta_usec=NOW - 1) for n in range(5)])
    lease(store)
    clock.usec += MINUTE_USEC
    store.add([pull_task(f"new{n}", eta_usec=clock.usec) for n in range(4)])
    assert names(lease(store, 3, policy=RetryPolicy(retry_limit=1))) == ["new0", "new1", "new2"]
    assert store.queries.counts() == {"pull": {"ready": 4, "failed": 5}}


def test_a_lease_of_no_time_ends_at_once(store: TaskStore) -> None:
    """A lease of 0 seconds returns each task once; the tasks can be leased again at once."""
    store.add([pull_task("a"), pull_task("b")])
    for _ in range(2):
        tasks = store.leases.lease("pull", lease_usec=0, limit=5, policy=RetryPolicy())
        assert names(tasks) == ["a", "b"]


@pytest.mark.parametrize(
    ("sql", "parameters", "index"),
    [
        (leases.OLDEST, ("pull", 1, 1), "tasks_leasable"),
        (leases.OLDEST_OF_TAG, ("pull", "x", 1, 1), "tasks_tagged"),
        (leases.OLDEST_OF_TAG, ("pull", None, 1, 1), "tasks_tagged"),
        (queries.OLDEST_LEASABLE, ("pull",), "tasks_leasable"),
    ],
)
def test_leases_read_an_index_in_its_order(
    store: TaskStore, tmp_path: Path, sql: str, parameters: tuple[object, ...], index: str
) -> None:
    """Leases and the statistics of a queue read only the tasks that they need."""
    connection = sqlite3.connect(tmp_path / "tasks.sqlite")
    try:
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))
    finally:
        connection.close()
    assert "SEARCH tasks USING" in plan
    assert f"INDEX {index}" in plan
    assert "TEMP B-TREE" not in plan
