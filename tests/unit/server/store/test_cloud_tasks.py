"""What the Cloud Tasks API needs of the task store."""

from __future__ import annotations

from deferred_middleware.server.store.records import HTTP_TARGET, CloudOrigin, Lane
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, completion, new_task, prune, pull_task, run_all

ORIGIN = CloudOrigin(token="oidc", email="me@example.com", purpose="https://example.com")


def test_the_origin_of_a_task_is_kept(store: TaskStore) -> None:
    """A task's token is read back, by a claim too; another task has no origin."""
    store.add([new_task("a", origin=ORIGIN, target=HTTP_TARGET, url="https://example.com/"), new_task("b")])
    found = store.queries.get("default", "a")
    assert found is not None
    assert found.origin == ORIGIN
    assert found.is_http
    (claimed,) = store.claim({Lane("default", HTTP_TARGET): 5}, NOW)
    assert claimed.origin == ORIGIN
    (other,) = store.claim({LANE: 5}, NOW)
    assert other.origin is None
    assert not other.is_http


def test_an_add_with_the_key_of_an_earlier_one_adds_nothing(store: TaskStore, clock: Clock) -> None:
    """A client that repeats its request gets the earlier answer, for a day."""
    first = store.add([new_task(), new_task("named"), new_task("named")], key="batch 1")
    assert [result.outcome for result in first] == ["added", "added", "exists"]
    assert store.add([new_task(), new_task(), new_task()], key="batch 1") == first
    assert len(store.add([new_task()], key="batch 2")) == 1
    assert store.queries.counts() == {"default": {"ready": 3}}
    clock.usec += DAY_USEC + 1
    prune(store)
    assert store.add([new_task()], key="batch 1") != first


def test_unfinished_tasks_are_listed_in_pages(store: TaskStore) -> None:
    """Ready and running push tasks of one queue are listed, the oldest first."""
    store.add([new_task("finished")])
    run_all(store)
    store.add([new_task(f"task{number}") for number in range(5)])
    store.add([new_task("elsewhere", queue="other"), pull_task("pulled", queue="default")])
    store.claim({LANE: 2}, NOW)
    first = store.queries.listed("default", limit=3)
    assert [(task.name, task.state) for task in first] == [
        ("task0", "running"),
        ("task1", "running"),
        ("task2", "ready"),
    ]
    rest = store.queries.listed("default", after_id=first[-1].id, limit=3)
    assert [task.name for task in rest] == ["task3", "task4"]


def test_a_reset_deletes_everything(store: TaskStore) -> None:
    """After a reset there are no tasks, no blocked names, no pauses and no kept results."""
    store.add([new_task("done")])
    run_all(store)
    store.add([new_task("waits")], key="key")
    store.operations.pause("default")
    assert store.operations.reset() == 2
    assert store.queries.counts().get("default", {}).get("ready", 0) == 0
    assert store.operations.paused() == frozenset()
    results = store.add([new_task("done"), new_task("waits")], key="key")
    assert [result.outcome for result in results] == ["added", "added"]


def test_an_attempt_keeps_when_it_was_scheduled(store: TaskStore) -> None:
    """The record of an attempt has the task's ETA when the attempt began."""
    store.add([new_task("a")])
    (claimed,) = store.claim({LANE: 1}, NOW)
    store.complete([completion(claimed)])
    assert [attempt.scheduled_usec for attempt in store.queries.attempts(claimed.id)] == [None]
