"""Leases of pull tasks.

A worker that leases tasks has them to itself for a time; those that it has not deleted by then can be leased again. A
lease is the task's ETA set to the lease's end, as on App Engine, and the ETA that a worker was told is its key to
change or end the lease: https://cloud.google.com/appengine/docs/standard/services/task-queue/rest ("tasks/lease").
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
from dataclasses import dataclass
from typing import Literal

from deferred_middleware.server.store import rows, task_names
from deferred_middleware.server.store.counts import EXECUTED
from deferred_middleware.server.store.database import StoreCore
from deferred_middleware.server.store.records import RetryPolicy, StoredTask
from deferred_middleware.server.store.writer import Tally

_log = logging.getLogger(__name__)

_WAITING = "FROM tasks WHERE state = 'ready' AND method = 'PULL' AND queue = ?"
OLDEST = f"SELECT id {_WAITING} AND eta_usec <= ? ORDER BY eta_usec, id LIMIT ?"
OLDEST_OF_TAG = f"SELECT id {_WAITING} AND tag IS ? AND eta_usec <= ? ORDER BY eta_usec, id LIMIT ?"
_TAG_OF_OLDEST = f"SELECT tag {_WAITING} AND eta_usec <= ? ORDER BY eta_usec, id LIMIT 1"
_LEASE = """
    UPDATE tasks SET eta_usec = ?, retry_count = retry_count + 1,
        first_attempt_usec = coalesce(first_attempt_usec, ?)
    WHERE id = ?"""
_BLOCK_NAME = "INSERT OR REPLACE INTO tombstones SELECT queue, name, ? FROM tasks WHERE id = ? AND user_named"
_GIVE_UP = "UPDATE tasks SET state = 'failed', finished_usec = ? WHERE id = ?"


@dataclass(frozen=True, kw_only=True)
class LeaseChange:
    """What became of a lease that was to be changed; only with ``changed`` it ends at ``eta_usec`` now."""

    outcome: Literal["changed", "expired", "tombstoned", "unknown"]
    eta_usec: int = 0


class PullLeases(StoreCore):
    """The store's operations for pull queues."""

    def lease(
        self,
        queue: str,
        *,
        lease_usec: int,
        limit: int,
        policy: RetryPolicy,
        group_by_tag: bool = False,
        tag: str | None = None,
    ) -> list[StoredTask]:
        """Lease the oldest tasks, at most ``limit`` of them, for ``lease_usec`` from now.

        With ``group_by_tag`` all of them have the tag ``tag``, or, when that is None, that of the oldest task, which
        may have none. A task that has been leased as often as ``policy``, or its own policy, allows becomes a dead
        letter instead.
        """

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[StoredTask]:
            now_usec = self._now_usec()
            leased: list[StoredTask] = []
            wanted = tag
            if group_by_tag and tag is None:
                oldest = connection.execute(_TAG_OF_OLDEST, (queue, now_usec)).fetchone()
                wanted = None if oldest is None else oldest[0]
            while len(leased) < limit:
                left = limit - len(leased)
                if group_by_tag:
                    found = connection.execute(OLDEST_OF_TAG, (queue, wanted, now_usec, left)).fetchall()
                else:
                    found = connection.execute(OLDEST, (queue, now_usec, left)).fetchall()
                for (task_id,) in found:
                    task = self._lease_one(connection, tally, task_id, now_usec, lease_usec, policy)
                    if task is not None:
                        leased.append(task)
                if len(found) < left or lease_usec <= 0:
                    break
            tally[queue, EXECUTED] += len(leased)
            return leased

        return self._writer.submit(operation).result()

    def change_lease(self, queue: str, name: str, *, eta_usec: int, lease_usec: int) -> LeaseChange:
        """Let the lease that ends at ``eta_usec`` end ``lease_usec`` from now; 0 ends it."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> LeaseChange:
            now_usec = self._now_usec()
            found = connection.execute(
                "SELECT id, eta_usec FROM tasks WHERE queue = ? AND name = ? AND state = 'ready' AND method = 'PULL'",
                (queue, name),
            ).fetchone()
            if found is None:
                known = task_names.find(connection, queue, name, now_usec)
                return LeaseChange(outcome="unknown" if known is None else "tombstoned")
            task_id, ends_usec = found
            if ends_usec != eta_usec or ends_usec < now_usec:
                return LeaseChange(outcome="expired")
            ends_usec = now_usec + lease_usec
            connection.execute("UPDATE tasks SET eta_usec = ? WHERE id = ?", (ends_usec, task_id))
            return LeaseChange(outcome="changed", eta_usec=ends_usec)

        return self._writer.submit(operation).result()

    def _lease_one(
        self,
        connection: sqlite3.Connection,
        tally: Tally,
        task_id: int,
        now_usec: int,
        lease_usec: int,
        policy: RetryPolicy,
    ) -> StoredTask | None:
        row = connection.execute(f"{rows.SELECT_TASK} WHERE id = ?", (task_id,)).fetchone()
        task = StoredTask(**rows.task_fields(row))
        age_usec = now_usec - (now_usec if task.first_attempt_usec is None else task.first_attempt_usec)
        if not (task.retry or policy).allows(task.retry_count + 1, age_usec / 1e6):
            _log.error(
                "Task %s of queue %s has been leased %d times and was not deleted; it is a dead letter now.",
                task.name,
                task.queue,
                task.retry_count,
            )
            connection.execute(_GIVE_UP, (now_usec, task_id))
            connection.execute(_BLOCK_NAME, (self._blocked_until(now_usec), task_id))
            tally[task.queue, "ready"] -= 1
            tally[task.queue, "failed"] += 1
            return None
        connection.execute(_LEASE, (now_usec + lease_usec, now_usec, task_id))
        return dataclasses.replace(task, eta_usec=now_usec + lease_usec, retry_count=task.retry_count + 1)
