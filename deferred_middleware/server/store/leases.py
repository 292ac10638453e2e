"""Leases of pull tasks.

A lease gives a worker the exclusive use of a task for some time. If the worker has not deleted the task by then, the
task can be leased again. As on App Engine, a leased task's ETA is the end of its lease, and a worker changes or ends a
lease by giving that ETA:
https://cloud.google.com/appengine/docs/standard/services/task-queue/rest ("tasks/lease").
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
from dataclasses import dataclass
from typing import Final, Literal

from deferred_middleware.server.store import rows
from deferred_middleware.server.store.counts import EXECUTED, Tally
from deferred_middleware.server.store.database import Database
from deferred_middleware.server.store.records import RetryPolicy, StoredTask
from deferred_middleware.server.store.statistics import failures
from deferred_middleware.server.store.statistics.statistics import TaskStatistics
from deferred_middleware.server.store.statistics.traceback_text import FailureSite

logger: Final = logging.getLogger(__name__)

_WAITING = "FROM tasks WHERE state = 'ready' AND method = 'PULL' AND queue = ?"
OLDEST = f"SELECT id {_WAITING} AND eta_usec <= ? ORDER BY eta_usec, id LIMIT ?"
OLDEST_OF_TAG = f"SELECT id {_WAITING} AND tag IS ? AND eta_usec <= ? ORDER BY eta_usec, id LIMIT ?"
_TAG_OF_OLDEST = f"SELECT tag {_WAITING} AND eta_usec <= ? ORDER BY eta_usec, id LIMIT 1"
_LEASE = """
    UPDATE tasks SET eta_usec = ?, retry_count = retry_count + 1,
        first_attempt_usec = coalesce(first_attempt_usec, ?)
    WHERE id = ?"""
_GIVE_UP = "UPDATE tasks SET state = 'failed', finished_usec = ?, failure = ? WHERE id = ?"
_NOT_DELETED = FailureSite(exception="not deleted during any of its leases")


@dataclass(frozen=True, kw_only=True)
class LeaseChange:
    """The answer to a change of a lease. If the outcome is ``changed``, the lease now ends at ``eta_usec``."""

    outcome: Literal["changed", "expired", "tombstoned", "unknown"]
    eta_usec: int = 0


class PullLeases:
    """Leases tasks of pull queues."""

    def __init__(self, database: Database, statistics: TaskStatistics) -> None:
        self._database = database
        self._statistics = statistics

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

        With ``group_by_tag``, all leased tasks have the tag ``tag``. If ``tag`` is None, they have the tag of the
        oldest task, or none if that has none. ``policy`` holds for tasks without a retry policy of their own. A task
        that has been leased as often as its policy allows becomes a dead letter.
        """

        def operation(connection: sqlite3.Connection, tally: Tally) -> list[StoredTask]:
            now_usec = self._database.now_usec()
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
                # A lease of no time leaves its tasks due, so the next search would find them again.
                if len(found) < left or lease_usec <= 0:
                    break
            tally[queue, EXECUTED] += len(leased)
            return leased

        leased = self._database.write(operation)
        self._statistics.leased(queue, len(leased))
        return leased

    def change(self, queue: str, name: str, *, eta_usec: int, lease_usec: int) -> LeaseChange:
        """Change the lease that ends at ``eta_usec`` so that it ends ``lease_usec`` from now; 0 ends it at once."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> LeaseChange:
            now_usec = self._database.now_usec()
            found = connection.execute(
                "SELECT id, eta_usec FROM tasks WHERE queue = ? AND name = ? AND state = 'ready' AND method = 'PULL'",
                (queue, name),
            ).fetchone()
            if found is None:
                known = rows.find_name(connection, queue, name, self._database.steady_clock.now_usec())
                return LeaseChange(outcome="unknown" if known is None else "tombstoned")
            task_id, ends_usec = found
            if ends_usec != eta_usec or ends_usec < now_usec:
                return LeaseChange(outcome="expired")
            ends_usec = now_usec + lease_usec
            connection.execute("UPDATE tasks SET eta_usec = ? WHERE id = ?", (ends_usec, task_id))
            return LeaseChange(outcome="changed", eta_usec=ends_usec)

        return self._database.write(operation)

    def _lease_one(
        self,
        connection: sqlite3.Connection,
        tally: Tally,
        task_id: int,
        now_usec: int,
        lease_usec: int,
        policy: RetryPolicy,
    ) -> StoredTask | None:
        task = rows.stored_task(connection.execute(f"{rows.SELECT_TASK} WHERE id = ?", (task_id,)).fetchone())
        age_usec = now_usec - (now_usec if task.first_attempt_usec is None else task.first_attempt_usec)
        if not (task.retry or policy).allows(task.retry_count + 1, age_usec / 1e6):
            logger.error(
                "Task %s of queue %s is a dead letter now: it was not deleted during any of its leases (%d).",
                task.name,
                task.queue,
                task.retry_count,
            )
            (group,) = failures.note(connection, [(_NOT_DELETED, now_usec)]).values()
            connection.execute(_GIVE_UP, (now_usec, group, task_id))
            rows.block_names_of(connection, "id = ?", (task_id,), self._database.blocked_until_usec())
            tally[task.queue, "ready"] -= 1
            tally[task.queue, "failed"] += 1
            return None
        connection.execute(_LEASE, (now_usec + lease_usec, now_usec, task_id))
        return dataclasses.replace(task, eta_usec=now_usec + lease_usec, retry_count=task.retry_count + 1)
