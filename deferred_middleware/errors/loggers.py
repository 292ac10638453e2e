"""The loggers of the package. ``logging.config.dictConfig`` does not turn them off.

By default, ``dictConfig`` and ``fileConfig`` disable every logger that exists when they are called
(``disable_existing_loggers``, https://docs.python.org/3/library/logging.config.html). An app that configures logging
after its imports would see no failure of a task. To turn a logger off, set its level.

Texts in their records, such as the path of a request, are escaped: no handler gets a control character or a line break
that somebody else has chosen (:mod:`deferred_middleware.errors.text`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from deferred_middleware.errors.text import printable, text_of, without_controls


class _NeverDisabled(logging.Logger):
    disabled = False

    def __setattr__(self, name: str, value: object) -> None:
        # Each call of isEnabledFor() reads ``disabled``, and a property would make that slower.
        if name != "disabled":
            super().__setattr__(name, value)

    def makeRecord(
        self, name: str, level: int, fn: str, lno: int, msg: object, args: Any, *rest: Any, **more: Any
    ) -> logging.LogRecord:
        return super().makeRecord(name, level, fn, lno, msg, escaped(args), *rest, **more)


def escaped(args: Any) -> Any:
    """Return the arguments of a log record, with texts and exceptions as printable texts."""
    if isinstance(args, Mapping):
        return {name: _escaped(value) for name, value in args.items()}
    return tuple(map(_escaped, args))


def _escaped(value: object) -> object:
    if isinstance(value, BaseException):
        value = text_of(value)
    return printable(value) if isinstance(value, str) else value


class EscapingFormatter(logging.Formatter):
    """Formats the records of a process of ours for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of ``record``, of which control characters are escaped."""
        return without_controls(super().format(record))


def log_to_terminal(format: str) -> None:
    """Log at INFO and above to standard error, with control characters escaped.

    A record that another handler writes to the terminal is left out. Django's default configuration has such a handler.
    The records of waitress are escaped for any other handler too: they have the paths of requests.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter(format))
    handler.addFilter(_is_not_shown_yet)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # With a queue of tasks it is normal that requests wait for a thread, so waitress need not warn of it.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    logging.getLogger("waitress").addFilter(_escape_arguments)


def _is_not_shown_yet(record: logging.LogRecord) -> bool:
    """Return False for a record that a logger below the root writes to standard output or error."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger.parent is not None:
        if any(_shows(handler, record) for handler in logger.handlers):
            return False
        logger = logger.parent
    return True


def _shows(handler: logging.Handler, record: logging.LogRecord) -> bool:
    if not isinstance(handler, logging.StreamHandler) or handler.stream not in (sys.stdout, sys.stderr):
        return False
    return record.levelno >= handler.level and bool(handler.filter(record))


def _escape_arguments(record: logging.LogRecord) -> bool:
    record.args = escaped(record.args or ())
    return True


def get_logger(name: str) -> logging.Logger:
    """Return the logger with this name, which can't be disabled."""
    logger = logging.getLogger(name)
    kind = type(logger)
    if not issubclass(kind, _NeverDisabled):
        # The class of the app's own loggers (logging.setLoggerClass) is kept.
        logger.__class__ = (
            type(kind.__name__, (_NeverDisabled, kind), {}) if kind is not logging.Logger else _NeverDisabled
        )
    return logger
