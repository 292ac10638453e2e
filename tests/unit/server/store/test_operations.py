"""What people do to the tasks of a store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from deferred_middleware.server.store import database, operations, queries
from deferred_middleware.server.store.records import Lane, State, TaskPage
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, completion, new_task, pull_task, run_all


def _names(page: TaskPage) -> list[str]:
    return [task.name for task in page.tasks]


def _id(store: TaskStore, name: str, queue: str = "default") -> int:
    task = store.get(queue, name)
    assert task is not None
    return task.id


def _fill(store: TaskStore) -> None:
    """Make two succeeded tasks, two dead letters, and four that wait in two queues."""
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
    """Page after page, the newest first, each task that fits the filters is there once."""
    _fill(store)
    found: list[str] = []
    before_id = None
    for _ in range(20):
        page = store.find(queue=queue, state=state, before_id=before_id, limit=limit)
        assert len(page.tasks) <= limit
        found += _names(page)
        before_id = page.next_before_id
        if before_id is None:
            break
    assert found == expected


def test_tasks_are_found_by_a_part_of_their_url(store: TaskStore) -> None:
    """Upper and lower case are the same, and so are a name and what a URL has of it."""
    _fill(store)
    store.add([new_task("odd", url="/_cb/deferred/main/caf%C3%A9%20x")])
    assert _names(store.find(contains="mail/SEND")) == ["wait2", "good2"]
    assert _names(store.find(contains="mail/send", state="succeeded")) == ["good2"]
    assert _names(store.find(contains="café x")) == ["odd"]
    assert _names(store.find(contains="%")) == ["odd"]


def test_a_search_looks_at_a_bounded_number_of_tasks(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may be empty and not the last; going on finds all there is, once, in any combination of lists."""
    monkeypatch.setattr(queries, "_LOOKED_AT", 3)
    for number in range(40):
        url = f"/wanted/{number}" if number % 18 == 0 else "/else"
        store.add([new_task(f"t{number}", url=url, queue=("default", "other")[number % 2])])
    for queue in (None, "default"):
        found: list[str] = []
        pages = 0
        before_id = None
        while True:
            page = store.find(queue=queue, state="ready", contains="wanted", before_id=before_id, limit=1)
            found += _names(page)
            pages += 1
            before_id = page.next_before_id
            if before_id is None:
                break
        expected = [f"t{n}" for n in (36, 18, 0) if queue is None or n % 2 == 0]
        assert found == expected
        assert pages > len(found)


@pytest.mark.parametrize("select", [queries._NEWEST, queries._NEWEST_OF_ALL])
def test_lists_for_people_read_no_more_than_they_show(store: TaskStore, tmp_path: Path, select: str) -> None:
    """A page is read from an index, or from the end of the table, in the order in which it is shown."""
    connection = sqlite3.connect(tmp_path / "tasks.sqlite")
    try:
        keys = ("default", "ready") if "queue" in select else ()
        found = connection.execute(f"EXPLAIN QUERY PLAN SELECT id {select}", (*keys, 5, 5)).fetchall()
    finally:
        connection.close()
    plan = " ".join(row[3] for row in found)
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan


def test_counts_are_kept_and_not_counted(store: TaskStore, tmp_path: Path, clock: Clock) -> None:
    """The counts come from where they are kept, also after a reopening, and agree with the table."""
    _fill(store)
    expected = {"default": {"ready": 2, "succeeded": 2, "failed": 2}, "other": {"ready": 2}}
    assert store.counts() == expected
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
    assert reopened.counts()["other"] == {"ready": 77}
    reopened.close()


def test_a_forced_task_is_claimed_before_its_time_and_once(store: TaskStore) -> None:
    """A task that a person wants run now is handed out whatever its ETA, and only once."""
    store.add([new_task("later", eta_usec=NOW + DAY_USEC), new_task("other", eta_usec=NOW + DAY_USEC)])
    assert store.claim_forced(10) == []
    assert store.force_run(_id(store, "later"))
    (claimed,) = store.claim_forced(10)
    assert (claimed.name, claimed.eta_usec, claimed.state) == ("later", NOW, "running")
    assert store.claim_forced(10) == []
    assert not store.forced_waiting
    assert store.complete([completion(claimed, "ready", eta_usec=NOW + 5)]) == [True]
    assert store.claim_forced(10) == []
    assert store.counts() == {"default": {"ready": 2}}


