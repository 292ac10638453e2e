"""Operations on tasks and queues, and lists of tasks."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from deferred_middleware.server.store import database, operations, queries
from deferred_middleware.server.store.records import Lane, State, TaskPage
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, completion, new_task, prune, pull_task, run_all


def _names(page: TaskPage) -> list[str]:
    return [task.name for task in page.tasks]


def _id(store: TaskStore, name: str, queue: str = "default") -> int:
    task = store.queries.get(queue, name)
    assert task is not None
    return task.id


def _fill(store: TaskStore) -> None:
    """Add two succeeded tasks, two dead letters, and four ready tasks in two queues."""
    store.add([new_task("good1"), new_task("good2", url="/_cb/deferred/mail/send")])
    run_all(store)
    store.add([new_task("bad1"), new_task("bad2")])
    run_all(store, "failed")
    store.add([new_task("wait1"), new_task("other1", queue="other")])
    store.add([new_task("wait2", url="/_cb/deferred/mail/Send"), new_task("other2", queue="other")])


@pytest.mark.parametrize(
    ("queue", "state", "expected"),
    [
        (None, None, ["other2", "wait2", "other1", "wait1", "bad2", "bad1", "good2", "good1"]),
        ("other", None, ["other2", "other1"]),
        ("default", None, ["wait2", "wait1", "bad2", "bad1", "good2", "good1"]),
        (None, "ready", ["other2", "wait2", "other1", "wait1"]),
        ("default", "failed", ["bad2", "bad1"]),
        ("nope", None, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_have_every_task_once(
    store: TaskStore, queue: str | None, state: State | None, expected: list[str], limit: int
) -> None:
    """All pages together have each task that matches the filters once, the newest first."""
    _fill(store)
    found: list[str] = []
    before_id = None
    for _ in range(20):
        page = store.queries.find(queue=queue, state=state, before_id=before_id, limit=limit)
        assert len(page.tasks) <= limit
        found += _names(page)
        before_id = page.next_before_id
        if before_id is None:
            break
    assert found == expected


def test_tasks_are_found_by_a_part_of_their_url(store: TaskStore) -> None:
    """The search ignores case, and finds a name in its percent-encoded form."""
    _fill(store)
    store.add([new_task("odd", url="/_cb/deferred/main/caf%C3%A9%20x")])
    assert _names(store.queries.find(contains="mail/SEND")) == ["wait2", "good2"]
    assert _names(store.queries.find(contains="mail/send", state="succeeded")) == ["good2"]
    assert _names(store.queries.find(contains="café x")) == ["odd"]
    assert _names(store.queries.find(contains="%")) == ["odd"]


def test_a_search_looks_at_a_bounded_number_of_tasks(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may be empty without being the last; all pages together have each match once."""
    monkeypatch.setattr(queries, "_MOST_SEARCHED", 3)
    for number in range(40):
        url = f"/wanted/{number}" if number % 18 == 0 else "/else"
        store.add([new_task(f"t{number}", url=url, queue=("default", "other")[number % 2])])
    for queue in (None, "default"):
        found: list[str] = []
        pages = 0
        before_id = None
        while True:
            page = store.queries.find(queue=queue, state="ready", contains="wanted", before_id=before_id, limit=1)
            found += _names(page)
            pages += 1
            before_id = page.next_before_id
            if before_id is None:
                break
        expected = [f"t{n}" for n in (36, 18, 0) if queue is None or n % 2 == 0]
        assert found == expected
        assert pages > len(found)


@pytest.mark.parametrize("select", [queries._NEWEST, queries._NEWEST_OF_ALL])
def test_lists_read_only_the_rows_that_they_return(store: TaskStore, tmp_path: Path, select: str) -> None:
    """A page is read in its order, from an index or from the end of the table."""
    connection = sqlite3.connect(tmp_path / "tasks.sqlite")
    try:
        keys = ("default", "ready") if "queue" in select else ()
        found = connection.execute(f"EXPLAIN QUERY PLAN SELECT id {select}", (*keys, 5, 5)).fetchall()
    finally:
        connection.close()
    plan = " ".join(row[3] for row in found)
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan


