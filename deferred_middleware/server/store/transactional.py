"""Tasks that wait for the commit of the transaction they were added in.

The datastore's commit and the queue are two files, and a crash may come between the two. So the tasks of a transaction
are stored first, *held*: nobody sees or runs them. Then the datastore's file is written, with the transaction's id in
it; then the tasks are let go. At the next start those whose transaction the datastore's file knows are let go, and
those of which it doesn't know never were (:mod:`~deferred_middleware.server.api.datastore`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Sequence

from deferred_middleware.server.store import rows
from deferred_middleware.server.store.database import StoreCore
from deferred_middleware.server.store.records import NewTask
from deferred_middleware.server.store.writer import Tally

_log = logging.getLogger(__name__)

_LET_GO = "UPDATE tasks SET state = 'ready', hold = NULL WHERE state = 'held' AND hold = ? RETURNING queue"
_DROP = "DELETE FROM tasks WHERE state = 'held' AND hold = ?"
_TRANSACTIONS = "SELECT DISTINCT hold FROM tasks WHERE state = 'held'"


class HeldTasks(StoreCore):
    """The store's operations for transactions."""

    def hold(self, tasks: Sequence[NewTask], transaction: str) -> None:
        """Store tasks, whose names were chosen here, until it is known what becomes of ``transaction``."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> None:
            now_usec = self._now_usec()
            for task in tasks:
                name = task.name or self.choose_name()
                rows.insert(connection, task, name, now_usec, user_named=False, hold=transaction)

        self._writer.submit(operation, adds_tasks=True).result()

    def let_go(self, transactions: Collection[str]) -> int:
        """Let the tasks of transactions that have been committed be run; return how many were held."""
        ids = list(transactions)

        def operation(connection: sqlite3.Connection, tally: Tally) -> int:
            return sum(_let_go(connection, tally, transaction) for transaction in ids)

        return self._writer.submit(operation).result()

    def drop_held(self, transaction: str) -> int:
        """Forget the tasks of a transaction that has not been committed; return how many were held."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> int:
            return connection.execute(_DROP, (transaction,)).rowcount

        return self._writer.submit(operation).result()

    def settle_held(self, committed: Collection[str]) -> tuple[int, int]:
        """Let go what an earlier server held for ``committed`` transactions, and forget the rest.

        Return how many tasks were let go and how many were forgotten.
        """

        def operation(connection: sqlite3.Connection, tally: Tally) -> tuple[int, int]:
            let_go = dropped = 0
            for (transaction,) in connection.execute(_TRANSACTIONS).fetchall():
                if transaction in committed:
                    let_go += _let_go(connection, tally, transaction)
                else:
                    dropped += connection.execute(_DROP, (transaction,)).rowcount
            return let_go, dropped

        let_go, dropped = self._writer.submit(operation).result()
        if let_go:
            _log.warning(
                "%d tasks of transactions that were being committed when the server ended are enqueued.", let_go
            )
        if dropped:
            _log.warning("%d tasks of transactions that the server's end kept from being committed are gone.", dropped)
        return let_go, dropped


def _let_go(connection: sqlite3.Connection, tally: Tally, transaction: str) -> int:
    found = connection.execute(_LET_GO, (transaction,)).fetchall()
    for (queue,) in found:
        tally[queue, "ready"] += 1
    return len(found)