def test_a_forced_task_survives_a_restart(store: TaskStore, tmp_path: Path, clock: Clock) -> None:
    """What a person asked for is done by the next server if this one ends before."""
    store.add([new_task("later", eta_usec=NOW + DAY_USEC)])
    store.force_run(_id(store, "later"))
    store.close()
    reopened = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    assert reopened.forced_waiting
    assert [task.name for task in reopened.claim_forced(1)] == ["later"]
    reopened.close()


def test_only_a_waiting_push_task_can_be_forced(store: TaskStore) -> None:
    """A running, a finished, a pull and an unknown task are left as they are."""
    store.add([new_task("running"), pull_task("pulled")])
    store.claim({LANE: 1}, NOW)
    assert not store.force_run(_id(store, "running"))
    assert not store.force_run(_id(store, "pulled", "pull"))
    assert not store.force_run(999)


def test_a_dead_letter_begins_anew_and_keeps_its_attempts(store: TaskStore) -> None:
    """A retried dead letter has the counts of a new task; its earlier attempts stay and later ones follow them."""
    store.add([new_task("a", eta_usec=NOW - 7)])
    for state in ("ready", "failed"):
        (claimed,) = store.claim({LANE: 1}, NOW)
        store.complete([completion(claimed, state)])
    task_id = _id(store, "a")
    assert store.retry(task_id) == "retried"
    assert store.counts() == {"default": {"ready": 1}}
    (again,) = store.claim({LANE: 1}, NOW)
    assert (again.retry_count, again.execution_count, again.eta_usec) == (0, 0, NOW)
    assert (again.first_attempt_usec, again.previous_response, again.retry_reason) == (None, None, None)
    store.complete([completion(again)])
    assert [attempt.number for attempt in store.attempts(task_id)] == [1, 2, 3]


def test_what_is_no_dead_letter_is_not_retried(store: TaskStore) -> None:
    """Retrying tells an unknown task, one that has not failed, and one whose name is taken from a dead letter."""
    store.add([new_task("good")])
    run_all(store)
    store.add([new_task("bad")])
    run_all(store, "failed")
    bad = _id(store, "bad")
    store.forget_names("default", "bad")
    store.add([new_task("bad")])
    assert store.retry(999) == "unknown"
    assert store.retry(_id(store, "good")) == "not failed"
    assert store.retry(bad) == "name taken"
    assert store.counts() == {"default": {"succeeded": 1, "failed": 1, "ready": 1}}


