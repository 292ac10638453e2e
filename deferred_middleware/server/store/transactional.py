"""Tasks that are added in datastore transactions.

The datastore and the task store are two files, and a crash may come between their commits. Therefore a commit has three
steps. First, the tasks of the transaction are *staged*: stored, but neither visible nor run. Next, the datastore's file
is written, with the transaction's id in it. Last, the staged tasks are *committed*, which makes them ordinary tasks. At
the next start, staged tasks are committed if the datastore's file has their transaction's id, and discarded if it does
not (:mod:`~deferred_middleware.server.api.datastore`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Sequence
from typing import Final

from deferred_middleware.server.store import rows
from deferred_middleware.server.store.counts import Tally
from deferred_middleware.server.store.database import Database
from deferred_middleware.server.store.records import NewTask
from deferred_middleware.server.store.statistics.statistics import TaskStatistics

logger: Final = logging.getLogger(__name__)

# In the database, a staged task has the state "held", and the column "hold" has its transaction.
_COMMIT = "UPDATE tasks SET state = 'ready', hold = NULL WHERE state = 'held' AND hold = ? RETURNING queue, url"
_DISCARD = "DELETE FROM tasks WHERE state = 'held' AND hold = ?"
_TRANSACTIONS = f"SELECT DISTINCT hold FROM tasks WHERE state = 'held' AND hold NOT LIKE '{rows.PURGE_PREFIX}%'"


class TransactionalTasks:
    """The tasks of transactions that are being committed."""

    def __init__(self, database: Database, statistics: TaskStatistics) -> None:
        self._database = database
        self._statistics = statistics

    def choose_name(self) -> str:
        """Return a name for a task that will be staged."""
        return self._database.choose_name()

    def stage(self, tasks: Sequence[NewTask], transaction: str) -> None:
        """Store the tasks of ``transaction`` until they are committed or discarded.

        Tasks that are added in a transaction can't have a name that the app chose, so these names don't stay blocked.
        """

        def operation(connection: sqlite3.Connection, _tally: Tally) -> None:
            now_usec = self._database.now_usec()
            for task in tasks:
                name = task.name or self.choose_name()
                task_id = self._database.next_id()
                rows.insert(connection, task, task_id, name, now_usec, user_named=False, transaction=transaction)

        self._database.write(operation, adds_tasks=True)

    def commit(self, transactions: Collection[str]) -> int:
        """Make the staged tasks of committed transactions ready to run; return how many there were."""
        ids = list(transactions)

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[tuple[str, str]]:
            return [task for transaction in ids for task in _commit(connection, tally, transaction)]

        tasks = self._database.write(operation)
        self._statistics.enqueued(tasks)
        return len(tasks)

    def discard(self, transaction: str) -> None:
        """Delete the staged tasks of a transaction that was not committed."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> None:
            connection.execute(_DISCARD, (transaction,))

        self._database.write(operation)

    def recover(self, committed: Collection[str]) -> None:
        """Commit what an earlier server staged for the ``committed`` transactions, and discard the rest."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> tuple[int, int]:
            recovered = discarded = 0
            for (transaction,) in connection.execute(_TRANSACTIONS).fetchall():
                if transaction in committed:
                    recovered += len(_commit(connection, tally, transaction))
                else:
                    discarded += connection.execute(_DISCARD, (transaction,)).rowcount
            return recovered, discarded

        recovered, discarded = self._database.write(operation)
        if recovered:
            logger.warning(
                "Tasks of committed transactions that are enqueued now: %d (the last server ended too early)", recovered
            )
        if discarded:
            logger.warning(
                "Discarded tasks: %d (the last server ended before their transactions were committed)", discarded
            )


def _commit(connection: sqlite3.Connection, tally: Tally, transaction: str) -> list[tuple[str, str]]:
    """Make the tasks of a transaction ready; return the queue and the URL of each."""
    found: list[tuple[str, str]] = connection.execute(_COMMIT, (transaction,)).fetchall()
    for queue, _url in found:
        tally[queue, "ready"] += 1
    return found
