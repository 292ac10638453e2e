"""Tests of the package's loggers: a configuration of logging doesn't turn them off."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Iterator

import pytest

from deferred_middleware import Settings, call
from deferred_middleware.calls import payload
from deferred_middleware.config.hooks import Hooks
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.execution.context import TaskContext
from deferred_middleware.execution.runner import Runner, Warmup
from tests.support import sample
from tests.support.delivering import task_environ

NAMES = ("deferred_middleware", "deferred_middleware.headers", "deferred_middleware.dead_letters")


class Kept(logging.Handler):
    """Keeps the records."""

    records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)


@pytest.fixture
def other_loggers() -> Iterator[None]:
    """Undo what a configuration does to the root logger and to the loggers that exist."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    disabled = [one for one in loggers if one.disabled]
    Kept.records.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for one in loggers:
        one.disabled = one in disabled


@pytest.mark.parametrize("given", [{}, {"disable_existing_loggers": True}, {"disable_existing_loggers": False}])
def test_a_configuration_does_not_silence_failures(other_loggers: None, given: dict[str, bool]) -> None:
    """After dictConfig, a failure and a dead letter are logged through the handlers of the root logger."""
    handler = {"()": Kept}
    config = {"version": 1, "handlers": {"kept": handler}, "root": {"level": "INFO", "handlers": ["kept"]}}
    logging.config.dictConfig({**config, **given})

    body = payload.dumps(call(sample.raises_new, ValueError, "broken"), 5)
    context = TaskContext(task_environ(body, HTTP_X_DEFERRED_MAX_ATTEMPTS="1"))
    Runner(Settings(), Hooks(), Warmup(None)).run(context, body, None)

    assert [(record.name, record.levelname) for record in Kept.records] == [
        ("deferred_middleware", "ERROR"),
        ("deferred_middleware.dead_letters", "WARNING"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_level_turns_a_logger_off(name: str) -> None:
    """A logger has the class of the app's loggers, and its level counts."""
    logger = get_logger(name)
    level = logger.level
    logger.disabled = True
    assert logger.isEnabledFor(logging.CRITICAL)
    logger.setLevel(logging.CRITICAL + 1)
    try:
        assert not logger.isEnabledFor(logging.CRITICAL)
    finally:
        logger.setLevel(level)
    assert get_logger(name) is logger is logging.getLogger(name)


def test_the_class_of_the_apps_loggers_is_kept() -> None:
    """A logger of the class that the app has set stays one."""

    class Own(logging.Logger):
        pass

    before = logging.getLoggerClass()
    logging.setLoggerClass(Own)
    try:
        logger = get_logger("tests.own_class")
    finally:
        logging.setLoggerClass(before)
    logger.disabled = True

    assert isinstance(logger, Own)
    assert logger.isEnabledFor(logging.ERROR)
