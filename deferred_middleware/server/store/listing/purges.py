"""Purges that a person can undo, and changes of a waiting task's ETA and queue.

A purge puts the tasks away: they are neither run, nor counted, nor found. After :data:`UNDO_SECONDS`, they are deleted.
In the database they have the state ``held``, like the tasks of a transaction, and their purge in the column ``hold``.
"""

from __future__ import annotations

import functools
import sqlite3
from dataclasses import dataclass
from typing import Literal

from deferred_middleware.server.store import rows
from deferred_middleware.server.store.counts import Tally
from deferred_middleware.server.store.database import BATCH, Database
from deferred_middleware.server.store.records import Headers
from deferred_middleware.server.store.rows import PURGE_PREFIX

UNDO_SECONDS = 600
"""How long a purge can be undone."""

MoveOutcome = Literal["moved", "not waiting", "name taken"]

# The texts of purges sort by their times. A semicolon comes after the colon at the end of the prefix.
_AFTER_ALL = f"{PURGE_PREFIX[:-1]};"
_PUT_AWAY = f"""
    UPDATE tasks SET state = 'held', hold = :purge, forced = 0 WHERE id IN (
        SELECT id FROM tasks WHERE queue = :queue AND state = 'ready' AND id <= :newest LIMIT {BATCH})
    RETURNING id, name, user_named"""
_PURGES = """
    SELECT hold, count(*) FROM tasks WHERE state = 'held' AND hold >= ? AND hold < ? GROUP BY hold ORDER BY hold DESC"""
_PUT_AWAY_BY = f"SELECT id, queue, name, user_named FROM tasks WHERE state = 'held' AND hold = ? LIMIT {BATCH}"
_BRING_BACK = "UPDATE tasks SET state = 'ready', hold = NULL WHERE id = ?"
_UNBLOCK = "DELETE FROM tombstones WHERE queue = ? AND name = ?"
_EXPIRED = f"id IN (SELECT id FROM tasks WHERE state = 'held' AND hold >= ? AND hold < ? LIMIT {BATCH})"
_WAITING = "SELECT queue, name, state, method FROM tasks WHERE id = ?"


@dataclass(frozen=True, kw_only=True)
class Purge:
    """A purge that can be undone until ``until_usec``, or not at all. ``key`` names it."""

    key: str
    queue: str
    tasks: int
    purged_usec: int
    is_final: bool = False

    @property
    def until_usec(self) -> int | None:
        """When it can't be undone any more; None if it can't be undone now."""
        return None if self.is_final else self.purged_usec + UNDO_SECONDS * 1_000_000


class Purges:
    """Purges of queues, and changes of waiting tasks. None of the methods wakes the scheduler."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge(self, queue: str) -> Purge:
        """Put away all unfinished tasks of a queue that are there now.

        Attempts that are being made continue, and their results will be dropped. Names that the app chose stay blocked.
        On a full disk, what was purged is deleted at once, so that there is space for new tasks.
        """
        now_usec = self._database.now_usec()
        key = f"{PURGE_PREFIX}{now_usec:017d}:{queue}"
        newest = self._database.read("SELECT coalesce(max(id), 0) FROM tasks")[0][0]

        def operation(connection: sqlite3.Connection, tally: Tally) -> int:
            gone = connection.execute(_PUT_AWAY, {"purge": key, "queue": queue, "newest": newest}).fetchall()
            until_usec = self._database.blocked_until_usec()
            rows.block_names(connection, [(queue, name, until_usec) for _id, name, chosen in gone if chosen])
            tally[queue, "ready"] -= len(gone)
            tally.ended += [row[0] for row in gone]
            return len(gone)

        tasks = self._database.write_in_batches(operation)
        is_final = self._database.is_disk_full
        if is_final:
            self._database.write_in_batches(lambda connection, _tally: self._delete(connection, _AFTER_ALL))
        return Purge(key=key, queue=queue, tasks=tasks, purged_usec=now_usec, is_final=is_final)

    def list(self) -> list[Purge]:
        """Return the purges that can be undone, the last one first."""
        oldest = f"{PURGE_PREFIX}{self._database.now_usec() - UNDO_SECONDS * 1_000_000:017d}"
        found = []
        for key, tasks in self._database.read(_PURGES, (oldest, _AFTER_ALL)):
            usec, _, queue = key.removeprefix(PURGE_PREFIX).partition(":")
            found.append(Purge(key=key, queue=queue, tasks=tasks, purged_usec=int(usec)))
        return found

    def undo(self, purge: Purge) -> tuple[int, int]:
        """Bring the tasks of a purge back; return how many, and how many not, because their names are taken now."""
        restored = refused = 0
        while True:
            found, back = self._database.write(functools.partial(self._bring_back, purge.key))
            restored += back
            refused += found - back
            if found < BATCH:
                return restored, refused

    @classmethod
    def delete_expired(cls, connection: sqlite3.Connection, now_usec: int) -> None:
        """Delete at most :data:`BATCH` tasks of purges that can't be undone any more, inside an operation."""
        cls._delete(connection, f"{PURGE_PREFIX}{max(0, now_usec - UNDO_SECONDS * 1_000_000):017d}")

    @staticmethod
    def _delete(connection: sqlite3.Connection, before: str) -> int:
        """Delete at most :data:`BATCH` tasks of purges with keys before this one; return how many there were."""
        return connection.execute(f"DELETE FROM tasks WHERE {_EXPIRED}", (PURGE_PREFIX, before)).rowcount

    def set_eta(self, task_id: int, eta_usec: int) -> bool:
        """Change the ETA of a waiting push task; return whether it was waiting."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            if self._waiting(connection, task_id) is None:
                return False
            connection.execute("UPDATE tasks SET eta_usec = ?, forced = 0 WHERE id = ?", (eta_usec, task_id))
            return True

        return self._database.write(operation)

    def move(self, task_id: int, queue: str, headers: Headers) -> MoveOutcome:
        """Move a waiting push task to another queue, where it has these headers."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> MoveOutcome:
            found = self._waiting(connection, task_id)
            if found is None:
                return "not waiting"
            old, name = found
            if old == queue:
                return "moved"
            if rows.find_name(connection, queue, name, self._database.steady_clock.now_usec()) is not None:
                return "name taken"
            connection.execute("UPDATE tasks SET queue = ? WHERE id = ?", (queue, task_id))
            rows.replace_headers(connection, task_id, headers)
            tally[old, "ready"] -= 1
            tally[queue, "ready"] += 1
            return "moved"

        return self._database.write(operation)

    def _waiting(self, connection: sqlite3.Connection, task_id: int) -> tuple[str, str] | None:
        """Return the queue and name of a push task that waits and isn't claimed."""
        found = connection.execute(_WAITING, (task_id,)).fetchone()
        if found is None or found[2] != "ready" or found[3] == "PULL" or self._database.claims.is_claimed(task_id):
            return None
        return found[0], found[1]

    def _bring_back(self, key: str, connection: sqlite3.Connection, tally: Tally) -> tuple[int, int]:
        """Bring back at most :data:`BATCH` tasks; return how many were found, and how many are back."""
        found = connection.execute(_PUT_AWAY_BY, (key,)).fetchall()
        back = 0
        for task_id, queue, name, chosen in found:
            if rows.has_unfinished_task(connection, queue, name):
                connection.execute("DELETE FROM tasks WHERE id = ?", (task_id,))
                continue
            connection.execute(_BRING_BACK, (task_id,))
            if chosen:
                connection.execute(_UNBLOCK, (queue, name))
            tally[queue, "ready"] += 1
            back += 1
        return len(found), back
