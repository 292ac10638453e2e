"""Writes to the database, and commits together what callers submit at the same time.

A commit that survives a power cut costs one fsync, whether it has one change or a thousand. Therefore all changes go
through :class:`GroupCommitWriter`. If nothing else is being written, the caller's own thread runs the operation and
commits it, because handing it to another thread and back takes longer than the commit's other work. Operations that
are submitted meanwhile wait for the writer's thread. It takes all of them, runs them in one transaction, commits once,
and then resolves the callers' futures. What a commit does is in :class:`GroupCommit`, which has no thread.

An operation that nobody waits for can be *delayable*: the writer waits a few milliseconds for other operations to share
its commit. While a queue is busy, the results of attempts share the commit of whatever is submitted next.

If the disk is full, the writer frees the reserve (:mod:`~deferred_middleware.server.store.upkeep.disk_reserve`). Until
the disk has space again, it runs only operations that add no tasks.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.claims import Claims
from deferred_middleware.server.store.counts import Tally, TaskCounts
from deferred_middleware.server.store.statistics.spans import SpanCounters
from deferred_middleware.server.store.upkeep.checksum import read_any_text
from deferred_middleware.server.store.upkeep.commit_record import CommitStamps
from deferred_middleware.server.store.upkeep.disk_reserve import DiskReserve, is_disk_full
from deferred_middleware.server.store.upkeep.salvage import StoreDamagedError, damaged, is_damage

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")

Operation = Callable[[sqlite3.Connection, Tally], T]
"""A part of a transaction: it changes rows, and adds to the tally by how much the numbers of tasks change."""

_MAX_BATCH = 1000
_MAX_DELAY_SECONDS = 0.005
# The next commit is synced, even if it need not be durable. So a damaged log can be told from one after a power cut.
_MAX_UNSYNCED_COMMITS = 8


class StoreStoppedError(ServerError):
    """The store can't write any more."""


class _Signal(enum.Enum):
    """What the queue has besides operations."""

    STOP = "stop"
    DELAYABLE = "there are delayable operations"


CommitStep = Literal["ran", "committed"]
"""Where a commit stands: the operations have run and are not committed, or they are and nobody has heard of it."""


@dataclass(frozen=True, kw_only=True)
class PendingOperation:
    """An operation that was submitted. ``future`` gets its result; see :meth:`GroupCommit.submit`."""

    operation: Operation[Any]
    durable: bool
    adds_tasks: bool
    future: Future[Any]


