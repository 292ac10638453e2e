"""What is written, logged and counted when attempts end; the results themselves are decided in ``results``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.attempt_result import (
    AttemptEvent,
    AttemptResult,
    EventKind,
    ProcessEnd,
    cut_off,
    redirect_reason,
)
from deferred_middleware.server.dispatch.attempts import AttemptRunner
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.queue_limits import QueueLimits
from deferred_middleware.server.dispatch.result_writer import ResultWriter
from deferred_middleware.server.dispatch.results import ResultRules
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.records import ClaimedTask, Completion, Lane, NewTask, StoredTask
from deferred_middleware.server.store.store import TaskStore

SERVICE = Service(name="default", version="local", host="127.0.0.1", port=1, concurrency=6)
RATED = QueueConfig(name="default", rate_per_second=1e-6, bucket_size=3)


class Setting:
    """A store with claimed tasks, and what follows their attempts."""

    def __init__(self, path: Path) -> None:
        self.store = TaskStore(path)
        queues = QueueRegistry([RATED])
        self.wake_up = WakeUp()
        self.limits = QueueLimits(queues)
        self.quarantine = Quarantine()
        self.reported: list[tuple[str, str | None]] = []
        clock = WatchedClock(self.store.shift_etas)
        self.runner = AttemptRunner(
            store=self.store,
            rules=ResultRules(queues, self.quarantine),
            results=ResultWriter(self.store, self.wake_up, clock),
            reports=self,
            quarantine=self.quarantine,
            limits=self.limits,
            clock=clock,
            wake_up=self.wake_up,
        )

    def claimed(self, *names: str) -> list[ClaimedTask]:
        """Add tasks, claim them, and begin their attempts."""
        self.store.add([NewTask(queue="default", url="/", eta_usec=1, name=name) for name in names])
        tasks = list(self.store.claim({Lane("default", ""): len(names)}, 2))
        self.limits.claimed("default", len(tasks))
        for task in tasks:
            self.runner.begin(task, SERVICE)
        return tasks

    def attempt_ended(self, task: ClaimedTask, completion: Completion, outcome: str | None) -> None:
        """Note a report."""
        self.reported.append((completion.state, outcome))

    def conclude(self, kind: EventKind, task: ClaimedTask, end: ProcessEnd | None = None, **result: Any) -> StoredTask:
        """Conclude an event; return the task as it is stored then."""
        found = AttemptResult(**{"status": None, "duration_usec": 7, **result}) if kind != "handed back" else None
        self.runner.conclude(SERVICE, [AttemptEvent(kind, task, found)], end)
        # Writes that come later are written later.
        self.store.operations.pause("other")
        stored = self.store.queries.get("default", task.name)
        assert stored is not None
        return stored


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """A store and what writes to it."""
    setting = Setting(tmp_path / "tasks.sqlite")
    yield setting
    setting.store.close()


def end(*, intended: bool) -> ProcessEnd:
    """Return the end of a process."""
    return ProcessEnd(service="default", number=1, how="was killed", intended=intended)


def test_an_answer_is_written_and_reported(setting: Setting) -> None:
    """A response ends the attempt, whose record begins as long before as it lasted."""
    (task,) = setting.claimed("one")
    stored = setting.conclude("answered", task, status=200, outcome="done", duration_usec=250_000)
    assert stored.state == "succeeded"
    (attempt,) = setting.store.queries.attempts(task.id)
    assert stored.finished_usec is not None
    assert (attempt.started_usec, attempt.duration_usec) == (stored.finished_usec - 250_000, 250_000)
    assert setting.reported == [("succeeded", "done")]


def test_a_task_that_had_not_begun_costs_nothing(setting: Setting) -> None:
    """A delivery that is handed back is no attempt: it has no record, and its queue's token is there again."""
    (task,) = setting.claimed("one")
    assert setting.limits.allowance("default", frozenset()).number == 2
    stored = setting.conclude("handed back", task)
    assert (stored.state, stored.retry_count) == ("running", 0)
    assert setting.store.queries.attempts(task.id) == []
    # One of the three tokens is reserved for it.
    assert setting.limits.allowance("default", frozenset()).number == 2
    setting.runner.begin(task, SERVICE)
    assert setting.conclude("answered", task, status=200).state == "succeeded"
    assert setting.limits.allowance("default", frozenset()).number == 2


