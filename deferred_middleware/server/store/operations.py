"""What people and the taskqueue API do to tasks and queues: retry and delete tasks, pause a queue, unblock names.

None of these operations wakes the scheduler. Callers that make tasks ready or resume a queue do that afterwards.
"""

from __future__ import annotations

import functools
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

from deferred_middleware.server.store import rows
from deferred_middleware.server.store.counts import Tally
from deferred_middleware.server.store.database import BATCH, Database
from deferred_middleware.server.store.records import AddResult, RetryOutcome, State

# The attempts of a dead letter are kept, and later ones are numbered after them.
_RESET = """
    UPDATE tasks SET state = 'ready', eta_usec = ?, attempts_before = attempts_before + retry_count, retry_count = 0,
        execution_count = 0, first_attempt_usec = NULL, finished_usec = NULL, previous_response = NULL,
        retry_reason = NULL
    WHERE id = ?"""
_FAILED_AFTER = """
    SELECT id, queue, name, state FROM tasks WHERE queue = ? AND state = 'failed' AND id > ? AND id <= ?
    ORDER BY id LIMIT ?"""
_MAKE_DUE = """
    UPDATE tasks SET eta_usec = ? WHERE id IN (
        SELECT id FROM tasks
        WHERE state = 'ready' AND method <> 'PULL' AND queue = ? AND eta_usec > ? AND retry_count = 0 LIMIT ?)"""