class GroupCommit(abc.ABC):
    """Runs operations on ``connection`` and commits them together, step by step. It has no thread and no lock.

    An operation is called inside a transaction. After the commit, its tally is added to ``counts``, and ``claims`` end
    as it says. If an operation raises an exception, only its own changes are undone; the other operations of the
    transaction are committed. Every few seconds, a commit that changes something also writes what the ``counters`` have
    counted. Durable commits are stamped by ``stamps``. ``check_files`` is called after each commit, before anybody
    hears of it, and raises an exception if the database is no longer the file at its path. That and any defect are the
    end of all writing; ``on_failure`` is called then.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        counts: TaskCounts,
        claims: Claims,
        counters: SpanCounters,
        reserve: DiskReserve,
        stamps: CommitStamps,
        *,
        check_files: Callable[[], object],
        on_failure: Callable[[ServerError], object],
    ) -> None:
        self._check_files = check_files
        self._on_failure = on_failure
        self._unsynced = 0
        self._connection = connection
        self._synchronous = ""
        self._counts = counts
        self._claims = claims
        self._counters = counters
        self._reserve = reserve
        self._stamps = stamps

    @abc.abstractmethod
    def submit(
        self, operation: Operation[T], *, durable: bool = True, delayable: bool = False, adds_tasks: bool = False
    ) -> Future[T]:
        """Run an operation, now or together with others; its future is resolved after the commit.

        If ``durable`` is false, the commit need not survive a power cut, unless a durable operation shares it. If
        ``delayable`` is true, the operation may wait a few milliseconds for others; it may be called twice, and what
        the first call changed is undone. If ``adds_tasks`` is true, the operation is rejected while the disk is full.
        Raises :class:`ServerError` if the writer is closed or has failed, and its subclass
        :class:`~deferred_middleware.server.store.upkeep.disk_reserve.StoreFullError` if the disk is full.
        """

    @abc.abstractmethod
    def check(self) -> None:
        """Raise :class:`ServerError` if the writer is closed or has failed, so that no result could be written."""

    @abc.abstractmethod
    def close(self) -> None:
        """Commit the pending operations, and close the connection."""

    @abc.abstractmethod
    def checkpoint(self) -> None:
        """Copy the log into the database, which then has its final size."""

    def commit_steps(self, delayed: list[PendingOperation], batch: list[PendingOperation]) -> Iterator[CommitStep]:
        """Run operations, commit them, and resolve their futures. It yields between these steps."""
        try:
            answers = yield from self._transact(delayed, batch)
        except sqlite3.Error as error:
            # The whole transaction was rolled back. Each caller gets the error; the next batch may succeed.
            number = len(delayed) + len(batch)
            logger.error("The task store could not commit a transaction (operations in it: %d): %s", number, error)
            answers = [(None, error)] * number
            if is_disk_full(error) and self._reserve.free():
                for pending in batch:
                    if pending.adds_tasks:
                        pending.future.set_exception(self._reserve.full_error)
                yield from self.commit_steps(delayed, [pending for pending in batch if not pending.adds_tasks])
                return
        for _result, failure in answers:
            if failure is not None and is_damage(failure):
                raise damaged(failure) from failure
        self._check_files()
        yield "committed"
        for pending, (result, failure) in zip(delayed + batch, answers, strict=True):
            if failure is not None:
                pending.future.set_exception(failure)
            else:
                pending.future.set_result(result)

    def _transact(
        self, delayed: list[PendingOperation], batch: list[PendingOperation]
    ) -> Generator[CommitStep, None, list[tuple[Any, Exception | None]]]:
        """Run operations in one transaction and commit it; return the result or the exception of each."""
        tally = Tally()
        durable = self._unsynced >= _MAX_UNSYNCED_COMMITS or any(pending.durable for pending in batch + delayed)
        changes = self._connection.total_changes
        try:
            self._set_synchronous("FULL" if durable else "NORMAL")
            self._connection.execute("BEGIN IMMEDIATE")
            # First, because a caller may have submitted a delayable operation and then another one that depends on it.
            answers = self._run_delayed(delayed, tally)
            answers += [self._run_one(pending.operation, tally) for pending in batch]
            self._counts.write(self._connection, tally)
            # If nothing was changed, the commit writes nothing.
            changed = self._connection.total_changes != changes
            counted = changed and self._counters.is_due and self._write_counters()
            if changed and durable:
                self._stamps.write(self._connection)
            yield "ran"
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._counts.apply(tally)
        self._claims.end(tally.ended)
        if counted:
            self._counters.written()
        if changed and durable:
            self._unsynced = 0
            self._stamps.committed(self._counts.stored_tasks)
        elif changed:
            self._unsynced += 1
        return answers

    def _write_counters(self) -> bool:
        _, failure = self._run_one(lambda connection, _tally: self._counters.write(connection), Tally())
        if failure is not None:
            logger.error("The figures of the last seconds can't be written now: %s", failure, exc_info=failure)
        return failure is None

    def _run_delayed(self, delayed: list[PendingOperation], tally: Tally) -> list[tuple[Any, Exception | None]]:
        """Run operations with one savepoint; if one of them fails, run each with its own."""
        if len(delayed) > 1:
            operations = [pending.operation for pending in delayed]
            results, failure = self._run_one(
                lambda connection, own_tally: [run(connection, own_tally) for run in operations], tally
            )
            if failure is None:
                return [(result, None) for result in results]
        return [self._run_one(pending.operation, tally) for pending in delayed]

    def _run_one(self, operation: Operation[Any], tally: Tally) -> tuple[Any, Exception | None]:
        own_tally = Tally()

        def run(connection: sqlite3.Connection) -> Any:
            return operation(connection, own_tally)

        def undo() -> None:
            own_tally.clear()
            own_tally.ended.clear()
            self._connection.execute("ROLLBACK TO operation")

        self._connection.execute("SAVEPOINT operation")
        try:
            result = read_any_text(self._connection, run, before_again=undo)
        except Exception as error:
            if not self._connection.in_transaction:
                # SQLite has rolled back the whole transaction, other operations included, as it does on a full disk.
                raise sqlite3.OperationalError(str(error)) from error
            self._connection.execute("ROLLBACK TO operation")
            self._connection.execute("RELEASE operation")
            return None, error
        self._connection.execute("RELEASE operation")
        tally.merge(own_tally)
        return result, None

    def _set_synchronous(self, level: str) -> None:
        # The setting can't change inside a transaction. In WAL mode, NORMAL means no fsync at commit. The next commit
        # with FULL syncs the same file, so it can't survive a power cut without the commits before it.
        if level != self._synchronous:
            self._connection.execute(f"PRAGMA synchronous={level}")
            self._synchronous = level


class GroupCommitWriter(GroupCommit):
    """A :class:`GroupCommit` that runs in its own thread or the caller's; :meth:`close` closes the connection."""

    def __init__(self, *parts: Any, **callbacks: Any) -> None:
        super().__init__(*parts, **callbacks)
        # Held by the thread that writes; it guards what the base class has.
        self._turn = threading.Lock()
        self._queue: queue.SimpleQueue[PendingOperation | _Signal] = queue.SimpleQueue()
        # Guards the four fields below. Any thread submits operations and closes; a thread that has its turn takes the
        # delayable operations, and sets the failure.
        self._lock = threading.Lock()
        # How many operations were given to the writer's thread and aren't committed.
        self._handed_over = 0
        self._delayable: list[PendingOperation] = []
        self._is_closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(
        self, operation: Operation[T], *, durable: bool = True, delayable: bool = False, adds_tasks: bool = False
    ) -> Future[T]:
        """Submit an operation as the base class says."""
        if adds_tasks and not self._reserve.ensure_allocated():
            raise self._reserve.full_error
        future: Future[T] = Future()
        with self._lock:
            self._check()
            pending = PendingOperation(operation=operation, durable=durable, adds_tasks=adds_tasks, future=future)
            if delayable:
                self._delayable.append(pending)
                if len(self._delayable) == 1:
                    self._queue.put(_Signal.DELAYABLE)
                return future
            # Not before operations that were handed over earlier: one of them may be this caller's.
            if self._handed_over or not self._turn.acquire(blocking=False):
                self._handed_over += 1
                self._queue.put(pending)
                return future
        self._commit_here(pending)
        return future

    def check(self) -> None:
        """Raise :class:`ServerError` if nothing can be written any more."""
        with self._lock:
            self._check()

    def close(self) -> None:
        """Commit the pending operations, then stop the thread and close the connection."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(_Signal.STOP)
        self._thread.join()
        # Here and not at the end of the thread, which may have failed long before: the connection that is closed last
        # copies the log into the database, and only this one can.
        with self._turn:
            self._connection.close()

    def checkpoint(self) -> None:
        """Copy the log into the database."""
        with self._turn:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _check(self) -> None:
        if self._failure is not None:
            raise _stopped_error(self._failure) from self._failure
        if self._is_closed:
            raise ServerError("The task store is closed.")

    def _commit_here(self, pending: PendingOperation) -> None:
        """Commit an operation in the caller's thread, which has its turn, with the delayable ones."""
        with self._lock:
            delayed, self._delayable = self._delayable, []
        try:
            self._commit(delayed, [pending])
        except BaseException as error:
            self._fail(error, [*delayed, pending])
            if not isinstance(error, Exception):
                raise
        finally:
            self._turn.release()

    def _run(self) -> None:
        delayed: list[PendingOperation] = []
        batch: list[PendingOperation] = []
        more = True
        try:
            while more:
                entry = self._wait()
                # Everything that is submitted while another thread has its turn shares the next commit.
                with self._turn:
                    batch, more = self._drain(entry)
                    with self._lock:
                        delayed, self._delayable = self._delayable, []
                    if delayed or batch:
                        self._commit(delayed, batch)
                with self._lock:
                    self._handed_over -= len(batch)
        except BaseException as error:  # noqa: BLE001 - all callers, present and future, must get an error
            self._fail(error, delayed + batch)

    def _wait(self) -> PendingOperation | _Signal | None:
        """Wait for something to do; return the first operation or signal. None: there are only delayable operations."""
        entry = self._queue.get()
        if entry is _Signal.DELAYABLE:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_MAX_DELAY_SECONDS)
            return None
        return entry

    def _drain(self, entry: PendingOperation | _Signal | None) -> tuple[list[PendingOperation], bool]:
        """Return the operations that can't be delayed, from ``entry`` on, and whether to continue after them."""
        batch: list[PendingOperation] = []
        with contextlib.suppress(queue.Empty):
            while entry is not _Signal.STOP:
                if isinstance(entry, PendingOperation):
                    batch.append(entry)
                if len(batch) == _MAX_BATCH:
                    return batch, True
                entry = self._queue.get_nowait()
            return batch, False
        return batch, True

    def _commit(self, delayed: list[PendingOperation], batch: list[PendingOperation]) -> None:
        for _step in self.commit_steps(delayed, batch):
            pass

    def _fail(self, error: BaseException, taken: list[PendingOperation]) -> None:
        """Give the error to all pending operations and to later callers, and end the writer's thread."""
        # The reason is a sentence if a file is gone; anything else is a defect, whose place is of interest.
        logger.critical("%s", _stopped_error(error), exc_info=None if isinstance(error, ServerError) else error)
        with self._lock:
            self._failure = error
            pending_operations = taken + self._delayable
        while True:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(entry, PendingOperation):
                pending_operations.append(entry)
        self._queue.put(_Signal.STOP)
        for pending in pending_operations:
            if not pending.future.done():
                pending.future.set_exception(_stopped_error(error))
        self._on_failure(_stopped_error(error))


def _stopped_error(error: BaseException) -> ServerError:
    if isinstance(error, StoreDamagedError):
        return error
    return StoreStoppedError(f"The task store stopped writing ({error}); restart the server.")