def test_all_dead_letters_of_a_queue_are_retried(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, all of one queue are tried again, but for those whose names are taken."""
    monkeypatch.setattr(operations, "BATCH", 4)
    monkeypatch.setattr(database, "BATCH", 4)
    store.add([new_task(f"t{n}") for n in range(10)] + [new_task("x", queue="other")])
    run_all(store, "failed")
    run_all(store, "failed", queue="other")
    store.forget_names("default", "t3")
    store.add([new_task("t3")])
    assert store.retry_failed("default") == 9
    assert store.counts() == {"default": {"ready": 10, "failed": 1}, "other": {"failed": 1}}


def test_removing_takes_tasks_of_any_state(store: TaskStore) -> None:
    """Removed tasks are gone with their attempts and payloads, a late result is dropped, names stay blocked."""
    _fill(store)
    store.add([new_task("runs", eta_usec=NOW - 1)])
    (running,) = store.claim({LANE: 1}, NOW)
    ids = [_id(store, name) for name in ("good1", "bad1", "wait1", "runs")]
    assert store.remove([*ids, 999]) == 4
    assert store.complete([completion(running)]) == [False]
    assert [store.get_by_id(task_id) for task_id in ids] == [None] * 4
    assert [store.attempts(task_id) for task_id in ids] == [[]] * 4
    results = store.add([new_task(name) for name in ("good1", "bad1", "wait1", "runs")])
    assert [result.outcome for result in results] == ["tombstoned"] * 4
    assert store.counts()["default"] == {"succeeded": 1, "failed": 1, "ready": 1}


def test_a_large_queue_is_purged_in_steps(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge takes every unfinished task of the queue, and none of the dead letters, in several transactions."""
    monkeypatch.setattr(operations, "BATCH", 3)
    monkeypatch.setattr(database, "BATCH", 3)
    _fill(store)
    store.add([new_task() for _ in range(10)])
    store.claim({LANE: 4}, NOW)
    assert store.purge("default") == 12
    assert store.remove_failed("default") == 2
    assert store.counts() == {"default": {"succeeded": 2}, "other": {"ready": 2}}


def test_a_pause_is_kept(store: TaskStore, tmp_path: Path, clock: Clock) -> None:
    """A paused queue is paused for the next server too, until it is resumed."""
    assert store.paused() == frozenset()
    assert store.pause("default")
    assert not store.pause("default")
    assert store.pause("other")
    assert store.resume("other")
    assert not store.resume("other")
    assert store.paused() == {"default"}
    store.close()
    reopened = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    assert reopened.paused() == {"default"}
    reopened.close()


def test_names_can_be_forgotten(store: TaskStore) -> None:
    """A forgotten name can be used again at once, with its finished task still to be seen; others stay blocked."""
    store.add([new_task("a"), new_task("b"), new_task("c", queue="other"), new_task("d")])
    store.delete("default", ["d"])
    run_all(store)
    run_all(store, queue="other")
    assert store.forget_names("default", "a") == 1
    assert store.forget_names("default", "a") == 0
    assert [r.outcome for r in store.add([new_task("a"), new_task("b")])] == ["added", "tombstoned"]
    assert _names(store.find(queue="default")) == ["a", "b", "a"]
    assert store.forget_names("default") == 2
    results = store.add([new_task("b"), new_task("d"), new_task("c", queue="other")])
    assert [result.outcome for result in results] == ["added", "added", "tombstoned"]


def test_pruning_a_task_does_not_block_its_forgotten_name(store: TaskStore, clock: Clock) -> None:
    """A name that was forgotten stays free when the history lets its task go."""
    store.add([new_task("a")])
    run_all(store)
    store.forget_names("default", "a")
    clock.usec += 8 * DAY_USEC
    assert store.prune() == 1
    assert store.add([new_task("a")])[0].outcome == "added"


def test_a_dead_letter_does_not_block_its_name_for_ever(store: TaskStore, clock: Clock) -> None:
    """After nine days a dead letter's name can be used again, and the dead letter is still there."""
    store.add([new_task("a")])
    run_all(store, "failed", finished_usec=NOW)
    clock.usec += 9 * DAY_USEC + 1
    assert store.add([new_task("a")])[0].outcome == "added"
    assert store.counts() == {"default": {"failed": 1, "ready": 1}}
    assert store.get("default", "a") is not None
    assert store.claim({Lane("default", ""): 1}, NOW)[0].name == "a"


@pytest.mark.retention(first_attempts=2, last_attempts=3)
def test_the_first_and_the_last_attempts_are_kept(store: TaskStore) -> None:
    """Of many attempts those at both ends stay, across a retry by a person too."""
    store.add([new_task("a")])
    for state in ["ready"] * 5 + ["failed"]:
        (claimed,) = store.claim({LANE: 1}, 2 * NOW)
        store.complete([completion(claimed, state)])
    task_id = _id(store, "a")
    assert [attempt.number for attempt in store.attempts(task_id)] == [1, 2, 4, 5, 6]
    store.retry(task_id)
    run_all(store)
    assert [attempt.number for attempt in store.attempts(task_id)] == [1, 2, 5, 6, 7]
