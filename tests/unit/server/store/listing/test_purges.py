"""Purges that are undone or expire, and changes of waiting tasks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.store.listing.purges import UNDO_SECONDS
from deferred_middleware.server.store.records import PULL, Lane, NewTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import NOW, Clock, completion

MINUTE = 60_000_000


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[TaskStore]:
    """A store that is empty."""
    opened = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    yield opened
    opened.close()


def add(store: TaskStore, *names: str | None, queue: str = "default", **fields: object) -> list[str]:
    """Add tasks; return their names."""
    tasks = [NewTask(queue=queue, url="/", eta_usec=NOW, name=name, **fields) for name in names]  # type: ignore[arg-type]
    return [result.name for result in store.add(tasks)]


def test_a_purge_is_undone(store: TaskStore) -> None:
    """The tasks are neither found, counted nor run; afterwards they are as before, and their names are theirs."""
    add(store, "a", "b", None)
    add(store, "other", queue="other")

    purge = store.purges.purge("default")

    assert (purge.tasks, purge.queue) == (3, "default")
    assert [task.name for task in store.queries.find().tasks] == ["other"]
    assert store.queries.counts() == {"other": {"ready": 1}}
    assert store.claim({Lane("default", ""): 9}, NOW + 1) == []
    assert [result.outcome for result in store.add([NewTask(queue="default", url="/", eta_usec=0, name="a")])] == [
        "tombstoned"
    ]
    assert store.purges.list() == [purge]

    assert store.purges.undo(purge) == (3, 0)
    assert store.purges.list() == []
    assert store.queries.counts() == {"default": {"ready": 3}, "other": {"ready": 1}}
    assert not store.queries.is_blocked("default", "a")
    assert [task.name for task in store.claim({Lane("default", ""): 9}, NOW + 1)][:2] == ["a", "b"]


def test_a_purge_survives_a_restart(tmp_path: Path, clock: Clock) -> None:
    """The next server can undo it, and does not take the tasks for those of a transaction."""
    store = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    add(store, "a")
    store.purges.purge("default")
    store.close()
    store = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    store.transactional.recover([])

    (purge,) = store.purges.list()
    assert store.purges.undo(purge) == (1, 0)
    store.close()


def test_a_result_of_a_purged_task_is_dropped(store: TaskStore) -> None:
    """An attempt that was running changes nothing; after the undo, the task runs again."""
    add(store, "a")
    (claimed,) = store.claim({Lane("default", ""): 1}, NOW + 1)
    purge = store.purges.purge("default")

    assert store.complete([completion(claimed)]) == [False]

    store.purges.undo(purge)
    (again,) = store.claim({Lane("default", ""): 1}, NOW + 1)
    assert (again.name, again.retry_count) == ("a", 0)


def test_what_can_not_be_undone_any_more_is_deleted(store: TaskStore, clock: Clock, tmp_path: Path) -> None:
    """After ten minutes the purge is not listed, and the next pruning deletes the tasks."""
    add(store, "a", "b")
    store.purges.purge("default")
    clock.usec += UNDO_SECONDS * 1_000_000 + 1
    assert store.purges.list() == []

    def held() -> int:
        return int(store._database.read("SELECT count(*) FROM tasks WHERE state = 'held'")[0][0])

    assert held() == 2
    store._database.write(lambda connection, _tally: store.purges.delete_expired(connection, clock.usec))
    assert held() == 0
    assert store.queries.is_blocked("default", "a")


def test_a_name_that_is_taken_meanwhile_is_not_taken_back(store: TaskStore) -> None:
    """If a person freed a name and the app used it, the old task stays deleted."""
    add(store, "a", "b")
    purge = store.purges.purge("default")
    store.operations.unblock_names("default", "a")
    add(store, "a")

    assert store.purges.undo(purge) == (1, 1)
    assert sorted(task.name for task in store.queries.find().tasks) == ["a", "b"]


def test_many_tasks_are_purged_in_batches(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tasks than one operation changes are all put away, and all brought back."""
    for _ in range(5):
        add(store, *[None] * 500)

    purge = store.purges.purge("default")
    assert purge.tasks == 2500
    assert store.queries.counts() == {}
    assert store.purges.undo(purge) == (2500, 0)
    assert store.queries.counts() == {"default": {"ready": 2500}}


def test_an_eta_is_changed(store: TaskStore) -> None:
    """A waiting task gets another ETA; a running, a finished and a pull task don't."""
    add(store, "a")
    add(store, "pull", queue="pull", method=PULL)
    task, pull = store.queries.get("default", "a"), store.queries.get("pull", "pull")
    assert task is not None
    assert pull is not None

    assert store.purges.set_eta(task.id, NOW + MINUTE)
    assert store.claim({Lane("default", ""): 1}, NOW + 1) == []
    assert store.purges.set_eta(task.id, NOW - MINUTE)
    (claimed,) = store.claim({Lane("default", ""): 1}, NOW + 1)
    assert not store.purges.set_eta(task.id, NOW)
    store.complete([completion(claimed)])
    assert not store.purges.set_eta(task.id, NOW)
    assert not store.purges.set_eta(pull.id, NOW)
    assert not store.purges.set_eta(4711, NOW)


def test_a_task_is_moved(store: TaskStore) -> None:
    """A waiting task is in the other queue, unless its name is taken there."""
    add(store, "a", "b")
    add(store, "b", queue="other")
    first, second = store.queries.get("default", "a"), store.queries.get("default", "b")
    assert first is not None
    assert second is not None

    headers = (("X-A", "1"),)
    assert store.purges.move(first.id, "other", headers) == "moved"
    assert store.purges.move(first.id, "other", ()) == "moved"
    assert store.purges.move(second.id, "other", ()) == "name taken"
    assert store.queries.counts() == {"default": {"ready": 1}, "other": {"ready": 2}}
    claimed = store.claim({Lane("other", ""): 9}, NOW + 1)
    assert {(task.name, task.headers) for task in claimed} == {("a", headers), ("b", ())}
    assert store.purges.move(first.id, "default", ()) == "not waiting"


def test_the_damage_of_a_task_is_not_hidden_by_a_move(store: TaskStore, tmp_path: Path) -> None:
    """A task whose payload was damaged on the disk is moved as it is, and not run."""
    add(store, "a")
    connection = sqlite3.connect(next(tmp_path.rglob("*.sqlite")))
    connection.execute("UPDATE payloads SET body = x'00'")
    connection.commit()

    assert store.purges.move(1, "other", (("X-A", "1"),)) == "moved"

    assert store.claim({Lane("other", ""): 9}, NOW + 1) == []
    assert store.queries.counts() == {"other": {"failed": 1}}
    connection.close()
