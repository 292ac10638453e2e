"""Tests of logging the louder the more often a task was tried."""

from __future__ import annotations

import logging

import pytest

from deferred_middleware import TaskContext, log_as_retried
from deferred_middleware.execution.context import CURRENT_TASK
from tests.support.delivering import task_environ


@pytest.mark.parametrize(
    ("retries", "level"),
    [(0, logging.INFO), (1, logging.WARNING), (2, logging.ERROR), (3, logging.CRITICAL), (40, logging.CRITICAL)],
)
def test_the_level_grows_with_the_retries(caplog: pytest.LogCaptureFixture, retries: int, level: int) -> None:
    """First INFO, then WARNING, then ERROR, then CRITICAL."""
    caplog.set_level(logging.DEBUG)
    token = CURRENT_TASK.set(TaskContext(task_environ(b"", HTTP_X_APPENGINE_TASKRETRYCOUNT=str(retries))))
    try:
        log_as_retried("no answer from %s", "host")
    finally:
        CURRENT_TASK.reset(token)

    (record,) = caplog.records
    assert (record.levelno, record.getMessage(), record.name) == (level, "no answer from host", "root")


def test_outside_of_a_task_it_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing tries again, the failure is one at once."""
    log_as_retried(logging.getLogger("shop"), "no answer from %s", "host", exc_info=ValueError("x"))

    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "shop")
    assert record.exc_info is not None


def test_the_record_names_the_callers_line(caplog: pytest.LogCaptureFixture) -> None:
    """The record points at who called, not at us."""
    log_as_retried("here")

    assert caplog.records[0].funcName == "test_the_record_names_the_callers_line"
