"""Which failures of tasks an app process logs, if the queue process writes a line for each attempt.

The first failure of a task is logged with its traceback. If the task fails again in the same way, the line of the queue
process is enough. It also says how to retry a dead letter, so the record with the payload is left out.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from types import TracebackType

from deferred_middleware.errors.loggers import get_logger

_LOGGER = "deferred_middleware"
_DEAD_LETTERS_LOGGER = "deferred_middleware.dead_letters"
_FACTS, _FIELD = "json_fields", "deferred_task"
_MOST_REMEMBERED = 1000


def leave_out_repeated_failures() -> None:
    """From now on, leave out the records that repeat an earlier one, and those of dead letters.

    The filters belong to the loggers, so they also hold for handlers that the app adds.
    """
    get_logger(_LOGGER).addFilter(RepeatedFailures().is_new)
    get_logger(_DEAD_LETTERS_LOGGER).addFilter(lambda record: False)


class RepeatedFailures:
    """Remembers how tasks have failed. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By queue and name: how a task failed last, the most recent failure at the end.
        self._last: OrderedDict[tuple[object, object], tuple[object, ...]] = OrderedDict()

    def is_new(self, record: logging.LogRecord) -> bool:
        """Return whether a record says more than that a task failed as in its attempt before."""
        facts = getattr(record, _FACTS, {}).get(_FIELD, {})
        if "error" not in facts:
            return True
        task = (facts["queue"], facts["name"])
        failure = (facts["error"], *_place_of(record))
        with self._lock:
            before = self._last.pop(task, None)
            self._last[task] = failure
            if len(self._last) > _MOST_REMEMBERED:
                self._last.popitem(last=False)
        return before != failure or facts["attempt"] == 1


def _place_of(record: logging.LogRecord) -> tuple[object, ...]:
    """Return where the exception of a record was raised."""
    traceback: TracebackType | None = record.exc_info[2] if record.exc_info else None
    place: tuple[object, ...] = ()
    while traceback is not None:
        place = (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place
