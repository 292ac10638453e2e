"""What the Cloud Tasks API has made of queues: created, changed, deleted and purged ones.

The store keeps the settings as text that it does not read.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from deferred_middleware.server.store.counts import Tally
from deferred_middleware.server.store.database import Database

_SAVE = """
    INSERT INTO saved_queues (queue, settings, replaced, deleted_until_usec) VALUES (?, ?, ?, ?)
    ON CONFLICT (queue) DO UPDATE SET settings = excluded.settings, replaced = excluded.replaced,
        deleted_until_usec = excluded.deleted_until_usec"""
_PURGE = """
    INSERT INTO saved_queues (queue, purged_usec) VALUES (?, ?)
    ON CONFLICT (queue) DO UPDATE SET purged_usec = excluded.purged_usec"""


@dataclass(frozen=True, kw_only=True)
class SavedQueue:
    """What is saved of a queue.

    ``settings`` are those of the API, None if there are none. ``replaced`` is the entry of ``queue.yaml`` that the
    settings or the deletion replace. A deleted queue has ``deleted_until_usec``: until when its name is taken.
    """

    settings: str | None
    replaced: str | None
    deleted_until_usec: int | None
    purged_usec: int | None


class SavedQueues:
    """Reads and writes the saved queues, by their names in the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[str, SavedQueue]:
        """Return every saved queue."""
        found = self._database.read(
            "SELECT queue, settings, replaced, deleted_until_usec, purged_usec FROM saved_queues"
        )
        return {
            queue: SavedQueue(
                settings=settings, replaced=replaced, deleted_until_usec=deleted_until_usec, purged_usec=purged_usec
            )
            for queue, settings, replaced, deleted_until_usec, purged_usec in found
        }

    def save(self, queue: str, settings: str, replaced: str | None) -> None:
        """Save the settings of a queue."""
        self._write(_SAVE, (queue, settings, replaced, None))

    def delete(self, queue: str, replaced: str | None, taken_seconds: float) -> None:
        """Note that a queue was deleted, and that its name is taken for ``taken_seconds``."""
        until_usec = self.now_usec() + int(taken_seconds * 1e6)
        self._write(_SAVE, (queue, None, replaced, until_usec))

    def purged(self, queue: str) -> int:
        """Note that a queue was purged now; return the time by the wall clock."""
        now_usec = self._database.now_usec()
        self._write(_PURGE, (queue, now_usec))
        return now_usec

    def forget(self, queue: str | None = None) -> None:
        """Delete what is saved of a queue, or of all queues."""
        self._write("DELETE FROM saved_queues WHERE queue = coalesce(?, queue)", (queue,))

    def now_usec(self) -> int:
        """Return the time that ``deleted_until_usec`` is compared with."""
        return self._database.steady_clock.now_usec()

    def _write(self, sql: str, parameters: tuple[object, ...]) -> None:
        def operation(connection: sqlite3.Connection, _tally: Tally) -> None:
            connection.execute(sql, parameters)

        self._database.write(operation)
