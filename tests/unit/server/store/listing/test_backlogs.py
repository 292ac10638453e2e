"""How many tasks wait, and what lists show of them: one statement each."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.store.listing.backlogs import MOST_COUNTED, Backlog
from deferred_middleware.server.store.records import Lane
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import LANE, NOW, Clock, completion, new_task, pull_task

LATER = NOW + 60_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TaskStore]:
    """A store that is empty."""
    opened = TaskStore(tmp_path / "tasks.sqlite", clock=Clock())
    yield opened
    opened.close()


def test_each_queue_is_counted_over_all_its_targets(store: TaskStore) -> None:
    """Due, scheduled and retrying tasks are told apart; pull tasks and those that run are left out."""
    store.add([new_task(queue="a", target=target, eta_usec=NOW - 5) for target in ("", "x", "x", "y.z")])
    store.add([new_task(queue="a", target="x", eta_usec=LATER + n) for n in range(3)])
    store.add([new_task(queue="c", eta_usec=NOW - n) for n in range(2)])
    store.add([pull_task(queue="b")])
    (claimed,) = store.claim({Lane("c", ""): 1}, NOW)
    store.complete([completion(claimed, "ready", eta_usec=LATER)])
    store.claim({Lane("a", "y.z"): 1}, NOW)

    found = store.queries.backlogs()

    assert found == {
        "a": Backlog(due=3, scheduled=3, next_eta_usec=LATER, oldest_eta_usec=NOW - 5),
        "c": Backlog(due=1, retrying=1, next_eta_usec=LATER, oldest_eta_usec=NOW),
    }
    assert store.queries.backlogs("a") == {"a": found["a"]}
    assert store.queries.backlog("b") == store.queries.backlog("nothing") == Backlog()


def test_a_queue_whose_tasks_all_run_has_no_backlog(store: TaskStore) -> None:
    """Tasks that have begun are neither due nor the oldest that wait."""
    store.add([new_task(), new_task()])
    store.claim({LANE: 2}, NOW)

    assert store.queries.backlog("default") == Backlog()


def test_counting_stops(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many tasks of a lane are counted."""
    monkeypatch.setattr("deferred_middleware.server.store.listing.backlogs.MOST_COUNTED", 3)
    store.add([new_task() for _ in range(5)])
    store.add([new_task(eta_usec=LATER) for _ in range(5)])

    backlog = store.queries.backlog("default")

    assert (backlog.due, backlog.scheduled) == (3, 3)
    assert MOST_COUNTED == 10_000


def test_what_is_ahead_of_each_task(store: TaskStore) -> None:
    """Tasks of the same queue and target with an earlier ETA, or added before, are ahead, unless they run."""
    store.add([new_task(eta_usec=NOW + n) for n in (3, 1, 2, 2)])
    store.add([new_task(queue="other"), new_task(target="x")])
    store.claim({LANE: 1}, NOW + 1)

    ahead = store.queries.ahead_of([1, 3, 4, 5, 6, 99], most=1)

    assert ahead == {1: (1, True), 3: (0, False), 4: (1, False), 5: (0, False), 6: (0, False)}


def test_an_extract_has_the_payload_and_the_last_duration(store: TaskStore) -> None:
    """A payload that is too large is left out; a task without an attempt has no duration."""
    store.add([new_task(body=b"short"), new_task(body=b"x" * 11), new_task(eta_usec=LATER)])
    first, second = store.claim({LANE: 2}, NOW)
    store.complete([completion(first, "failed"), completion(second)])

    found = store.queries.extracts([1, 2, 3, 99], most_bytes=10)

    assert {task_id: (one.body_bytes, one.body, one.duration_usec) for task_id, one in found.items()} == {
        1: (5, b"short", 1200),
        2: (11, b"", 1200),
        3: (7, b"payload", None),
    }


@pytest.mark.parametrize("answer", ["backlogs", "ahead"])
def test_no_answer_reads_all_tasks(store: TaskStore, tmp_path: Path, answer: str) -> None:
    """Each search uses the index of ready tasks."""
    store.add([new_task()])
    plans: list[str] = []

    def explain(sql: str, parameters: dict[str, object]) -> list[object]:
        connection = sqlite3.connect(f"file:{tmp_path}/tasks.sqlite?mode=ro", uri=True)
        plans.extend(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))
        connection.close()
        return []

    store._database.reader.read = explain  # type: ignore[method-assign, assignment]
    if answer == "backlogs":
        store.queries.backlogs()
    else:
        store.queries.ahead_of([1], most=5)

    assert any("tasks_ready" in plan for plan in plans)
    assert [plan for plan in plans if plan.startswith("SCAN tasks") and "INDEX" not in plan] == []
    assert [plan for plan in plans if "TEMP B-TREE" in plan] == []
