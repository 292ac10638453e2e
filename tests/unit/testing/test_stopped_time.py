"""Tests of captured tasks while a test has stopped the time, as freezegun and time-machine do."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest

from deferred_middleware import DeferredMiddleware, Settings, call, current_task, defer, defer_async, defer_many
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.process import install_settings
from deferred_middleware.testing import DeferredTasks, capture_tasks
from tests.support import sample

REAL_TIME = time.time
UTC = datetime.timezone.utc
DATES = {
    "1999": 915_148_800.0,
    "2024": 1_709_287_200.0,
    "a minute ago": int(REAL_TIME()) - 60.0,
    "in a minute": int(REAL_TIME()) + 60.0,
    "2031": 1_930_039_200.0,
    "2099": 4_070_908_800.0,
}


def site(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [])
    return []


class Stopped:
    """A stopped time, and hands to move it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now: float | None = None
        install_settings(Settings(secret_keys=(SecretKey(secrets.token_hex(32)),), require_signature=True))
        self.app = DeferredMiddleware(site)
        monkeypatch.setattr(time, "time", lambda: REAL_TIME() if self.now is None else self.now)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Stopped:
    """Make the time one that can be stopped, after the app was made."""
    return Stopped(monkeypatch)


WAYS: dict[str, Callable[[int], object]] = {
    "defer": lambda number: defer(sample.note, number),
    "defer_async": lambda number: defer_async(sample.note, number).result(30),
    "defer_many": lambda number: defer_many([call(sample.note, number)]),
    "an ETA that is now": lambda number: defer(
        sample.note, number, _eta=datetime.datetime.fromtimestamp(time.time(), UTC)
    ),
}


def noted() -> list[Any]:
    """Return what the tasks have noted."""
    return [args[0] for args, _ in sample.ran]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("date", DATES)
def test_a_task_is_enqueued_and_run_at_any_date(stopped: Stopped, date: str, way: str) -> None:
    """The signature is made and checked with the same time, and the task is due."""
    stopped.now = DATES[date]
    with capture_tasks(stopped.app) as tasks:
        WAYS[way](1)
        assert tasks.enqueued[0].enqueued.timestamp() == pytest.approx(stopped.now)
        tasks.run_all()

    assert noted() == [1]


@pytest.mark.parametrize("date", DATES)
def test_a_task_is_due_when_the_stopped_time_gets_there(stopped: Stopped, date: str) -> None:
    """The test's clock moves with the time that the test moves, and can be advanced besides."""
    stopped.now = DATES[date]
    with capture_tasks(stopped.app) as tasks:
        defer(sample.note, 1, _countdown=3600)
        defer(sample.note, 2, _eta=datetime.datetime.fromtimestamp(stopped.now + 7200, UTC))
        tasks.assert_enqueued(sample.note, 1, _countdown=3600)
        tasks.run_all()
        assert noted() == []
        stopped.now += 3601
        tasks.run_all()
        assert noted() == [1]
        tasks.clock.advance(3600)
        tasks.run_all()

    assert noted() == [1, 2]


@pytest.mark.parametrize("enqueued", ["stopped", "running"])
@pytest.mark.parametrize("date", DATES)
def test_a_task_outlives_the_stopped_time(stopped: Stopped, date: str, enqueued: str) -> None:
    """A task that is enqueued at a stopped date runs after it, and the other way round."""
    with capture_tasks(stopped.app) as tasks:
        stopped.now = DATES[date] if enqueued == "stopped" else None
        defer(sample.note, 1)
        stopped.now = None if enqueued == "stopped" else DATES[date]
        tasks.run_all()

    assert noted() == [1]


def test_another_signature_than_an_expired_one_stays_wrong(stopped: Stopped) -> None:
    """The test's queue renews what has expired. A body or name that was not signed is refused as ever."""
    import dataclasses

    with capture_tasks(stopped.app) as tasks:
        stopped.now = DATES["2024"]
        defer(sample.note, 1)
        stopped.now = None
        forged = dataclasses.replace(tasks.enqueued[0], queue="other")

        assert tasks.run(forged, raise_errors=False).status == 403


def deadline() -> None:
    """Note when the attempt would be aborted."""
    task = current_task()
    assert task is not None
    sample.ran.append(task.deadline)


def test_the_deadline_of_a_task_follows_the_stopped_time(stopped: Stopped, deferred_tasks: DeferredTasks) -> None:
    """It is a time of the stopped clock."""
    stopped.now = DATES["2024"]
    deferred_tasks.app = stopped.app
    defer(deadline, _deadline=600)
    deferred_tasks.run()

    assert sample.ran[0].timestamp() == pytest.approx(stopped.now + 600, abs=60)
