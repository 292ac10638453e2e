"""Log the louder the more often the running task was tried."""

from __future__ import annotations

import logging
from typing import Any, Final

from deferred_middleware.execution.context import current_task

_LEVELS: Final = (logging.INFO, logging.WARNING, logging.ERROR)


def log_as_retried(logger_or_message: logging.Logger | object, /, *args: Any, **kwargs: Any) -> None:
    """Log at INFO in a task's first attempt, at WARNING in its second, at ERROR in its third, then at CRITICAL.

    Outside of a task it is an ERROR. What can fail once or twice in a task is no reason to wake anybody; what fails
    again and again is::

        log_as_retried("no answer from %s", host)
        log_as_retried(logger, "no answer from %s", host)

    Args:
        logger_or_message: a logger, with the message as the next argument, or the message, for the root logger.
        args: the message if a logger was given, and what is formatted into it.
        kwargs: as for :meth:`logging.Logger.log`: ``exc_info``, ``extra`` and so on.
    """
    if isinstance(logger_or_message, logging.Logger):
        logger, (message, *values) = logger_or_message, args
    else:
        logger, message, values = logging.getLogger(), logger_or_message, list(args)
    task = current_task()
    if task is None:
        level = logging.ERROR
    else:
        # Attempts before a RetryLater count as well: attempt is the number in all.
        tried = task.attempt - 1
        level = _LEVELS[tried] if tried < len(_LEVELS) else logging.CRITICAL
    kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
    logger.log(level, message, *values, **kwargs)
