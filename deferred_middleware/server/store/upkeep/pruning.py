"""Deletes what is kept for some time only: old succeeded tasks, names that are no longer blocked, old failures."""

from __future__ import annotations

import logging
import sqlite3
from concurrent.futures import Future
from typing import Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store import rows
from deferred_middleware.server.store.counts import Tally
from deferred_middleware.server.store.database import BATCH, Database
from deferred_middleware.server.store.listing.purges import Purges
from deferred_middleware.server.store.statistics import failures

logger: Final = logging.getLogger(__name__)

_PRUNE_EVERY_RESULTS = 500
_PRUNE_EVERY_SECONDS = 60.0


class HistoryPruner:
    """Deletes old succeeded tasks and expired tombstones, a bounded number at a time, after some results or seconds.

    The thread that commits calls all methods.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Both are written by the thread that commits only.
        self._results = 0
        self._next_prune = database.elapsed() + _PRUNE_EVERY_SECONDS

    def prune_if_due(self, new_results: int) -> None:
        """Submit an operation that prunes, if enough results were written or enough time has passed."""
        self._results += new_results
        if self._results < _PRUNE_EVERY_RESULTS and self._database.elapsed() < self._next_prune:
            return
        self._results = 0
        self._next_prune = self._database.elapsed() + _PRUNE_EVERY_SECONDS
        try:
            self._database.writer.submit(self._prune, durable=False).add_done_callback(_log_failed_prune)
        except ServerError as error:
            logger.debug("Old tasks are deleted when the store is open again: %s", error)

    def _prune(self, connection: sqlite3.Connection, tally: Tally) -> None:
        database = self._database
        now_usec = database.now_usec()
        blocked_until_usec = database.blocked_until_usec()
        excess = max(0, database.counts.of_state("succeeded") - database.retention.succeeded_tasks)
        finished_before_usec = now_usec - int(database.retention.succeeded_seconds * 1e6)
        succeeded = "id IN (SELECT id FROM tasks WHERE state = 'succeeded'"
        for where, parameters in (
            (f"{succeeded} ORDER BY finished_usec LIMIT ?)", (min(excess, BATCH),)),
            (f"{succeeded} AND finished_usec < ? LIMIT ?)", (finished_before_usec, BATCH)),
        ):
            rows.delete(connection, where, parameters, tally, blocked_until_usec=blocked_until_usec)
        failures.prune(connection, now_usec)
        database.shrinker.wake()
        rows.delete_expired_tombstones(connection, database.steady_clock.now_usec(), BATCH)
        rows.delete_expired_results(connection, now_usec, BATCH)
        Purges.delete_expired(connection, now_usec)


def _log_failed_prune(future: Future[None]) -> None:
    error = future.exception()
    if error is not None:
        logger.error("Old tasks could not be deleted: %s", error)
