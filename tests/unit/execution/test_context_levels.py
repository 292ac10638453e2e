"""Tests of the log level that rises with the number of retries."""

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
    """The level rises with the retries: INFO, WARNING, ERROR, CRITICAL."""
    caplog.set_level(logging.DEBUG)
    token = CURRENT_TASK.set(TaskContext(task_environ(b"", HTTP_X_APPENGINE_TASKRETRYCOUNT=str(retries))))
    try:
        log_as_retried("no answer from %s", "host")
    finally:
        CURRENT_TASK.reset(token)

    (record,) = caplog.records
    assert (record.levelno, record.getMessage(), record.name) == (level, "no answer from host", "root")


def test_outside_of_a_task_it_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Outside a task there are no retries, so a failure is logged as an ERROR."""
    log_as_retried(logging.getLogger("shop"), "no answer from %s", "host", exc_info=ValueError("x"))

    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "shop")
    assert record.exc_info is not None


def test_the_record_names_the_callers_line(caplog: pytest.LogCaptureFixture) -> None:
    """The record names the caller's line, not the library's."""
    log_as_retried("here")

    assert caplog.records[0].funcName == "test_the_record_names_the_callers_line"
