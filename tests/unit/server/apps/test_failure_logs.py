"""Which records of failed tasks an app process leaves out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from deferred_middleware.server.apps import failure_logs
from deferred_middleware.server.apps.failure_logs import RepeatedFailures, leave_out_repeated_failures


def fail(text: str) -> None:
    """Raise an error."""
    raise RuntimeError(text)


def fail_elsewhere(text: str) -> None:
    """Raise the same error from another line."""
    raise RuntimeError(text)


def record(*, task: str = "one", attempt: int, function: Any = fail, text: str = "x") -> logging.LogRecord:
    """Return the record of an attempt that failed in ``function``."""
    try:
        function(text)
    except Exception as error:  # noqa: BLE001 - the record has it
        made = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), (type(error), error, error.__traceback__))
        facts = {"queue": "default", "name": task, "attempt": attempt, "error": type(error).__name__}
        made.json_fields = {"deferred_task": facts}
        return made
    raise AssertionError


def test_the_same_failure_again_is_left_out() -> None:
    """A failure is logged in the first attempt, and again if another exception is raised, or at another place."""
    failures = RepeatedFailures()
    assert failures.is_new(record(attempt=1))
    assert not failures.is_new(record(attempt=2))
    assert not failures.is_new(record(attempt=3, text="took 3.2 s"))
    assert failures.is_new(record(attempt=4, function=fail_elsewhere))
    assert failures.is_new(record(attempt=5, function=int))
    assert not failures.is_new(record(attempt=6, function=int))
    assert failures.is_new(record(attempt=1, function=int)), "a person has retried the task"


def test_each_task_has_its_own_traceback() -> None:
    """The first failure of another task is logged, and so is a repeated one that another process has logged."""
    failures = RepeatedFailures()
    assert failures.is_new(record(attempt=1))
    assert failures.is_new(record(task="two", attempt=1))
    assert failures.is_new(record(task="three", attempt=5))
    assert not failures.is_new(record(task="two", attempt=2))


def test_other_records_stay() -> None:
    """Records that tell of no failure are logged."""
    assert RepeatedFailures().is_new(logging.LogRecord("x", logging.INFO, "f", 1, "hello", (), None))


def test_a_bounded_number_of_tasks_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that has not failed for the longest time is forgotten first."""
    monkeypatch.setattr(failure_logs, "_MOST_REMEMBERED", 2)
    failures = RepeatedFailures()
    for task in ("one", "two", "one", "three"):
        failures.is_new(record(task=task, attempt=2))
    assert not failures.is_new(record(task="one", attempt=3))
    assert failures.is_new(record(task="two", attempt=3))


@pytest.fixture
def restored_filters() -> Iterator[None]:
    """Remove the filters that a test adds."""
    loggers = [logging.getLogger(name) for name in ("deferred_middleware", "deferred_middleware.dead_letters")]
    before = [list(logger.filters) for logger in loggers]
    yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters[:] = filters


@pytest.mark.usefixtures("restored_filters")
def test_handlers_of_the_app_get_no_repeated_records_either(caplog: pytest.LogCaptureFixture) -> None:
    """The filters hold for every handler; other loggers of the package are untouched."""
    leave_out_repeated_failures()
    logger = logging.getLogger("deferred_middleware")
    for attempt in (1, 2):
        logger.handle(record(attempt=attempt))
    logging.getLogger("deferred_middleware.dead_letters").warning("a dead letter")
    logging.getLogger("deferred_middleware.other").warning("other")
    assert [r.getMessage() for r in caplog.records] == ["failed", "other"]