class TaskOperations:
    """Changes of tasks and queues, as people ask for them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Guards _paused against a read of the database that began before a change. Any thread may pause a queue.
        self._pause_lock = threading.Lock()
        # The paused queues, None if they have to be read. Threads read this reference without the lock.
        self._paused: frozenset[str] | None = None

    # Tasks.

    def retry(self, task_id: int) -> RetryOutcome:
        """Run a dead letter again, now, like a new task: its counts are reset, its attempts are kept."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> RetryOutcome:
            found = connection.execute("SELECT queue, name, state FROM tasks WHERE id = ?", (task_id,)).fetchone()
            if found is None:
                return "unknown"
            return self.retry_row(connection, tally, task_id, *found)

        return self._database.write(operation)

    def retry_failed(self, queue: str) -> int:
        """Run all dead letters of a queue again; return how many.

        A dead letter is left as it is if a later task has its name, or if it failed after this call began.
        """
        newest_id = self._newest_id()
        last_id = retried = 0
        while True:
            outcomes, last_id = self._database.write(functools.partial(self._retry_some, queue, last_id, newest_id))
            retried += outcomes.count("retried")
            if len(outcomes) < BATCH:
                return retried

    def make_due(self, queue: str) -> int:
        """Make the push tasks of a queue due that wait for their ETA; return how many.

        Tasks that wait for another attempt keep their back-off.
        """
        now_usec = self._database.now_usec()

        def operation(connection: sqlite3.Connection, _tally: Tally) -> int:
            return connection.execute(_MAKE_DUE, (now_usec, queue, now_usec, BATCH)).rowcount

        return self._database.write_in_batches(operation)

    def delete(self, task_ids: Sequence[int]) -> int:
        """Delete tasks, in any state, with their attempts; return how many there were.

        If a task is running, its result will be dropped. Names that the app chose stay blocked.
        """
        total = 0
        for start in range(0, len(task_ids), BATCH):
            ids = task_ids[start : start + BATCH]
            where = f"id IN ({', '.join('?' * len(ids))}) AND state <> 'held'"
            total += self._database.write(functools.partial(self._delete, where, ids))
        return total

    def delete_by_name(self, queue: str, names: Sequence[str]) -> list[AddResult | None]:
        """Delete unfinished tasks by name; their names stay blocked.

        Return for each name the result ``exists`` if its task was deleted, ``tombstoned`` if the task had been finished
        or deleted before, or None if the name is unknown.
        """

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[AddResult | None]:
            now_usec = self._database.steady_clock.now_usec()
            results: list[AddResult | None] = []
            for name in names:
                known = rows.find_name(connection, queue, name, now_usec)
                if known is not None and known.outcome == "exists":
                    deleted = rows.delete(
                        connection,
                        "queue = ? AND name = ? AND state IN ('ready', 'running')",
                        (queue, name),
                        tally,
                        blocked_until_usec=self._database.blocked_until_usec(),
                        block_all_names=True,
                    )
                    if not deleted:
                        known = None  # It is staged: its transaction has not been committed.
                results.append(known)
            return results

        return self._database.write(operation)

    def delete_failed(self, queue: str) -> int:
        """Delete all dead letters of a queue, with their attempts; return how many."""
        return self._delete_all(queue, "failed")

    def purge(self, queue: str) -> int:
        """Delete all unfinished tasks of a queue; return how many.

        Attempts that are being made continue, and their results will be dropped. Tasks that are added after this call
        began are kept.
        """
        return self._delete_all(queue, "ready", "running")

    def reset(self) -> int:
        """Delete all tasks in any state, all blocked names, and the pauses of all queues; return how many tasks.

        Tasks that wait for the commit of a transaction are kept.
        """

        def operation(connection: sqlite3.Connection, tally: Tally) -> int:
            where = "id IN (SELECT id FROM tasks WHERE state <> 'held' LIMIT ?)"
            return rows.delete(connection, where, (BATCH,), tally, blocked_until_usec=0)

        def forget(connection: sqlite3.Connection, _tally: Tally) -> None:
            for table in ("tombstones", "add_results", "paused_queues"):
                connection.execute(f"DELETE FROM {table}")

        deleted = self._database.write_in_batches(operation)
        with self._pause_lock:
            self._database.write(forget)
            self._paused = None
        return deleted

    def unblock_names(self, queue: str, name: str | None = None) -> int:
        """Let the app use a blocked name again, or all blocked names of the queue; return how many were blocked."""
        return self._database.write_in_batches(
            lambda connection, _tally: rows.unblock_names(connection, queue, name, BATCH)
        )

    # Queues.

    def pause(self, queue: str) -> bool:
        """Stop running tasks of a queue until it is resumed; return whether it was not paused before."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            paused = (queue, self._database.now_usec())
            return bool(connection.execute("INSERT OR IGNORE INTO paused_queues VALUES (?, ?)", paused).rowcount)

        with self._pause_lock:
            changed = self._database.write(operation)
            self._paused = None
        return changed

    def resume(self, queue: str) -> bool:
        """Run tasks of a paused queue again; return whether it was paused."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            return bool(connection.execute("DELETE FROM paused_queues WHERE queue = ?", (queue,)).rowcount)

        with self._pause_lock:
            changed = self._database.write(operation)
            self._paused = None
        return changed

    def paused(self) -> frozenset[str]:
        """Return the paused queues. The database is read only after a change."""
        paused = self._paused
        if paused is None:
            with self._pause_lock:
                found = self._database.read("SELECT queue FROM paused_queues")
                paused = self._paused = frozenset(row[0] for row in found)
        return paused

    def _newest_id(self) -> int:
        return int(self._database.read("SELECT coalesce(max(id), 0) FROM tasks")[0][0])

    def _retry_some(
        self, queue: str, after_id: int, newest_id: int, connection: sqlite3.Connection, tally: Tally
    ) -> tuple[list[RetryOutcome], int]:
        """Retry at most :data:`BATCH` dead letters; return an outcome for each, and the last one's id."""
        found = connection.execute(_FAILED_AFTER, (queue, after_id, newest_id, BATCH)).fetchall()
        outcomes = [self.retry_row(connection, tally, *row) for row in found]
        return outcomes, found[-1][0] if found else newest_id

    def retry_row(
        self, connection: sqlite3.Connection, tally: Tally, task_id: int, queue: str, name: str, state: str
    ) -> RetryOutcome:
        """Retry a task in a transaction, given as its columns ``queue``, ``name`` and ``state``."""
        if state != "failed":
            return "not failed"
        if rows.has_unfinished_task(connection, queue, name):
            return "name taken"
        connection.execute(_RESET, (self._database.now_usec(), task_id))
        tally[queue, "failed"] -= 1
        tally[queue, "ready"] += 1
        return "retried"

    def _delete_all(self, queue: str, *states: State) -> int:
        newest_id = self._newest_id()
        where = "id IN (SELECT id FROM tasks WHERE queue = ? AND state = ? AND id <= ? LIMIT ?)"
        total = 0
        for state in states:
            parameters = (queue, state, newest_id, BATCH)
            total += self._database.write_in_batches(functools.partial(self._delete, where, parameters))
        return total

    def _delete(self, where: str, parameters: Sequence[Any], connection: sqlite3.Connection, tally: Tally) -> int:
        blocked_until_usec = self._database.blocked_until_usec()
        return rows.delete(connection, where, parameters, tally, blocked_until_usec=blocked_until_usec)
