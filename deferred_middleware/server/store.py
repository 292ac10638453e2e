"""The task store: with :mod:`~deferred_middleware.server.rows`, the only code that knows SQL.

Tasks live in one SQLite file (``schema.sql``). What changes them goes through one writer that commits what waits
together (:mod:`~deferred_middleware.server.groupcommit`); an add or a result is acknowledged after its commit, and is
then on disk. What only looks uses a connection that can't write.

A task is claimed before it is run. The claim's token fences its result: when the task was released, deleted or
claimed again meanwhile, the late result changes nothing. After a crash exactly the tasks that were claimed run again.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from deferred_middleware import protocol
from deferred_middleware.server import rows
from deferred_middleware.server.groupcommit import GroupCommitWriter, Tally
from deferred_middleware.server.records import (
    AddResult,
    AttemptRecord,
    ClaimedTask,
    Completion,
    Lane,
    NewTask,
    State,
    StoredTask,
)
from deferred_middleware.server.storefile import StoreLock, open_reader, open_writer

_log = logging.getLogger(__name__)

SUCCEEDED_KEPT_SECONDS = 7 * 24 * 3600
SUCCEEDED_KEPT = 10_000
TOMBSTONE_SECONDS = protocol.TOMBSTONE_DAYS * 24 * 3600

# A prune is bounded, because everybody else waits for it, and runs after so many results or seconds.
_PRUNE_BATCH = 1000
_PRUNE_EVERY_RESULTS = 500
_PRUNE_EVERY_SECONDS = 60.0

_CLAIM = f"""
    UPDATE tasks SET state = 'running', claim_token = ? WHERE id IN (
        SELECT id FROM tasks
        WHERE state = 'ready' AND queue = ? AND target = ? AND eta_usec <= ? ORDER BY eta_usec, id LIMIT ?)
    RETURNING {rows.TASK_COLUMNS}"""
_FIRST_OF_LANE = """
    SELECT queue, target, eta_usec FROM tasks WHERE state = 'ready' AND (queue, target) > (?, ?)
    ORDER BY queue, target, eta_usec LIMIT 1"""


class TaskStore:
    """The tasks in the SQLite file at ``path``, for the one server that has it open.

    ``clock`` returns the wall clock's seconds since the epoch. Tasks that were running when a server died are due again
    once the store is open. Raises :class:`~deferred_middleware.errors.ServerError` at once when another process has the
    store, or when the file can't be used. Methods raise :class:`sqlite3.Error` when the database fails (a full disk),
    and ``ServerError`` when the store is closed; what raised has changed nothing.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = StoreLock(path.with_name(path.name + ".lock"))
        try:
            connection = open_writer(path)
            try:
                self._recover(connection)
                tally = rows.count(connection)
                self._reader = open_reader(path)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        self._reader_lock = threading.Lock()
        self._closed = False
        self._writer = GroupCommitWriter(connection, tally)
        self._name_lock = threading.Lock()
        self._last_name_usec = 0
        self._results_since_prune = 0
        self._next_prune = time.monotonic() + _PRUNE_EVERY_SECONDS

    @property
    def commits(self) -> int:
        """How many transactions were committed since the store was opened."""
        return self._writer.commits

    def close(self) -> None:
        """Write what was handed in, close the file, and let another server have it."""
        if self._closed:
            return
        self._closed = True
        with self._reader_lock:
            # Before the writer: the last connection to close folds the log into the database, and must be able to.
            self._reader.close()
        self._writer.close()
        self._lock.release()

    def choose_name(self) -> str:
        """Return a name for a task that has none: digits, as on the platform, never the same twice.

        It begins with the time, so that the index of names grows at its end however large it is.
        """
        with self._name_lock:
            self._last_name_usec = max(self._last_name_usec + 1, self._now_usec())
            return f"{self._last_name_usec:016d}{secrets.randbelow(10_000):04d}"

    def add(self, tasks: Sequence[NewTask]) -> list[AddResult]:
        """Add tasks; return, in their order, what became of each. Those that were added are on disk."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[AddResult]:
            now_usec = self._now_usec()
            results = [self._add_one(connection, task, now_usec) for task in tasks]
            for task, result in zip(tasks, results, strict=True):
                if result.outcome == "added":
                    tally[task.queue, "ready"] += 1
            return results

        return self._writer.submit(operation).result()

    def claim(self, limits: Mapping[Lane, int], now_usec: int) -> list[ClaimedTask]:
        """Claim tasks that are due at ``now_usec``, at most so many of each lane; return them in order of their ETA."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[ClaimedTask]:
            claimed = []
            token = secrets.randbits(62)
            for lane, limit in limits.items():
                found = connection.execute(_CLAIM, (token, lane.queue, lane.target, now_usec, limit)).fetchall()
                tally[lane.queue, "ready"] -= len(found)
                tally[lane.queue, "running"] += len(found)
                for row in found:
                    payload = connection.execute("SELECT headers, body FROM payloads WHERE task_id = ?", (row[0],))
                    claimed.append(ClaimedTask(**rows.task_fields(row + payload.fetchone()), claim_token=token))
            claimed.sort(key=lambda task: (task.eta_usec, task.id))
            return claimed

        # A claim that a power cut undoes only makes the task due again, as a claim that stands would at the next start.
        return self._writer.submit(operation, durable=False).result()

    def complete(self, completions: Sequence[Completion]) -> list[bool]:
        """Write results of claimed tasks; return for each whether its claim still stood, and it was written."""
        return self.complete_later(completions).result()

    def complete_later(self, completions: Sequence[Completion]) -> Future[list[bool]]:
        """Hand in results as :meth:`complete` does, without waiting for their commit."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[bool]:
            return [rows.complete(connection, completion, tally) for completion in completions]

        future = self._writer.submit(operation)
        self._results_since_prune += len(completions)
        if self._results_since_prune >= _PRUNE_EVERY_RESULTS or time.monotonic() >= self._next_prune:
            self._results_since_prune = 0
            self._next_prune = time.monotonic() + _PRUNE_EVERY_SECONDS
            self._writer.submit(self._prune_some, durable=False).add_done_callback(_log_failed_prune)
        return future

    def release(self, claimed: Iterable[ClaimedTask]) -> int:
        """Give claimed tasks back without an attempt, due as before; return how many claims still stood."""
        keys = [(task.id, task.claim_token, task.queue) for task in claimed]

        def operation(connection: sqlite3.Connection, tally: Tally) -> int:
            released = 0
            for task_id, token, queue in keys:
                cursor = connection.execute(
                    "UPDATE tasks SET state = 'ready', claim_token = NULL"
                    " WHERE id = ? AND state = 'running' AND claim_token = ?",
                    (task_id, token),
                )
                released += cursor.rowcount
                tally[queue, "running"] -= cursor.rowcount
                tally[queue, "ready"] += cursor.rowcount
            return released

        return self._writer.submit(operation).result()

    def delete(self, queue: str, names: Sequence[str]) -> list[AddResult | None]:
        """Delete tasks by name; their names stay blocked.

        Return for each a result ``exists`` when it was there, ``tombstoned`` when it had been, None when it is unknown.
        """

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[AddResult | None]:
            now_usec = self._now_usec()
            results: list[AddResult | None] = []
            for name in names:
                known = self._find_name(connection, queue, name, now_usec)
                if known is not None and known.outcome == "exists":
                    where = "queue = ? AND name = ?"
                    self._remove(connection, where, (queue, name), tally, now_usec, all_names=True)
                results.append(known)
            return results

        return self._writer.submit(operation).result()

    def purge(self, queue: str) -> int:
        """Delete all tasks of a queue that are not finished; return how many. One that is running runs to its end."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> int:
            where = "queue = ? AND state IN ('ready', 'running')"
            return self._remove(connection, where, (queue,), tally, self._now_usec())

        return self._writer.submit(operation).result()

    def prune(self) -> int:
        """Forget the oldest succeeded tasks and expired names, a bounded number of them; return how many tasks."""
        return self._writer.submit(self._prune_some, durable=False).result()

    def lanes(self) -> list[tuple[Lane, int]]:
        """Return each lane that has tasks waiting, with the earliest ETA among them."""
        lanes: list[tuple[Lane, int]] = []
        with self._reader_lock:
            # Jumps from lane to lane in the index: the cost grows with the lanes, not with the tasks in them. Targets
            # may be empty and queue names can't, so ("", "") comes before all of them.
            previous = ("", "")
            while row := self._reader.execute(_FIRST_OF_LANE, previous).fetchone():
                previous = (row[0], row[1])
                lanes.append((Lane(*previous), row[2]))
        return lanes

    def next_eta_usec(self) -> int | None:
        """Return the earliest ETA of the tasks that wait, None when none does."""
        return min((eta_usec for _lane, eta_usec in self.lanes()), default=None)

    def counts(self) -> dict[str, dict[State, int]]:
        """Return for each queue that has tasks how many are in each state."""
        counts: dict[str, dict[State, int]] = {}
        for (queue, state), number in self._writer.tally().items():
            if number:
                counts.setdefault(queue, {})[state] = number  # type: ignore[index] # the schema checks it
        return counts

    def get(self, queue: str, name: str) -> StoredTask | None:
        """Return a task, or None when there is none of this name."""
        found = self._read(f"{rows.SELECT_TASK} WHERE queue = ? AND name = ?", (queue, name))
        return StoredTask(**rows.task_fields(found[0])) if found else None

    def tasks(self, *, queue: str | None = None, state: State | None = None, limit: int = 100) -> list[StoredTask]:
        """Return tasks, those that were added last first."""
        where = "(:queue IS NULL OR queue = :queue) AND (:state IS NULL OR state = :state)"
        found = self._read(
            f"{rows.SELECT_TASK} WHERE {where} ORDER BY id DESC LIMIT :limit",
            {"queue": queue, "state": state, "limit": limit},
        )
        return [StoredTask(**rows.task_fields(row)) for row in found]

    def attempts(self, task_id: int) -> list[AttemptRecord]:
        """Return the attempts of a task, oldest first."""
        names = [field.name for field in dataclasses.fields(AttemptRecord)]
        found = self._read(f"SELECT {', '.join(names)} FROM attempts WHERE task_id = ? ORDER BY number", (task_id,))
        return [AttemptRecord(**dict(zip(names, row, strict=True))) for row in found]

    def _read(self, sql: str, parameters: tuple[Any, ...] | dict[str, Any]) -> list[Any]:
        with self._reader_lock:
            return self._reader.execute(sql, parameters).fetchall()

    def _now_usec(self) -> int:
        return int(self._clock() * 1e6)

    def _recover(self, connection: sqlite3.Connection) -> None:
        # They were due when they were claimed; if the clock has been set back since, they still are.
        recovered = connection.execute(
            "UPDATE tasks SET state = 'ready', claim_token = NULL, eta_usec = min(eta_usec, ?) WHERE state = 'running'",
            (self._now_usec(),),
        ).rowcount
        if recovered:
            _log.warning("%d tasks were in flight when the server ended; they run again.", recovered)

    def _add_one(self, connection: sqlite3.Connection, task: NewTask, now_usec: int) -> AddResult:
        if task.name is not None:
            known = self._find_name(connection, task.queue, task.name, now_usec)
            if known is not None:
                # To whoever adds, a finished task's name is as blocked as one whose row is gone.
                return known
        while True:
            name = task.name or self.choose_name()
            if rows.insert(connection, task, name, now_usec):
                return AddResult(name=name, outcome="added")

    def _find_name(self, connection: sqlite3.Connection, queue: str, name: str, now_usec: int) -> AddResult | None:
        row = connection.execute("SELECT state FROM tasks WHERE queue = ? AND name = ?", (queue, name)).fetchone()
        if row is not None:
            return AddResult(name=name, outcome="exists" if row[0] in ("ready", "running") else "tombstoned")
        row = connection.execute(
            "SELECT 1 FROM tombstones WHERE queue = ? AND name = ? AND expires_usec > ?", (queue, name, now_usec)
        ).fetchone()
        return None if row is None else AddResult(name=name, outcome="tombstoned")

    def _remove(
        self,
        connection: sqlite3.Connection,
        where: str,
        parameters: tuple[Any, ...],
        tally: Tally,
        now_usec: int,
        *,
        all_names: bool = False,
    ) -> int:
        """Delete the rows that ``where`` names; the names that the app chose (or all of them) stay blocked."""
        blocked = "1" if all_names else "user_named"
        connection.execute(
            "INSERT OR REPLACE INTO tombstones"
            f" SELECT queue, name, coalesce(finished_usec, ?) + ? FROM tasks WHERE {where} AND {blocked}",
            (now_usec, int(TOMBSTONE_SECONDS * 1e6), *parameters),
        )
        gone = connection.execute(f"DELETE FROM tasks WHERE {where} RETURNING queue, state", parameters).fetchall()
        for key, number in Counter(gone).items():
            tally[key] -= number
        return len(gone)

    def _prune_some(self, connection: sqlite3.Connection, tally: Tally) -> int:
        now_usec = self._now_usec()
        kept = sum(number for (_queue, state), number in self._writer.tally().items() if state == "succeeded")
        too_many = min(max(0, kept - SUCCEEDED_KEPT), _PRUNE_BATCH)
        oldest = "id IN (SELECT id FROM tasks WHERE state = 'succeeded' AND finished_usec IS NOT NULL"
        removed = self._remove(
            connection, f"{oldest} ORDER BY finished_usec LIMIT ?)", (too_many,), tally, now_usec
        ) + self._remove(
            connection,
            f"{oldest} AND finished_usec < ? LIMIT ?)",
            (now_usec - int(SUCCEEDED_KEPT_SECONDS * 1e6), _PRUNE_BATCH),
            tally,
            now_usec,
        )
        connection.execute(
            "DELETE FROM tombstones WHERE (queue, name) IN"
            " (SELECT queue, name FROM tombstones WHERE expires_usec <= ? LIMIT ?)",
            (now_usec, _PRUNE_BATCH),
        )
        return removed


def _log_failed_prune(future: Future[int]) -> None:
    error = future.exception()
    if error is not None:
        _log.error("Old tasks could not be forgotten: %s", error)
