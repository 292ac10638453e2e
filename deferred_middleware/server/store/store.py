"""The task store: with the modules it is made of, the only code that knows SQL.

Tasks live in one SQLite file (``schema.sql``). What changes them goes through one writer that commits what waits
together (:mod:`~deferred_middleware.server.store.writer`); an add or a result is acknowledged after its commit, and is
then on disk. What only looks uses connections that can't write.

A task is claimed before it is run. The claim's token fences its result: when the task was released, deleted or
claimed again meanwhile, the late result changes nothing. After a crash exactly the tasks that were claimed run again.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store import rows
from deferred_middleware.server.store import task_names as names
from deferred_middleware.server.store.counts import EXECUTED
from deferred_middleware.server.store.database import BATCH
from deferred_middleware.server.store.leases import PullLeases
from deferred_middleware.server.store.operations import StoreOperations
from deferred_middleware.server.store.queries import StoreBrowsing, StoreFigures
from deferred_middleware.server.store.records import (
    AddResult,
    AttemptRecord,
    ClaimedTask,
    Completion,
    Lane,
    NewTask,
    Retention,
)
from deferred_middleware.server.store.transactional import HeldTasks
from deferred_middleware.server.store.writer import Tally

_log = logging.getLogger(__name__)

# A prune is bounded, because everybody else waits for it, and runs after so many results or seconds.
_PRUNE_EVERY_RESULTS = 500
_PRUNE_EVERY_SECONDS = 60.0

_CLAIM = f"""
    UPDATE tasks SET state = 'running', claim_token = ?, forced = 0 WHERE id IN (
        SELECT id FROM tasks
        WHERE state = 'ready' AND method <> 'PULL' AND queue = ? AND target = ? AND eta_usec <= ?
        ORDER BY eta_usec, id LIMIT ?)
    RETURNING {rows.CLAIMED_COLUMNS}"""
_CLAIM_FORCED = f"""
    UPDATE tasks SET state = 'running', claim_token = ?, forced = 0 WHERE id IN (
        SELECT id FROM tasks WHERE forced = 1 AND state = 'ready' ORDER BY id LIMIT ?)
    RETURNING {rows.CLAIMED_COLUMNS}"""
_FORCE = """
    UPDATE tasks SET forced = 1, eta_usec = min(eta_usec, ?)
    WHERE id = ? AND state = 'ready' AND method <> 'PULL'"""
# A task that is tried again, or leased, waits for the end of a span of time; one whose ETA was reached is due.
_MOVE_WAITS = """
    UPDATE tasks SET eta_usec = eta_usec + :by WHERE state = 'ready' AND (
        (retry_count > 0 AND eta_usec > :before)
        OR (:by < 0 AND eta_usec > :now AND eta_usec <= max(:before, created_usec)))"""
_MOVE_FIRST_ATTEMPTS = """
    UPDATE tasks SET first_attempt_usec = first_attempt_usec + ?
    WHERE state = 'ready' AND first_attempt_usec IS NOT NULL"""
_EXCESS_ATTEMPTS = "DELETE FROM attempts WHERE task_id = ? AND number > ? AND number <= ?"


class TaskStore(StoreOperations, StoreBrowsing, StoreFigures, PullLeases, HeldTasks):
    """The tasks in the SQLite file at ``path``, for the one server that has it open.

    ``clock`` returns the wall clock's seconds since the epoch. Tasks that were running when a server died are due again
    once the store is open. Raises :class:`~deferred_middleware.errors.ServerError` at once when another process has the
    store, or when the file can't be used. Methods raise :class:`sqlite3.Error` when the database fails, and
    ``ServerError`` when the store is closed; those that add tasks its subclass
    :class:`~deferred_middleware.server.store.disk_reserve.StoreFullError` when the disk is full. What raised has
    changed
    nothing.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, retention: Retention | None = None
    ) -> None:
        super().__init__(path, clock=clock, retention=retention)
        self._results_since_prune = 0
        self._next_prune = time.monotonic() + _PRUNE_EVERY_SECONDS
        # A person may have asked for one just before the last server died.
        self._forced_waiting = True

    def add(self, tasks: Sequence[NewTask]) -> list[AddResult]:
        """Add tasks; return, in their order, what became of each. Those that were added are on disk."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[AddResult]:
            now_usec = self._now_usec()
            results = [self._add_one(connection, task, now_usec) for task in tasks]
            for task, result in zip(tasks, results, strict=True):
                if result.outcome == "added":
                    tally[task.queue, "ready"] += 1
            return results

        return self._writer.submit(operation, adds_tasks=True).result()

    def claim(self, limits: Mapping[Lane, int], now_usec: int) -> list[ClaimedTask]:
        """Claim tasks that are due at ``now_usec``, at most so many of each lane; return them in order of their ETA."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[ClaimedTask]:
            claimed = []
            token = secrets.randbits(62)
            for lane, limit in limits.items():
                found = connection.execute(_CLAIM, (token, lane.queue, lane.target, now_usec, limit)).fetchall()
                claimed += _claimed(tally, found, token)
            claimed.sort(key=lambda task: (task.eta_usec, task.id))
            return claimed

        # A claim that a power cut undoes only makes the task due again, as a claim that stands would at the next start.
        return self._writer.submit(operation, durable=False).result()

    @property
    def forced_waiting(self) -> bool:
        """Whether there may be tasks for :meth:`claim_forced`."""
        return self._forced_waiting

    def claim_forced(self, limit: int) -> list[ClaimedTask]:
        """Claim tasks that a person wants run now, whatever queue and target they have, at most ``limit``."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[ClaimedTask]:
            token = secrets.randbits(62)
            found = connection.execute(_CLAIM_FORCED, (token, limit)).fetchall()
            if len(found) < limit:
                self._forced_waiting = False
            return _claimed(tally, found, token)

        return self._writer.submit(operation, durable=False).result()

    def force_run(self, task_id: int) -> bool:
        """Have a waiting task run as soon as it can, whatever its ETA and its queue's pause and rate say.

        Return whether there was a task that waits; a pull task isn't run.
        """

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            self._forced_waiting = True
            return bool(connection.execute(_FORCE, (self._now_usec(), task_id)).rowcount)

        return self._writer.submit(operation).result()

    def complete(self, completions: Sequence[Completion]) -> list[bool]:
        """Write results of claimed tasks; return for each whether its claim still stood, and it was written."""
        return self._hand_in(lambda: completions, patient=False).result()

    def complete_later(self, take: Callable[[], Sequence[Completion]]) -> Future[list[bool]]:
        """Hand in results as :meth:`complete` does, without waiting for their commit, which others may share.

        ``take`` is called when they are about to be written, by another thread and maybe twice. So what came meanwhile
        can be written with them.
        """
        return self._hand_in(take, patient=True)

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

    def clock_jumped(self, by_usec: int, before_usec: int, now_usec: int) -> int:
        """Move what waits along with a wall clock that was set by ``by_usec``, from ``before_usec`` to ``now_usec``.

        Back-offs and leases end as long from now as before, what was due stays due, and the age of a task doesn't
        change. A task whose ETA is still ahead keeps it. Return how many waits were moved.
        """

        def operation(connection: sqlite3.Connection, _tally: Tally) -> int:
            connection.execute(_MOVE_FIRST_ATTEMPTS, (by_usec,))
            moved = {"by": by_usec, "now": now_usec, "before": before_usec}
            return connection.execute(_MOVE_WAITS, moved).rowcount

        return self._writer.submit(operation).result()

    def newest_usec(self) -> int | None:
        """Return when the last task was added, None when there is no task."""
        found = self._read("SELECT created_usec FROM tasks ORDER BY id DESC LIMIT 1")
        return found[0][0] if found else None

    def delete(self, queue: str, task_names: Sequence[str]) -> list[AddResult | None]:
        """Delete tasks by name; their names stay blocked.

        Return for each a result ``exists`` when it was there, ``tombstoned`` when it had been, None when it is unknown.
        """

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[AddResult | None]:
            now_usec = self._now_usec()
            results: list[AddResult | None] = []
            for name in task_names:
                known = names.find(connection, queue, name, now_usec)
                if known is not None and known.outcome == "exists":
                    where = "queue = ? AND name = ? AND state IN ('ready', 'running')"
                    if not self._remove(connection, where, (queue, name), tally, all_names=True):
                        known = None  # of a transaction that has not been committed
                results.append(known)
            return results

        return self._writer.submit(operation).result()

    def prune(self) -> int:
        """Forget the oldest succeeded tasks and expired names, a bounded number of them; return how many tasks."""
        return self._writer.submit(self._prune_some, durable=False).result()

    def _hand_in(self, take: Callable[[], Sequence[Completion]], *, patient: bool) -> Future[list[bool]]:
        def operation(connection: sqlite3.Connection, tally: Tally) -> list[bool]:
            completions = take()
            self._results_since_prune += len(completions)
            return self._complete_all(connection, tally, completions)

        future = self._writer.submit(operation, patient=patient)
        future.add_done_callback(self._prune_when_due)
        return future

    def _prune_when_due(self, _written: Future[list[bool]]) -> None:
        if self._results_since_prune >= _PRUNE_EVERY_RESULTS or time.monotonic() >= self._next_prune:
            self._results_since_prune = 0
            self._next_prune = time.monotonic() + _PRUNE_EVERY_SECONDS
            try:
                self._writer.submit(self._prune_some, durable=False).add_done_callback(_log_failed_prune)
            except ServerError as error:
                _log.debug("Old tasks are forgotten when the store is open again: %s", error)

    def _add_one(self, connection: sqlite3.Connection, task: NewTask, now_usec: int) -> AddResult:
        if task.name is not None:
            known = names.find(connection, task.queue, task.name, now_usec)
            if known is not None:
                return known
        name = task.name or self.choose_name()
        while task.name is None and names.find(connection, task.queue, name, now_usec) is not None:
            # The clock has been set back to when that task was added.
            name = self.choose_name()
        rows.insert(connection, task, name, now_usec, user_named=task.name is not None)
        return AddResult(name=name, outcome="added")

    def _complete_all(
        self, connection: sqlite3.Connection, tally: Tally, completions: Sequence[Completion]
    ) -> list[bool]:
        kept = self._retention.first_attempts + self._retention.last_attempts
        stood: list[bool] = []
        attempts: list[tuple[int, int, AttemptRecord]] = []
        blocked: list[tuple[str, str, int]] = []
        excess: list[tuple[int, int, int]] = []
        for completion in completions:
            task = rows.complete(connection, completion)
            stood.append(task is not None)
            if task is None:
                continue
            number = task.attempts_before + completion.attempt.number
            attempts.append((completion.task_id, number, completion.attempt))
            if number > kept:
                last = number - self._retention.last_attempts
                excess.append((completion.task_id, self._retention.first_attempts, last))
            if completion.finished_usec is not None and task.user_named:
                blocked.append((task.queue, task.name, self._blocked_until(completion.finished_usec)))
            tally[task.queue, "running"] -= 1
            tally[task.queue, completion.state] += 1
            tally[task.queue, EXECUTED] += 1
        rows.insert_attempts(connection, attempts)
        names.block(connection, blocked)
        connection.executemany(_EXCESS_ATTEMPTS, excess)
        return stood

    def _prune_some(self, connection: sqlite3.Connection, tally: Tally) -> int:
        now_usec = self._now_usec()
        too_many = min(max(0, self._counts.of_state("succeeded") - self._retention.succeeded_tasks), BATCH)
        oldest = "id IN (SELECT id FROM tasks WHERE state = 'succeeded'"
        removed = self._remove(connection, f"{oldest} ORDER BY finished_usec LIMIT ?)", (too_many,), tally)
        removed += self._remove(
            connection,
            f"{oldest} AND finished_usec < ? LIMIT ?)",
            (now_usec - int(self._retention.succeeded_seconds * 1e6), BATCH),
            tally,
        )
        names.forget_expired(connection, now_usec, BATCH)
        return removed


def _claimed(tally: Tally, found: Sequence[tuple[object, ...]], token: int) -> list[ClaimedTask]:
    claimed = [rows.claimed_task(row, token) for row in found]
    for queue, number in Counter(task.queue for task in claimed).items():
        tally[queue, "ready"] -= number
        tally[queue, "running"] += number
    return claimed


def _log_failed_prune(future: Future[int]) -> None:
    error = future.exception()
    if error is not None:
        _log.error("Old tasks could not be forgotten: %s", error)