def test_counts_are_stored(store: TaskStore, tmp_path: Path, clock: Clock) -> None:
    """The counts come from their own table, also when the store is opened again, and are correct."""
    _fill(store)
    expected = {"default": {"ready": 2, "succeeded": 2, "failed": 2}, "other": {"ready": 2}}
    assert store.queries.counts() == expected
    store.close()
    connection = sqlite3.connect(tmp_path / "tasks.sqlite")
    counted = connection.execute("SELECT queue, state, count(*) FROM tasks GROUP BY queue, state").fetchall()
    assert {(q, s): n for q, s, n in counted} == {
        (q, s): n for q, states in expected.items() for s, n in states.items()
    }
    connection.execute("UPDATE counts SET number = 77 WHERE queue = 'other'")
    connection.commit()
    connection.close()
    reopened = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    assert reopened.queries.counts()["other"] == {"ready": 77}
    reopened.close()


def test_a_forced_task_is_claimed_before_its_time_and_once(store: TaskStore) -> None:
    """A forced task is claimed once, whatever its ETA."""
    store.add([new_task("later", eta_usec=NOW + DAY_USEC), new_task("other", eta_usec=NOW + DAY_USEC)])
    assert store.claim_forced(10) == []
    assert store.force_run(_id(store, "later"))
    (claimed,) = store.claim_forced(10)
    assert (claimed.name, claimed.eta_usec, claimed.state) == ("later", NOW, "running")
    assert store.claim_forced(10) == []
    assert not store.forced_waiting
    assert store.complete([completion(claimed, "ready", eta_usec=NOW + 5)]) == [True]
    assert store.claim_forced(10) == []
    assert store.queries.counts() == {"default": {"ready": 2}}


def test_a_forced_task_survives_a_restart(store: TaskStore, tmp_path: Path, clock: Clock) -> None:
    """If the server ends before it runs a forced task, the next server runs it."""
    store.add([new_task("later", eta_usec=NOW + DAY_USEC)])
    store.force_run(_id(store, "later"))
    store.close()
    reopened = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    assert reopened.forced_waiting
    assert [task.name for task in reopened.claim_forced(1)] == ["later"]
    reopened.close()


def test_only_a_waiting_push_task_can_be_forced(store: TaskStore) -> None:
    """A running task, a pull task and an unknown task can't be forced."""
    store.add([new_task("running"), pull_task("pulled")])
    store.claim({LANE: 1}, NOW)
    assert not store.force_run(_id(store, "running"))
    assert not store.force_run(_id(store, "pulled", "pull"))
    assert not store.force_run(999)


def test_a_retried_dead_letter_keeps_its_attempts(store: TaskStore) -> None:
    """A retried dead letter starts with the counts of a new task and keeps its earlier attempts."""
    store.add([new_task("a", eta_usec=NOW - 7)])
    for state in ("ready", "failed"):
        (claimed,) = store.claim({LANE: 1}, NOW)
        store.complete([completion(claimed, state)])
    task_id = _id(store, "a")
    assert store.operations.retry(task_id) == "retried"
    assert store.queries.counts() == {"default": {"ready": 1}}
    (again,) = store.claim({LANE: 1}, NOW)
    assert (again.retry_count, again.execution_count, again.eta_usec) == (0, 0, NOW)
    assert (again.first_attempt_usec, again.previous_response, again.retry_reason) == (None, None, None)
    store.complete([completion(again)])
    assert [attempt.number for attempt in store.queries.attempts(task_id)] == [1, 2, 3]


def test_only_a_dead_letter_is_retried(store: TaskStore) -> None:
    """An unknown task, a task that has not failed, and a task whose name is taken have different outcomes."""
    store.add([new_task("good")])
    run_all(store)
    store.add([new_task("bad")])
    run_all(store, "failed")
    bad = _id(store, "bad")
    store.operations.unblock_names("default", "bad")
    store.add([new_task("bad")])
    assert store.operations.retry(999) == "unknown"
    assert store.operations.retry(_id(store, "good")) == "not failed"
    assert store.operations.retry(bad) == "name taken"
    assert store.queries.counts() == {"default": {"succeeded": 1, "failed": 1, "ready": 1}}


