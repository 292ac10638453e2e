"""One thread that writes, and commits together what waits together.

A commit that survives a power cut costs one fsync, whether it holds one change or a thousand. So nobody writes to the
database but the :class:`GroupCommitWriter`: it takes all operations that are waiting, runs them in one transaction,
commits once, and only then lets the callers know.

For an operation that nobody waits for it may wait a little for others: a result of an attempt, of which there are many
while a queue is busy, shares the commit of whatever comes next.

When the disk is full a reserve is given up (:mod:`~deferred_middleware.server.store.disk_reserve`), and only what
doesn't add
tasks is written until there is space again.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.disk_reserve import DiskReserve, is_disk_full

_log = logging.getLogger(__name__)

T = TypeVar("T")

Tally = Counter[tuple[str, str]]
"""How many rows of each kind a transaction adds (negative: takes away)."""


class Counts(Protocol):
    """What keeps the sum of all tallies."""

    def write(self, connection: sqlite3.Connection, tally: Tally) -> None:
        """Write what a transaction changes, within it."""

    def committed(self, tally: Tally) -> None:
        """Take note that the transaction stands."""


Operation = Callable[[sqlite3.Connection, Tally], T]

_MAX_BATCH = 1000
_PATIENCE_SECONDS = 0.005


class _Patient:
    """Stands in the queue for the operations that can wait."""


_PATIENT = _Patient()


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    operation: Operation[Any]
    durable: bool
    adds_tasks: bool
    future: Future[Any]


class GroupCommitWriter:
    """Runs operations on ``connection`` in its own thread, and closes it at the end.

    An operation is called with the connection, inside a transaction, and with a counter that it adds what it changed
    to; ``counts`` gets the sum of a transaction's counters. An operation that raises is undone by itself; the others of
    its transaction stand.
    """

    def __init__(self, connection: sqlite3.Connection, counts: Counts, reserve: DiskReserve) -> None:
        self._connection = connection
        self._counts = counts
        self._reserve = reserve
        self._queue: queue.SimpleQueue[_Waiting | _Patient | None] = queue.SimpleQueue()
        self._patient: list[_Waiting] = []
        # Guards what can wait, and what decides whether a caller still gets an answer: being closed, having died.
        self._lock = threading.Lock()
        self._closed = False
        self._death: BaseException | None = None
        self._synchronous = ""
        self.commits = 0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(
        self, operation: Operation[T], *, durable: bool = True, patient: bool = False, adds_tasks: bool = False
    ) -> Future[T]:
        """Queue an operation; the future is resolved after the commit.

        With ``durable`` false the commit need not survive a power cut, unless a durable operation shares it. With
        ``patient`` true it may wait for others a few milliseconds, and may be run twice, the first time in vain. With
        ``adds_tasks`` true it isn't run while the disk is full. Raises :class:`ServerError` when the writer is closed
        or has died, and its subclass :class:`~deferred_middleware.server.store.disk_reserve.StoreFullError`.
        """
        if adds_tasks and not self._reserve.is_whole():
            raise self._reserve.full_error
        future: Future[T] = Future()
        with self._lock:
            if self._death is not None:
                raise ServerError(
                    f"The task store stopped writing ({self._death}); restart the server."
                ) from self._death
            if self._closed:
                raise ServerError("The task store is closed.")
            waiting = _Waiting(operation=operation, durable=durable, adds_tasks=adds_tasks, future=future)
            if not patient:
                self._queue.put(waiting)
            else:
                self._patient.append(waiting)
                if len(self._patient) == 1:
                    self._queue.put(_PATIENT)
        return future

    def close(self) -> None:
        """Commit what is waiting, then stop and close the connection."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        patient: list[_Waiting] = []
        batch: list[_Waiting] = []
        more = True
        try:
            while more:
                batch, more = self._take()
                with self._lock:
                    patient, self._patient = self._patient, []
                if patient or batch:
                    self._commit(patient, batch)
        except BaseException as error:  # noqa: BLE001 - whoever waits, now or later, must hear of it
            _log.critical("The task store's writer died.", exc_info=True)
            self._die(error, patient + batch)
        finally:
            self._connection.close()

    def _take(self) -> tuple[list[_Waiting], bool]:
        """Return what is waiting, patient operations apart, once there is something to do; and whether to go on."""
        batch: list[_Waiting] = []
        waiting = self._queue.get()
        try:
            if waiting is _PATIENT:
                waiting = self._queue.get(timeout=_PATIENCE_SECONDS)
            while waiting is not None:
                if isinstance(waiting, _Waiting):
                    batch.append(waiting)
                if len(batch) == _MAX_BATCH:
                    return batch, True
                waiting = self._queue.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _commit(self, patient: list[_Waiting], batch: list[_Waiting]) -> None:
        try:
            answers = self._transact(patient, batch)
        except sqlite3.Error as error:
            # Nothing of the batch stands; each caller hears why, and the next batch may do.
            _log.error("The task store could not commit %d operations: %s", len(patient) + len(batch), error)
            answers = [(None, error)] * (len(patient) + len(batch))
            if is_disk_full(error) and self._reserve.spend():
                for waiting in batch:
                    if waiting.adds_tasks:
                        waiting.future.set_exception(self._reserve.full_error)
                self._commit(patient, [waiting for waiting in batch if not waiting.adds_tasks])
                return
        for waiting, (result, failure) in zip(patient + batch, answers, strict=True):
            if failure is not None:
                waiting.future.set_exception(failure)
            else:
                waiting.future.set_result(result)

    def _transact(self, patient: list[_Waiting], batch: list[_Waiting]) -> list[tuple[Any, Exception | None]]:
        tally: Tally = Counter()
        try:
            self._set_synchronous("FULL" if any(w.durable for w in batch + patient) else "NORMAL")
            self._connection.execute("BEGIN IMMEDIATE")
            # First, because whoever handed in a result may have gone on to something that comes after it.
            answers = self._run_patient(patient, tally)
            answers += [self._run_one(waiting.operation, tally) for waiting in batch]
            self._counts.write(self._connection, tally)
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self.commits += 1
        self._counts.committed(tally)
        return answers

    def _run_patient(self, patient: list[_Waiting], tally: Tally) -> list[tuple[Any, Exception | None]]:
        """Run operations together, or, when one of them fails, each by itself."""
        if len(patient) > 1:
            operations = [waiting.operation for waiting in patient]
            results, failure = self._run_one(
                lambda connection, own: [run(connection, own) for run in operations], tally
            )
            if failure is None:
                return [(result, None) for result in results]
        return [self._run_one(waiting.operation, tally) for waiting in patient]

    def _run_one(self, operation: Operation[Any], tally: Tally) -> tuple[Any, Exception | None]:
        own: Tally = Counter()
        self._connection.execute("SAVEPOINT operation")
        try:
            result = operation(self._connection, own)
        except Exception as error:
            if not self._connection.in_transaction:
                # SQLite has rolled back the whole transaction (it does when the disk is full), others' work included.
                raise sqlite3.OperationalError(str(error)) from error
            self._connection.execute("ROLLBACK TO operation")
            self._connection.execute("RELEASE operation")
            return None, error
        self._connection.execute("RELEASE operation")
        for key, number in own.items():
            tally[key] += number
        return result, None

    def _set_synchronous(self, level: str) -> None:
        # The setting can't change inside a transaction, and NORMAL in WAL mode means: no fsync at commit. A later FULL
        # commit syncs the same file, so it never stands without what was committed before it.
        if level != self._synchronous:
            self._connection.execute(f"PRAGMA synchronous={level}")
            self._synchronous = level

    def _die(self, error: BaseException, batch: list[_Waiting]) -> None:
        with self._lock:
            self._death = error
            left = batch + self._patient
        while True:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(waiting, _Waiting):
                left.append(waiting)
        for waiting in left:
            if not waiting.future.done():
                waiting.future.set_exception(
                    ServerError(f"The task store stopped writing ({error}); restart the server.")
                )
