"""What waits in a queue, and for what: its turn, its ETA, or another attempt."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from deferred_middleware.server.store.storecore import BATCH, StoreCore
from deferred_middleware.server.store.writer import Tally

MOST_COUNTED = 10_000
"""No more tasks than these are counted of a queue's and target's; there are at least as many then."""

_READY = "state = 'ready' AND method <> 'PULL'"
_NEXT_TARGET = f"SELECT target FROM tasks WHERE {_READY} AND queue = ? AND target > ? ORDER BY target LIMIT 1"
_FIRST_TARGET = f"SELECT target FROM tasks WHERE {_READY} AND queue = ? ORDER BY target LIMIT 1"
_DUE = f"""
    SELECT count(*) FROM (
        SELECT 1 FROM tasks WHERE {_READY} AND queue = ? AND target = ? AND eta_usec <= ? LIMIT ?)"""
_LATER = f"""
    SELECT count(*), sum(retry_count > 0), min(eta_usec) FROM (
        SELECT retry_count, eta_usec FROM tasks WHERE {_READY} AND queue = ? AND target = ? AND eta_usec > ?
        ORDER BY eta_usec LIMIT ?)"""
_MAKE_DUE = f"""
    UPDATE tasks SET eta_usec = ? WHERE id IN (
        SELECT id FROM tasks WHERE {_READY} AND queue = ? AND eta_usec > ? AND retry_count = 0 LIMIT ?)"""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How many push tasks of a queue are due, scheduled for a later ETA, or waiting to be tried again.

    ``next_eta_usec`` is the earliest ETA of those that aren't due, None when there is none.
    """

    due: int = 0
    scheduled: int = 0
    retrying: int = 0
    next_eta_usec: int | None = None


class WaitingTasks(StoreCore):
    """The part of the store that answers for what waits."""

    def waiting(self, queue: str) -> Waiting:
        """Count what waits in a queue, at most :data:`MOST_COUNTED` due ones and as many later ones per target."""
        now_usec = self._now_usec()
        due = later = retrying = 0
        etas = []
        found = self._read(_FIRST_TARGET, (queue,))
        while found:
            target = found[0][0]
            lane = (queue, target, now_usec, MOST_COUNTED)
            due += self._read(_DUE, lane)[0][0]
            number, tried, eta_usec = self._read(_LATER, lane)[0]
            later += number
            retrying += tried or 0
            if eta_usec is not None:
                etas.append(eta_usec)
            found = self._read(_NEXT_TARGET, (queue, target))
        return Waiting(
            due=due, scheduled=later - retrying, retrying=retrying, next_eta_usec=min(etas) if etas else None
        )

    def make_due(self, queue: str) -> int:
        """Give the push tasks of a queue that wait for their ETA the present one; return how many.

        Those that wait for another attempt keep their back-off.
        """
        now_usec = self._now_usec()

        def operation(connection: sqlite3.Connection, _tally: Tally) -> int:
            return connection.execute(_MAKE_DUE, (now_usec, queue, now_usec, BATCH)).rowcount

        return self._in_batches(operation)

    def executed(self, queue: str) -> tuple[int, int]:
        """Return how many tasks of a queue were run or leased in the last minute, and in the last hour."""
        return self._counts.executed(queue)