def test_all_dead_letters_of_a_queue_are_retried(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All dead letters of one queue are retried in several transactions, except those whose names are taken."""
    monkeypatch.setattr(operations, "BATCH", 4)
    monkeypatch.setattr(database, "BATCH", 4)
    store.add([new_task(f"t{n}") for n in range(10)] + [new_task("x", queue="other")])
    run_all(store, "failed")
    run_all(store, "failed", queue="other")
    store.operations.unblock_names("default", "t3")
    store.add([new_task("t3")])
    assert store.operations.retry_failed("default") == 9
    assert store.queries.counts() == {"default": {"ready": 10, "failed": 1}, "other": {"failed": 1}}


def test_tasks_in_any_state_can_be_deleted(store: TaskStore) -> None:
    """Deleting a task deletes its attempts, drops its late result, and keeps its name blocked."""
    _fill(store)
    store.add([new_task("runs", eta_usec=NOW - 1)])
    (running,) = store.claim({LANE: 1}, NOW)
    ids = [_id(store, name) for name in ("good1", "bad1", "wait1", "runs")]
    assert store.operations.delete([*ids, 999]) == 4
    assert store.complete([completion(running)]) == [False]
    assert [store.queries.get_by_id(task_id) for task_id in ids] == [None] * 4
    assert [store.queries.attempts(task_id) for task_id in ids] == [[]] * 4
    results = store.add([new_task(name) for name in ("good1", "bad1", "wait1", "runs")])
    assert [result.outcome for result in results] == ["tombstoned"] * 4
    assert store.queries.counts()["default"] == {"succeeded": 1, "failed": 1, "ready": 1}


def test_a_large_queue_is_purged_in_steps(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge deletes all unfinished tasks of the queue, and no dead letters, in several transactions."""
    monkeypatch.setattr(operations, "BATCH", 3)
    monkeypatch.setattr(database, "BATCH", 3)
    _fill(store)
    store.add([new_task() for _ in range(10)])
    store.claim({LANE: 4}, NOW)
    assert store.operations.purge("default") == 12
    assert store.operations.delete_failed("default") == 2
    assert store.queries.counts() == {"default": {"succeeded": 2}, "other": {"ready": 2}}


def test_a_pause_is_kept(store: TaskStore, tmp_path: Path, clock: Clock) -> None:
    """A queue stays paused until it is resumed, also after a restart."""
    assert store.operations.paused() == frozenset()
    assert store.operations.pause("default")
    assert not store.operations.pause("default")
    assert store.operations.pause("other")
    assert store.operations.resume("other")
    assert not store.operations.resume("other")
    assert store.operations.paused() == {"default"}
    store.close()
    reopened = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    assert reopened.operations.paused() == {"default"}
    reopened.close()


def test_names_can_be_unblocked(store: TaskStore) -> None:
    """An unblocked name can be used again at once; finished tasks are kept and other names stay blocked."""
    store.add([new_task("a"), new_task("b"), new_task("c", queue="other"), new_task("d")])
    store.operations.delete_by_name("default", ["d"])
    run_all(store)
    run_all(store, queue="other")
    assert store.operations.unblock_names("default", "a") == 1
    assert store.operations.unblock_names("default", "a") == 0
    assert [r.outcome for r in store.add([new_task("a"), new_task("b")])] == ["added", "tombstoned"]
    assert _names(store.queries.find(queue="default")) == ["a", "b", "a"]
    assert store.operations.unblock_names("default") == 2
    results = store.add([new_task("b"), new_task("d"), new_task("c", queue="other")])
    assert [result.outcome for result in results] == ["added", "added", "tombstoned"]


def test_pruning_a_task_does_not_block_its_name_again(store: TaskStore, clock: Clock) -> None:
    """An unblocked name stays free when its finished task is deleted."""
    store.add([new_task("a")])
    run_all(store)
    store.operations.unblock_names("default", "a")
    clock.usec += 8 * DAY_USEC
    assert prune(store) == 1
    assert store.add([new_task("a")])[0].outcome == "added"


def test_a_dead_letter_does_not_block_its_name_for_ever(store: TaskStore, clock: Clock) -> None:
    """A dead letter's name can be used again after nine days, and the dead letter is kept."""
    store.add([new_task("a")])
    run_all(store, "failed", finished_usec=NOW)
    clock.usec += 9 * DAY_USEC + 1
    assert store.add([new_task("a")])[0].outcome == "added"
    assert store.queries.counts() == {"default": {"failed": 1, "ready": 1}}
    assert store.queries.get("default", "a") is not None
    assert store.claim({Lane("default", ""): 1}, NOW)[0].name == "a"


@pytest.mark.retention(first_attempts=2, last_attempts=3)
def test_the_first_and_the_last_attempts_are_kept(store: TaskStore) -> None:
    """Of many attempts, the first and the last are kept, also after a dead letter is retried."""
    store.add([new_task("a")])
    for state in ["ready"] * 5 + ["failed"]:
        (claimed,) = store.claim({LANE: 1}, 2 * NOW)
        store.complete([completion(claimed, state)])
    task_id = _id(store, "a")
    assert [attempt.number for attempt in store.queries.attempts(task_id)] == [1, 2, 4, 5, 6]
    store.operations.retry(task_id)
    run_all(store)
    assert [attempt.number for attempt in store.queries.attempts(task_id)] == [1, 2, 5, 6, 7]