def test_only_what_had_begun_counts_at_a_death(setting: Setting) -> None:
    """The task that was running is suspected and retried; the one that had not begun is neither."""
    first, second = setting.claimed("one", "two")
    stored = setting.conclude("died", first, end(intended=False))
    assert (stored.state, stored.retry_count) == ("ready", 1)
    assert setting.quarantine.is_suspect(first)
    stored = setting.conclude("handed back", second, end(intended=False))
    assert stored.retry_count == 0
    assert not setting.quarantine.is_suspect(second)


def test_an_intended_end_is_no_attempt(setting: Setting) -> None:
    """A task whose process is replaced on purpose is released."""
    (task,) = setting.claimed("one")
    stored = setting.conclude("died", task, end(intended=True))
    assert (stored.state, stored.retry_count) == ("ready", 0)
    assert setting.reported == []


@pytest.mark.parametrize("ended", ["answered", "died"])
def test_a_handler_that_outlasts_its_deadline_is_awaited(setting: Setting, ended: EventKind) -> None:
    """The result of the deadline is written when the handler has ended, whatever it answers then."""
    (task,) = setting.claimed("one")
    setting.runner.conclude(SERVICE, [AttemptEvent("cut off", task, cut_off(5, 5_000_000))])
    assert setting.reported == []
    stored = setting.conclude(ended, task, end(intended=False), status=200 if ended == "answered" else None)
    assert (stored.state, stored.retry_count) == ("ready", 1)
    (attempt,) = setting.store.queries.attempts(task.id)
    assert "dispatch deadline of 5 s" in str(attempt.reason)
    assert not setting.quarantine.is_suspect(task)


def test_a_redirect_is_logged_once(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    """A layer of the app that redirects a task is logged, unless the attempt before ended in the same way."""
    (task,) = setting.claimed("one")
    reason = redirect_reason(302, "/log\x1bin")
    setting.conclude("answered", dataclasses.replace(task, previous_response=302), status=302, reason=reason)
    assert caplog.records == []
    (task,) = setting.claimed("two")
    setting.conclude("answered", task, status=302, reason=reason)
    (record,) = caplog.records
    assert "did not run: the app redirected it with status 302 and Location '/log\\x1bin'" in record.getMessage()


def test_abandoned_attempts_change_nothing(setting: Setting) -> None:
    """After the server's stop, late events are ignored, but a result that was decided at a deadline is written."""
    first, second = setting.claimed("one", "two")
    setting.runner.conclude(SERVICE, [AttemptEvent("cut off", first, cut_off(5, 5_000_000))])
    assert setting.runner.abandon([first, second]) == [second]
    stored = setting.store.queries.get("default", "one")
    assert stored is not None
    assert (stored.state, stored.retry_count) == ("ready", 1)
    assert setting.conclude("answered", second, status=200).state == "running"
    setting.runner.release([second])
    assert setting.conclude("answered", second, status=200).state == "running"


def test_a_defect_leaves_the_other_results(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    """If one event can't be concluded, the traceback is logged and the results behind it are written."""
    first, second = setting.claimed("one", "two")
    broken: Any = dataclasses.replace(first, retry_count=None)  # type: ignore[arg-type]
    result = AttemptResult(status=200, duration_usec=1)
    setting.runner.conclude(SERVICE, [AttemptEvent("answered", one, result) for one in (broken, second)])
    assert setting.conclude("handed back", second).state == "succeeded"
    (record,) = caplog.records
    assert record.exc_info
