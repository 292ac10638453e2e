"""Tasks and results for the tests of the task store, and a clock that the test controls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from deferred_middleware.server.store.records import (
    PULL,
    AttemptRecord,
    ClaimedTask,
    Completion,
    Lane,
    NewTask,
    State,
    StoredTask,
)
from deferred_middleware.server.store.statistics.traceback_text import failure_site
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep import pruning

LANE = Lane("default", "")
NOW = 1_700_000_000_000_000
DAY_USEC = 24 * 3600 * 1_000_000


class Clock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.usec = NOW

    def __call__(self) -> float:
        """Return the seconds since the epoch."""
        return self.usec / 1e6


TASK = ClaimedTask(
    id=1,
    queue="default",
    name="one",
    state="running",
    eta_usec=1_700_000_000_000_005,
    created_usec=0,
    first_attempt_usec=None,
    finished_usec=None,
    method="POST",
    url="/work",
    target="",
    retry=None,
    dispatch_deadline_usec=None,
    retry_count=0,
    execution_count=0,
    previous_response=None,
    retry_reason=None,
    headers=(),
    body=b"payload",
    claim_token=5,
)
"""A claimed task that is in no store, for tests of the steps after the claim."""


def new_task(name: str | None = None, *, eta_usec: int = NOW, queue: str = "default", **fields: Any) -> NewTask:
    """Return a task of ``queue`` that is due now."""
    return NewTask(**{"url": "/work", "body": b"payload", **fields}, queue=queue, name=name, eta_usec=eta_usec)


def pull_task(name: str | None = None, *, queue: str = "pull", tag: str | None = None, **fields: Any) -> NewTask:
    """Return a task of a pull queue that is ready to lease."""
    return new_task(name, queue=queue, **{"url": "", "method": PULL, "tag": tag, **fields})


def completion(
    task: ClaimedTask,
    state: str = "succeeded",
    *,
    eta_usec: int = 0,
    finished_usec: int = NOW,
    excerpt: bytes = b"oops",
) -> Completion:
    """Return the result of a claimed task's attempt: status 500, which moves the task to ``state``."""
    return Completion(
        task_id=task.id,
        claim_token=task.claim_token,
        state=state,  # type: ignore[arg-type]
        eta_usec=eta_usec,
        first_attempt_usec=NOW,
        finished_usec=None if state == "ready" else finished_usec,
        retry_count=task.retry_count + 1,
        execution_count=task.execution_count + 1,
        previous_response=500,
        retry_reason="App Error",
        attempt=AttemptRecord(
            number=task.retry_count + 1,
            started_usec=NOW,
            duration_usec=1200,
            status=500,
            reason="status 500",
            service="default",
            excerpt=excerpt,
        ),
        queue=task.queue,
        url=task.url,
        failure=None
        if state == "succeeded"
        else failure_site(status=500, reason="status 500", response=excerpt, url=task.url),
    )


def run_all(store: TaskStore, state: str = "succeeded", *, queue: str = "default", finished_usec: int = NOW) -> None:
    """Complete all due tasks of a queue with the same state."""
    claimed = store.claim({Lane(queue, ""): 10_000}, 2 * NOW)
    assert all(store.complete([completion(task, state, finished_usec=finished_usec) for task in claimed]))


def stored_tasks(store: TaskStore, *, state: State | None = None, limit: int = 100) -> list[StoredTask]:
    """Return complete tasks, newest first."""
    page = store.queries.find(state=state, limit=limit)
    found = [store.queries.get_by_id(task.id) for task in page.tasks]
    return [task for task in found if task is not None]


def prune(store: TaskStore) -> int:
    """Make the store prune as it does after a number of results; return how many tasks it deleted."""
    before = sum(sum(states.values()) for states in store.queries.counts().values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "_PRUNE_EVERY_RESULTS", 0)
        store.complete([])
    # The results submitted the prune before this, so it is already committed.
    store.operations.delete_by_name("default", ["unknown"])
    return before - sum(sum(states.values()) for states in store.queries.counts().values())


@contextlib.contextmanager
def counted_commits(store: TaskStore) -> Iterator[list[str]]:
    """Yield a list that gets an entry for each commit inside the block."""
    commits: list[str] = []
    connection = store._writer._connection
    connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    yield commits
    connection.set_trace_callback(None)
