"""What people do to tasks and queues: find them, run, retry and delete them, pause a queue.

None of it wakes the scheduler; who retries tasks or resumes a queue does that afterwards.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deferred_middleware.server.store import task_names
from deferred_middleware.server.store.database import BATCH
from deferred_middleware.server.store.queries import WaitingTasks
from deferred_middleware.server.store.records import Retention, RetryOutcome, State
from deferred_middleware.server.store.writer import Tally

# What a dead letter forgets when it is tried again; its attempts stay, and later ones are counted on from them.
_START_ANEW = """
    UPDATE tasks SET state = 'ready', eta_usec = ?, attempts_before = attempts_before + retry_count, retry_count = 0,
        execution_count = 0, first_attempt_usec = NULL, finished_usec = NULL, previous_response = NULL,
        retry_reason = NULL
    WHERE id = ?"""


class StoreOperations(WaitingTasks):
    """The store's operations for people."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, retention: Retention | None = None
    ) -> None:
        super().__init__(path, clock=clock, retention=retention)
        self._pause_lock = threading.Lock()
        self._paused: frozenset[str] | None = None

    def retry(self, task_id: int) -> RetryOutcome:
        """Try a dead letter again, now, as if it were new: its counts begin anew, its attempts stay to be seen."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> RetryOutcome:
            found = connection.execute("SELECT queue, name, state FROM tasks WHERE id = ?", (task_id,)).fetchone()
            if found is None:
                return "unknown"
            return self._start_anew(connection, tally, task_id, *found)

        return self._writer.submit(operation).result()

    def retry_failed(self, queue: str) -> int:
        """Try all dead letters of a queue again; return how many.

        One whose name a later task has stays as it is, and so does one that fails meanwhile.
        """
        newest = self._newest_id()
        skipped: list[int] = [0]

        def operation(connection: sqlite3.Connection, tally: Tally) -> int:
            found = connection.execute(
                "SELECT id, queue, name, state FROM tasks WHERE queue = ? AND state = 'failed' AND id > ? AND id <= ?"
                " ORDER BY id LIMIT ?",
                (queue, after[0], newest, BATCH),
            ).fetchall()
            outcomes = [self._start_anew(connection, tally, *row) for row in found]
            skipped[0] += len(outcomes) - outcomes.count("retried")
            after[0] = found[-1][0] if found else newest
            return len(found)

        after = [0]
        return self._in_batches(operation) - skipped[0]

    def remove(self, task_ids: Sequence[int]) -> int:
        """Delete tasks, whatever their state, with their attempts; return how many there were.

        The result of one that is running is dropped. Names that the app chose stay blocked.
        """
        total = 0
        for start in range(0, len(task_ids), BATCH):
            ids = list(task_ids[start : start + BATCH])

            def operation(connection: sqlite3.Connection, tally: Tally, ids: list[int] = ids) -> int:
                where = f"id IN ({', '.join('?' * len(ids))}) AND state <> 'held'"
                return self._remove(connection, where, ids, tally)

            total += self._writer.submit(operation).result()
        return total

    def purge(self, queue: str) -> int:
        """Delete all tasks of a queue that are not finished; return how many.

        One that is running runs to its end. A task that is added meanwhile stays.
        """
        return self._remove_all(queue, ("ready", "running"))

    def remove_failed(self, queue: str) -> int:
        """Delete all dead letters of a queue, with their attempts; return how many."""
        return self._remove_all(queue, ("failed",))

    def pause(self, queue: str) -> bool:
        """Let no task of a queue be run until it is resumed; return whether it was running until now."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            return bool(
                connection.execute(
                    "INSERT OR IGNORE INTO paused_queues VALUES (?, ?)", (queue, self._now_usec())
                ).rowcount
            )

        with self._pause_lock:
            changed = self._writer.submit(operation).result()
            self._paused = None
        return changed

    def resume(self, queue: str) -> bool:
        """Let the tasks of a paused queue be run again; return whether it was paused."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            return bool(connection.execute("DELETE FROM paused_queues WHERE queue = ?", (queue,)).rowcount)

        with self._pause_lock:
            changed = self._writer.submit(operation).result()
            self._paused = None
        return changed

    def paused(self) -> frozenset[str]:
        """Return the queues that are paused. It is read from the file only after a change."""
        paused = self._paused
        if paused is None:
            with self._pause_lock:
                paused = self._paused = frozenset(row[0] for row in self._read("SELECT queue FROM paused_queues"))
        return paused

    def forget_names(self, queue: str, name: str | None = None) -> int:
        """Let a name that is blocked be used again, or all names of the queue; return how many were blocked."""
        return self._in_batches(lambda connection, _tally: task_names.forget(connection, queue, name, BATCH))

    def _newest_id(self) -> int:
        return int(self._read("SELECT coalesce(max(id), 0) FROM tasks")[0][0])

    def _remove_all(self, queue: str, states: tuple[State, ...]) -> int:
        newest = self._newest_id()
        where = "id IN (SELECT id FROM tasks WHERE queue = ? AND state = ? AND id <= ? LIMIT ?)"
        return sum(
            self._in_batches(
                lambda connection, tally, state=state: self._remove(  # type: ignore[misc] # binds it now
                    connection, where, (queue, state, newest, BATCH), tally
                )
            )
            for state in states
        )

    def _start_anew(
        self, connection: sqlite3.Connection, tally: Tally, task_id: int, queue: str, name: str, state: str
    ) -> RetryOutcome:
        if state != "failed":
            return "not failed"
        if task_names.is_live(connection, queue, name):
            return "name taken"
        connection.execute(_START_ANEW, (self._now_usec(), task_id))
        tally[queue, "failed"] -= 1
        tally[queue, "ready"] += 1
        return "retried"
