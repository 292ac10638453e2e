"""Tasks that have complete URLs: when they run, and what becomes of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.delivery.attempt_result import AttemptResult
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.dispatch.results import completion_of
from deferred_middleware.server.dispatch.scheduler import Scheduler
from deferred_middleware.server.store.records import HTTP_TARGET, CloudOrigin, NewTask, RetryPolicy, StoredTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.http_target import HttpTarget, Reply
from tests.support.storing import TASK

QUEUE = "mail@europe-west1.my-project"
QUICK = RetryPolicy(min_backoff_seconds=0.01, max_backoff_seconds=0.02, retry_limit=3)


class Setting:
    """A store, an HTTP target, and a scheduler between them that serves no app."""

    def __init__(self, path: Path) -> None:
        self.store = TaskStore(path)
        # The queue's own target is for tasks of services; these have none.
        self.queues = QueueRegistry([QueueConfig(name=QUEUE, target="v1.worker", retry=QUICK)])
        directory = ServiceDirectory([], needs_none=True)
        self.scheduler = Scheduler(self.store, directory, TaskRequests(), queues=self.queues)
        self.scheduler.start()

    def add(self, name: str, url: str, **fields: Any) -> None:
        """Add a task that is due now."""
        now_usec = int(time.time() * 1e6)
        given = {"target": HTTP_TARGET, "origin": CloudOrigin(), "body": b"work", **fields}
        task = NewTask(**{"queue": QUEUE, "name": name, "url": url, "eta_usec": now_usec, **given})
        assert self.store.add([task])[0].outcome == "added"
        self.scheduler.wake()

    def wait_for(self, name: str, state: str) -> StoredTask:
        """Wait until a task is in this state."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            task = self.store.queries.get(QUEUE, name)
            if task is not None and task.state == state:
                return task
            time.sleep(0.005)
        raise AssertionError(self.store.queries.get(QUEUE, name))


@pytest.fixture
def target() -> Iterator[HttpTarget]:
    """Run an HTTP target."""
    with HttpTarget() as target:
        yield target


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """Run a scheduler."""
    setting = Setting(tmp_path / "tasks.sqlite")
    yield setting
    setting.scheduler.stop(0)
    setting.store.close()


def test_a_task_goes_to_its_url(setting: Setting, target: HttpTarget) -> None:
    """A task runs although no service is served."""
    setting.add("one", f"{target.url}/work")
    task = setting.wait_for("one", "succeeded")
    (seen,) = target.seen
    assert (seen.path, seen.body, seen.headers["x-cloudtasks-queuename"]) == ("/work", b"work", "mail")
    (attempt,) = setting.store.queries.attempts(task.id)
    assert (attempt.service, attempt.status, attempt.scheduled_usec) == ("http", 200, task.eta_usec)


def test_a_task_is_retried_and_then_a_dead_letter(setting: Setting, target: HttpTarget) -> None:
    """The headers of each retry say how the attempt before ended; 5xx responses don't count as executions."""
    statuses = iter([500, 404, 503, 302])
    target.answer = lambda seen: Reply(status=next(statuses))
    setting.add("one", target.url)
    setting.wait_for("one", "failed")
    names = ("retrycount", "executioncount", "previousresponse", "retryreason")
    found = [[seen.headers.get(f"x-cloudtasks-task{name}") for name in names] for seen in target.seen]
    assert found == [["0", "0", None, None], ["1", "0", "500", ""], ["2", "1", "404", ""], ["3", "1", "503", ""]]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_target_slows_its_queue_down(setting: Setting, target: HttpTarget, status: int) -> None:
    """After 429 or 503 the queue starts nothing for a second."""
    statuses = iter([status, 200, 200])
    target.answer = lambda seen: Reply(status=next(statuses))
    setting.add("one", target.url)
    target.wait_for(1)
    setting.wait_for("one", "ready")
    began = time.monotonic()
    setting.add("two", target.url)
    target.wait_for(3)
    assert time.monotonic() - began > 0.5


def test_a_task_waits_as_long_as_its_target_asks(setting: Setting, target: HttpTarget) -> None:
    """The time in Retry-After counts if it is longer than the back-off."""
    target.answer = lambda seen: Reply(status=404, headers={"Retry-After": "60"})
    setting.add("one", target.url)
    target.wait_for(1)
    task = setting.wait_for("one", "ready")
    assert task.eta_usec > (time.time() + 50) * 1e6


def test_a_task_of_a_service_that_is_not_served_fails(setting: Setting) -> None:
    """A server without services fails tasks that need one, and says what it serves."""
    for name, service in (("one", "v1.worker"), ("two", "")):
        setting.add(name, "/work", target=service, retry=RetryPolicy(retry_limit=0))
        task = setting.wait_for(name, "failed")
        (attempt,) = setting.store.queries.attempts(task.id)
        assert "served here: none" in (attempt.reason or "")


HTTP_TASK = dataclasses.replace(TASK, target=HTTP_TARGET, url="https://example.com/")


@pytest.mark.parametrize(
    ("task", "status", "timed_out", "expected"),
    [
        (TASK, None, True, (0, 0, "Instance Unavailable")),
        (TASK, 503, False, (1, 503, "App Error")),
        (HTTP_TASK, None, True, (0, 504, "")),
        (HTTP_TASK, None, False, (0, 0, "")),
        (HTTP_TASK, 500, False, (0, 500, "")),
        (HTTP_TASK, 599, False, (0, 599, "")),
        (HTTP_TASK, 429, False, (1, 429, "")),
        (HTTP_TASK, 302, False, (1, 302, "")),
        (HTTP_TASK, 404, False, (1, 404, "")),
    ],
)
def test_counts_after_an_attempt(task: Any, status: int | None, timed_out: bool, expected: tuple[Any, ...]) -> None:
    """What a task's headers say after an attempt differs between services and HTTP targets."""
    result = AttemptResult(status=status, duration_usec=5, timed_out=timed_out)
    done = completion_of(task, result, QUICK, started_usec=1, finished_usec=2, service="s")
    assert (done.execution_count, done.previous_response, done.retry_reason) == expected
