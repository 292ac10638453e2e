"""The loggers of the package. ``logging.config.dictConfig`` does not turn them off.

By default, ``dictConfig`` and ``fileConfig`` disable every logger that exists when they are called
(``disable_existing_loggers``, https://docs.python.org/3/library/logging.config.html). An app that configures logging
after its imports would see no failure of a task. To turn a logger off, set its level.
"""

from __future__ import annotations

import logging
import operator


def _ignore(logger: logging.Logger, value: bool) -> None:
    """Take the value that a configuration sets, and do nothing."""


class _NeverDisabled(logging.Logger):
    _is_disabled = False
    # The getter is written in C, because each call of isEnabledFor() reads the attribute.
    disabled = property(operator.attrgetter("_is_disabled"), _ignore)


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
