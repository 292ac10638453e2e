"""Groups of tasks that failed in the same way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.store.records import RetryPolicy
from deferred_middleware.server.store.statistics import failures
from deferred_middleware.server.store.statistics.failures import FailureGroup
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, completion, new_task, prune, pull_task


def traceback(kind: str = "ValueError: no such user 5", *, line: int = 12, function: str = "send") -> bytes:
    """Return a traceback with one frame of the app."""
    return (
        "Traceback (most recent call last):\n"
        f'  File "/app/mail.py", line {line}, in {function}\n    look_up(user)\n{kind}\n'
    ).encode()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[TaskStore]:
    """Return an empty store."""
    with contextlib.closing(TaskStore(tmp_path / "tasks.sqlite", clock=clock)) as store:
        yield store


def fail(store: TaskStore, name: str, state: str = "failed", response: bytes = traceback()) -> int:
    """Add a task, and make it fail; return its ID."""
    store.add([new_task(name)])
    return run(store, state, response)


def run(store: TaskStore, state: str, response: bytes = b"") -> int:
    """Run the due task, which ends in ``state``; return its ID."""
    (claimed,) = store.claim({LANE: 1}, NOW)
    assert store.complete([completion(claimed, state, eta_usec=NOW + 1000, excerpt=response)]) == [True]
    return claimed.id


def groups(store: TaskStore) -> list[FailureGroup]:
    """Return the groups that have tasks."""
    return list(store.failures.groups().groups)


def numbers(store: TaskStore) -> dict[str, tuple[int, int]]:
    """Return the dead letters and the failing tasks by exception."""
    return {group.exception: (group.dead, group.failing) for group in groups(store)}


def test_tasks_are_grouped_by_exception_and_place(store: TaskStore) -> None:
    """The message and the line's number don't matter; the type, the file, the function and the code do."""
    one = fail(store, "a")
    other = fail(store, "b", "ready", traceback("ValueError: no such user 6", line=15))
    fail(store, "c", response=traceback("KeyError: 'x'"))
    fail(store, "d", response=traceback(function="receive"))
    found = groups(store)
    assert [(group.exception, group.function) for group in found].count(("ValueError", "send")) == 1
    assert len(found) == 3
    (group,) = (group for group in found if (group.exception, group.function) == ("ValueError", "send"))
    assert (group.dead, group.failing, group.attempts) == (1, 1, 2)
    assert (group.file, group.line, group.source, group.message) == (
        "/app/mail.py", 15, "look_up(user)", "no such user 6",
    )  # fmt: skip
    assert [task.id for task in store.failures.tasks(group.id).tasks] == [other, one]
    assert store.failures.group_of(one) == group.id


@pytest.mark.parametrize("step", ["success", "other failure", "delete", "purge", "delete-failed"])
def test_a_task_leaves_its_group(store: TaskStore, step: str) -> None:
    """Whatever becomes of a task, the group's numbers follow."""
    task_id = fail(store, "a", "failed" if step == "delete-failed" else "ready")
    assert numbers(store) == {"ValueError": (1, 0) if step == "delete-failed" else (0, 1)}
    if step in ("success", "other failure"):
        store.force_run(task_id)
        (claimed,) = store.claim_forced(1)
        assert numbers(store) == {"ValueError": (0, 1)}
        state = "succeeded" if step == "success" else "failed"
        store.complete([completion(claimed, state, excerpt=traceback("KeyError: 1"))])
    elif step == "delete":
        store.operations.delete([task_id])
    elif step == "purge":
        store.operations.purge("default")
    else:
        store.operations.delete_failed("default")
    assert numbers(store) == ({"KeyError": (1, 0)} if step == "other failure" else {})
    solved = {group.exception for group in store.failures.groups(solved=True).groups}
    assert solved == {"ValueError"}


def test_a_retry_runs_all_of_a_group(store: TaskStore) -> None:
    """Dead letters run again, tasks in back-off are due, and other groups are left alone."""
    first = fail(store, "a")
    second = fail(store, "b", "ready")
    fail(store, "c", response=traceback("KeyError: 1"))
    group = store.failures.group_of(first)
    assert group is not None
    done = store.failures.retry(group)
    assert (done.retried, done.made_due) == (1, 1)
    assert {task.id for task in store.claim({LANE: 9}, NOW)} == {first, second}
    assert numbers(store) == {"ValueError": (0, 2), "KeyError": (1, 0)}


def test_a_retry_of_very_many(store: TaskStore) -> None:
    """A retry changes all tasks of a group, in several steps."""
    store.add([new_task() for _ in range(2500)])
    claimed = store.claim({LANE: 2500}, NOW)
    store.complete([completion(task, "failed", excerpt=traceback()) for task in claimed])
    (group,) = groups(store)
    assert group.dead == 2500
    assert store.failures.retry(group.id).retried == 2500
    assert numbers(store) == {"ValueError": (0, 2500)}


def test_lists_have_pages(store: TaskStore, clock: Clock) -> None:
    """Groups and tasks are listed page by page, without gaps and repetitions."""
    for number in range(5):
        fail(store, f"t{number}", response=traceback(f"Error{number}: x"))
        fail(store, f"u{number}", "ready")
        clock.usec += 1
    seen, before = [], None
    while True:
        page = store.failures.groups(before=before, limit=2)
        seen += [group.exception for group in page.groups]
        before = page.next_before
        if before is None:
            break
    assert sorted(seen) == [*(f"Error{number}" for number in range(5)), "ValueError"]
    (group,) = (group for group in groups(store) if group.exception == "ValueError")
    first = store.failures.tasks(group.id, limit=3)
    rest = store.failures.tasks(group.id, before_id=first.next_before_id, limit=3)
    names = [task.name for task in (*first.tasks, *rest.tasks)]
    assert names == ["u4", "u3", "u2", "u1", "u0"]
    assert rest.next_before_id is None


def test_old_groups_without_tasks_are_forgotten(store: TaskStore, clock: Clock) -> None:
    """A group without tasks is kept for a week; one with tasks is kept."""
    fail(store, "a")
    gone = fail(store, "b", response=traceback("KeyError: 1"))
    store.operations.delete([gone])
    clock.usec += 8 * DAY_USEC
    prune(store)
    assert numbers(store) == {"ValueError": (1, 0)}
    assert store.failures.groups(solved=True).groups == ()


def test_the_number_of_groups_is_bounded(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of groups, new failures share one."""
    monkeypatch.setattr(failures, "MOST_GROUPS", 3)
    for number in range(7):
        fail(store, f"t{number}", response=traceback(f"Error{number}: x"))
    found = numbers(store)
    assert len(found) == 4
    assert found["other failures"] == (4, 0)


def test_pull_tasks_that_nobody_deletes_have_a_group(store: TaskStore) -> None:
    """A pull task that was leased too often is a dead letter of a group."""
    store.add([pull_task("a")])
    policy = RetryPolicy(retry_limit=0)
    store.leases.lease("pull", lease_usec=0, limit=1, policy=policy)
    assert numbers(store) == {"not deleted during any of its leases": (1, 0)}


def test_an_unknown_group(store: TaskStore) -> None:
    """A group that isn't there has nothing to show or retry."""
    assert store.failures.group(7) is None
    assert store.failures.retry(7).retried == 0
    assert store.failures.tasks(7).tasks == ()
