"""The task store: all tasks of a server, in one SQLite file (``schema.sql``).

All changes go through one thread, which commits together what callers submit at the same time
(:mod:`~deferred_middleware.server.store.writer`). When a method that adds tasks or writes results returns, the change
is on disk. Reads use connections that can't write.

A task is claimed before it is run, in memory (:mod:`~deferred_middleware.server.store.claims`). Its result is written
only while the claim holds. If the task was released, deleted or claimed again in the meantime, the late result changes
nothing. After a crash, the tasks without a stored result are due; of these, only those that were claimed can have run.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store import rows
from deferred_middleware.server.store.claims import Claim, TakenIn
from deferred_middleware.server.store.counts import EXECUTED, Tally
from deferred_middleware.server.store.database import Database, StoreDrivers
from deferred_middleware.server.store.leases import PullLeases
from deferred_middleware.server.store.listing.purges import Purges
from deferred_middleware.server.store.operations import TaskOperations
from deferred_middleware.server.store.queries import TaskQueries
from deferred_middleware.server.store.records import (
    DAY_SECONDS,
    AddResult,
    AttemptRecord,
    ClaimedTask,
    Completion,
    Lane,
    NewTask,
    Retention,
)
from deferred_middleware.server.store.saved.queues import SavedQueues
from deferred_middleware.server.store.statistics import failures
from deferred_middleware.server.store.statistics.failures import TaskFailures
from deferred_middleware.server.store.statistics.spans import CountedAttempt
from deferred_middleware.server.store.statistics.statistics import TaskStatistics
from deferred_middleware.server.store.transactional import TransactionalTasks
from deferred_middleware.server.store.upkeep import checksum
from deferred_middleware.server.store.upkeep.checksum import DamagedRowError
from deferred_middleware.server.store.upkeep.pruning import HistoryPruner
from deferred_middleware.server.store.upkeep.steady_clock import elapsed_seconds

logger: Final = logging.getLogger(__name__)

_DRIVERS = StoreDrivers()
_RESULTS_KEPT_USEC = DAY_SECONDS * 1_000_000

_CLAIMABLE = f"""
    SELECT {rows.CLAIMED_COLUMNS} FROM tasks
    WHERE state = 'ready' AND method <> 'PULL' AND queue = ? AND target = ? AND eta_usec <= ?
        AND id NOT IN (SELECT value FROM json_each(?))
    ORDER BY eta_usec, id LIMIT ?"""
_CLAIMABLE_FORCED = f"""
    SELECT {rows.CLAIMED_COLUMNS} FROM tasks
    WHERE forced = 1 AND state = 'ready' AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"""
_FORCE = """
    UPDATE tasks SET forced = 1, eta_usec = min(eta_usec, ?)
    WHERE id = ? AND state = 'ready' AND method <> 'PULL'"""
# The ETA of a retried or leased task is the end of a span of time. A task whose own ETA was reached is due.
_SHIFT_ETAS = """
    UPDATE tasks SET eta_usec = eta_usec + :by WHERE state = 'ready' AND (
        (retry_count > 0 AND eta_usec > :before)
        OR (:by < 0 AND eta_usec > :now AND eta_usec <= max(:before, created_usec)))"""
_SHIFT_FIRST_ATTEMPTS = """
    UPDATE tasks SET first_attempt_usec = first_attempt_usec + ?
    WHERE state = 'ready' AND first_attempt_usec IS NOT NULL"""
_DELETE_ATTEMPTS_BETWEEN = "DELETE FROM attempts WHERE task_id = ? AND number > ? AND number <= ?"


class TaskStore:
    """The tasks in the SQLite file at ``path``, which only one server has open at a time.

    ``clock`` returns the wall clock's seconds since the epoch, and ``elapsed`` seconds that only grow, by which names
    are blocked. Tasks that were running when a server ended are due again once the store is open. Raises
    :class:`~deferred_middleware.errors.ServerError` at once if another process has the store open, or if the file can't
    be used. ``on_failure`` is called, by any thread, when nothing can be written any more: the file is no longer the
    one at ``path``, or the writer has failed. ``drivers`` make what has threads.

    All methods may be called by any thread, and so may those of the parts. They raise :class:`sqlite3.Error` if
    the database fails and ``ServerError`` if the store is closed. Those that add tasks raise its subclass
    :class:`~deferred_middleware.server.store.upkeep.disk_reserve.StoreFullError` if the disk is full. If a method
    raises, it has changed nothing.

    Attributes:
        queries: Finds tasks and numbers of tasks.
        operations: What people do to tasks and queues.
        purges: Purges that can be undone, and changes of waiting tasks.
        leases: Leases tasks of pull queues.
        transactional: Keeps the tasks of datastore transactions until these are committed.
        saved_queues: What the Cloud Tasks API has made of queues.
        statistics: Counts what happens, and answers what has happened.
        failures: How tasks failed.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = elapsed_seconds,
        retention: Retention | None = None,
        on_failure: Callable[[ServerError], object] = lambda _error: None,
        drivers: StoreDrivers = _DRIVERS,
    ) -> None:
        self._retention = retention or Retention()
        self._database = Database(
            path,
            clock=clock,
            elapsed=elapsed,
            retention=self._retention,
            on_failure=on_failure,
            drivers=drivers,
        )
        self._writer = self._database.writer
        self._claims = self._database.claims
        self._pruner = HistoryPruner(self._database)
        # Any thread sets it, the one that claims clears it. True at first: an earlier server may have ended before it
        # ran a task that a person wanted run.
        self._forced_waiting = True
        self.queries: TaskQueries = TaskQueries(self._database)
        self.operations: TaskOperations = TaskOperations(self._database)
        self.statistics: TaskStatistics = TaskStatistics(self._database)
        self.failures: TaskFailures = TaskFailures(self._database, self.operations.retry_row)
        self.purges: Purges = Purges(self._database)
        self.leases: PullLeases = PullLeases(self._database, self.statistics)
        self.transactional: TransactionalTasks = TransactionalTasks(self._database, self.statistics)
        self.saved_queues: SavedQueues = SavedQueues(self._database)

    def close(self) -> None:
        """Commit what was submitted, close the file, and let another server open it. Further calls do nothing."""
        self.statistics.flush()
        self._database.close()

    def add(self, tasks: Sequence[NewTask], *, key: str | None = None) -> list[AddResult]:
        """Add tasks; return a result for each, in their order. Tasks that were added are on disk.

        A call with the ``key`` of an earlier one, of the last day, adds nothing and returns the earlier results.
        """
        is_repeated = False

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[AddResult]:
            nonlocal is_repeated
            if key is not None and (earlier := rows.find_results(connection, key)) is not None:
                is_repeated = True
                return earlier
            now_usec = self._database.now_usec()
            results = [self._add_one(connection, task, now_usec) for task in tasks]
            for task, result in zip(tasks, results, strict=True):
                if result.outcome == "added":
                    tally[task.queue, "ready"] += 1
            if key is not None:
                rows.keep_results(connection, key, results, now_usec + _RESULTS_KEPT_USEC)
            return results

        results = self._writer.submit(operation, adds_tasks=True).result()
        if not is_repeated:
            self.statistics.enqueued(
                (task.queue, task.url) for task, result in zip(tasks, results, strict=True) if result.outcome == "added"
            )
        return results

    def claim(self, limits: Mapping[Lane, int], now_usec: int) -> list[ClaimedTask]:
        """Claim tasks that are due at ``now_usec``, at most the given number of each lane; return them by ETA."""
        damaged: list[DamagedRowError] = []

        def find(taken_in: TakenIn) -> list[Claim]:
            read = self._database.lanes_reader.read
            found = []
            for lane, limit in limits.items():
                taken = json.dumps(taken_in(lane))
                found += read(_CLAIMABLE, (lane.queue, lane.target, now_usec, taken, limit))
            return _new_claims(found, damaged)

        self._writer.check()
        claimed = self._claims.claim(find)
        self._give_up(damaged)
        claimed.sort(key=lambda task: (task.eta_usec, task.id))
        return claimed

    def release(self, claimed: Iterable[ClaimedTask]) -> int:
        """Make claimed tasks ready again without an attempt; return how many of the claims were valid."""
        released = self._claims.release(claimed)
        # One of them may have been forced.
        self._forced_waiting = True
        return released

    def complete(self, completions: Sequence[Completion]) -> list[bool]:
        """Write results of claimed tasks; return for each whether its claim was valid, so that it was written."""
        return self._complete(lambda: completions, delayable=False).result()

    def complete_later(self, take: Callable[[], Sequence[Completion]]) -> Future[list[bool]]:
        """Submit results like :meth:`complete`, to be written with the next commit within a few milliseconds.

        The thread that commits calls ``take`` when it is about to write them, so results can still be added until then.
        It may call ``take`` twice; both calls must return the same results.
        """
        return self._complete(take, delayable=True)

    def claims_not_begun(self, not_begun: Callable[[], Iterable[int]]) -> None:
        """Have ``not_begun`` tell which claimed tasks have not begun: they are shown as waiting, and not as running."""
        self._claims.not_begun = not_begun

    def commit_seconds(self) -> float:
        """Return how long durable commits take at this moment; infinity if there was none yet."""
        return self._database.commit_seconds()

    @property
    def forced_waiting(self) -> bool:
        """Whether there may be tasks for :meth:`claim_forced`."""
        return self._forced_waiting

    def force_run(self, task_id: int) -> bool:
        """Run a ready push task as soon as possible, whatever its ETA and the pause and rate of its queue.

        Return whether the task was there and ready.
        """

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            if self._claims.is_claimed(task_id):
                return False
            return bool(connection.execute(_FORCE, (self._database.now_usec(), task_id)).rowcount)

        forced = self._writer.submit(operation).result()
        # After the commit, or else the scheduler could look too early.
        self._forced_waiting = True
        return forced

    def claim_forced(self, limit: int) -> list[ClaimedTask]:
        """Claim tasks that :meth:`force_run` was called for, of any queue and target, at most ``limit``."""
        damaged: list[DamagedRowError] = []

        def find(taken_in: TakenIn) -> list[Claim]:
            # Before the search: if a task is forced during it, there may be another one.
            self._forced_waiting = False
            found = self._database.lanes_reader.read(_CLAIMABLE_FORCED, (json.dumps(taken_in(None)), limit))
            if len(found) == limit:
                self._forced_waiting = True
            return _new_claims(found, damaged)

        self._writer.check()
        claimed = self._claims.claim(find)
        self._give_up(damaged)
        return claimed

    def _give_up(self, damaged: Sequence[DamagedRowError]) -> None:
        """Make dead letters of tasks that were damaged on the disk."""
        if damaged:
            now_usec = self._database.now_usec()
            self._database.write(lambda connection, tally: checksum.give_up(connection, tally, damaged, now_usec))

    def shift_etas(self, by_usec: int, before_usec: int, now_usec: int) -> int:
        """Adjust waiting tasks to a wall clock that was set by ``by_usec``, from ``before_usec`` to ``now_usec``.

        Back-offs and leases end after the same time as before, due tasks stay due, and the age of a task does not
        change. A task whose own ETA is still ahead keeps it. Return how many ETAs were shifted.
        """

        def operation(connection: sqlite3.Connection, _tally: Tally) -> int:
            connection.execute(_SHIFT_FIRST_ATTEMPTS, (by_usec,))
            parameters = {"by": by_usec, "now": now_usec, "before": before_usec}
            return connection.execute(_SHIFT_ETAS, parameters).rowcount

        return self._writer.submit(operation).result()

    def _add_one(self, connection: sqlite3.Connection, task: NewTask, now_usec: int) -> AddResult:
        if task.name is not None:
            known = rows.find_name(connection, task.queue, task.name, self._database.steady_clock.now_usec())
            if known is not None:
                return known
        name = task.name or self._database.choose_name()
        while task.name is None and self._is_taken(connection, task.queue, name):
            # The clock was set back, and a task that was added at this time before has the name.
            name = self._database.choose_name()
        rows.insert(connection, task, self._database.next_id(), name, now_usec, user_named=task.name is not None)
        return AddResult(name=name, outcome="added")

    def _is_taken(self, connection: sqlite3.Connection, queue: str, name: str) -> bool:
        return rows.find_name(connection, queue, name, self._database.steady_clock.now_usec()) is not None

    def _complete(self, take: Callable[[], Sequence[Completion]], *, delayable: bool) -> Future[list[bool]]:
        completions: Sequence[Completion] = ()

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[bool]:
            nonlocal completions
            completions = take()
            written = self._write_results(connection, tally, completions)
            self._pruner.prune_if_due(len(completions))
            return written

        def count(future: Future[list[bool]]) -> None:
            if future.exception() is None:
                stood = zip(completions, future.result(), strict=True)
                self.statistics.ended([_ended(completion) for completion, written in stood if written])

        future = self._writer.submit(operation, delayable=delayable)
        future.add_done_callback(count)
        return future

    def _write_results(
        self, connection: sqlite3.Connection, tally: Tally, completions: Sequence[Completion]
    ) -> list[bool]:
        first, last = self._retention.first_attempts, self._retention.last_attempts
        attempts: list[tuple[int, int, AttemptRecord]] = []
        blocked: list[tuple[str, str, int]] = []
        excess: list[tuple[int, int, int]] = []
        written: list[bool] = []
        with_failures: list[Completion] = []
        for completion in completions:
            claim = self._claims.get(completion.task_id, completion.claim_token)
            if claim is None or not rows.complete(connection, completion):
                written.append(False)
                continue
            written.append(True)
            task = claim.task
            number = claim.attempts_before + completion.attempt.number
            if completion.failure is not None or number > 1:
                with_failures.append(completion)
            if claim.attempts_before or not rows.is_first_success(completion):
                attempts.append((task.id, number, completion.attempt))
            if number > first + last:
                excess.append((task.id, first, number - last))
            if completion.finished_usec is not None and claim.user_named:
                blocked.append((task.queue, task.name, self._database.blocked_until_usec()))
            tally[task.queue, "ready"] -= 1
            tally[task.queue, completion.state] += 1
            tally[task.queue, EXECUTED] += 1
            tally.ended.append(task.id)
        if with_failures:
            failures.write(connection, with_failures)
        if attempts:
            rows.insert_attempts(connection, attempts)
        if blocked:
            rows.block_names(connection, blocked)
        if excess:
            connection.executemany(_DELETE_ATTEMPTS_BETWEEN, excess)
        return written


def _new_claims(found: Sequence[Sequence[Any]], damaged: list[DamagedRowError]) -> list[Claim]:
    """Return claims of the rows; add those that are damaged to ``damaged``."""
    token = secrets.randbits(62)
    claims = []
    for row in found:
        try:
            claims.append(Claim(rows.claimed_task(row, token), bool(row[-2]), row[-1]))
        except DamagedRowError as error:
            damaged.append(error)
    return claims


def _ended(completion: Completion) -> CountedAttempt:
    attempt = completion.attempt
    return CountedAttempt(
        completion.queue,
        completion.url,
        completion.state,
        completion.task_id,
        attempt.number,
        attempt.started_usec,
        completion.waited_usec,
        attempt.duration_usec,
    )
