"""The checksum of a task: of all that never changes between its add and its attempts.

SQLite notices that the structure of a page is damaged, but not that a byte in a payload has changed. Each task is
compared with its checksum before it is run. If they differ, it is not run, and is kept as a dead letter for a person.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from deferred_middleware.server.store.counts import Tally

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")

CHECKED_FIELDS: Final = ("name", "method", "url", "headers", "body", "origin")
"""The fields of a row that the checksum is of, in the order of :func:`checksum_of`."""

_REASON: Final = "the task was damaged on the disk, so it is not run"
_GIVE_UP: Final = "UPDATE tasks SET state = 'failed', finished_usec = ?, forced = 0 WHERE id = ? AND state = 'ready'"
_ATTEMPT: Final = """
    INSERT OR REPLACE INTO attempts (task_id, number, started_usec, duration_usec, status, reason, service, excerpt)
    SELECT id, attempts_before + retry_count + 1, ?, 0, NULL, ?, '', x'' FROM tasks WHERE id = ?"""


class DamagedRowError(Exception):
    """A task isn't as it was written. ``queue`` and ``name`` may be damaged, too."""

    def __init__(self, task_id: int, queue: object, name: object) -> None:
        super().__init__(task_id, queue, name)
        self.task_id = task_id
        self.queue = queue
        self.name = name


def checksum_of(name: Any, method: Any, url: Any, headers: Any, body: Any, origin: Any) -> int:
    """Return the checksum (CRC-32) of a task; -1 if the values have other types than a task's, which only damage does.

    ``headers`` and ``origin`` are the texts that are stored.
    """
    try:
        texts = "\0".join((name, method, url, headers, origin or "")).encode("utf-8", "surrogatepass")
        return zlib.crc32(body, zlib.crc32(texts))
    except (TypeError, UnicodeError):
        return -1


def give_up(connection: sqlite3.Connection, tally: Tally, damaged: Sequence[DamagedRowError], now_usec: int) -> None:
    """Make dead letters of tasks that were damaged."""
    for error in damaged:
        if not connection.execute(_GIVE_UP, (now_usec, error.task_id)).rowcount:
            continue  # it was deleted meanwhile
        logger.error(
            "Task %s of queue %s (ID %d) was damaged on the disk. It is not run, and is kept as a dead letter.",
            error.name,
            error.queue,
            error.task_id,
        )
        connection.execute(_ATTEMPT, (now_usec, _REASON, error.task_id))
        tally[str(error.queue), "ready"] -= 1
        tally[str(error.queue), "failed"] += 1


def any_text(data: bytes) -> str:
    """Return a stored text, also if it is not UTF-8, which only damage makes."""
    return data.decode("utf-8", "backslashreplace")


def read_any_text(
    connection: sqlite3.Connection,
    operation: Callable[[sqlite3.Connection], T],
    *,
    before_again: Callable[[], object] = lambda: None,
) -> T:
    """Return the result of an operation; if it meets a text that is not UTF-8, run it again so that it can read that.

    One damaged text must not keep anybody from reading the others.
    """
    try:
        return operation(connection)
    except sqlite3.OperationalError as error:
        if "Could not decode to UTF-8" not in str(error):
            raise
    before_again()
    connection.text_factory = any_text
    try:
        return operation(connection)
    finally:
        connection.text_factory = str
