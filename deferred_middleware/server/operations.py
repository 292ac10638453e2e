"""What people do to tasks and queues: find them, run, retry and delete them, pause a queue.

None of it wakes the scheduler; who retries tasks or resumes a queue does that afterwards.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path

from deferred_middleware.server import names, rows
from deferred_middleware.server.groupcommit import Tally
from deferred_middleware.server.records import (
    AttemptRecord,
    RetryOutcome,
    State,
    StoredTask,
    TaskPage,
    TaskSummary,
)
from deferred_middleware.server.retention import Retention
from deferred_middleware.server.storecore import BATCH, StoreCore

STATES: tuple[State, ...] = ("ready", "running", "succeeded", "failed")

# How many tasks are looked at for one page when their URLs have to be read.
_LOOKED_AT = 20_000

_NEWEST = "FROM tasks WHERE queue = ? AND state = ? AND id < ? ORDER BY id DESC LIMIT ?"
_NEWEST_OF_ALL = "FROM tasks WHERE state <> 'held' AND id < ? ORDER BY id DESC LIMIT ?"
_NO_ID_ABOVE = 2**63 - 1

# What a dead letter forgets when it is tried again; its attempts stay, and later ones are counted on from them.
_START_ANEW = """
    UPDATE tasks SET state = 'ready', eta_usec = ?, attempts_before = attempts_before + retry_count, retry_count = 0,
        execution_count = 0, first_attempt_usec = NULL, finished_usec = NULL, previous_response = NULL,
        retry_reason = NULL
    WHERE id = ?"""


class StoreOperations(StoreCore):
    """The store's operations for people."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, retention: Retention | None = None
    ) -> None:
        super().__init__(path, clock=clock, retention=retention)
        self._pause_lock = threading.Lock()
        self._paused: frozenset[str] | None = None

    def counts(self) -> dict[str, dict[State, int]]:
        """Return for each queue that has tasks how many are in each state. Nothing is counted for it."""
        counts: dict[str, dict[State, int]] = {}
        for (queue, state), number in self._counts.numbers().items():
            counts.setdefault(queue, {})[state] = number  # type: ignore[index] # the schema checks it
        return counts

    def find(
        self,
        *,
        queue: str | None = None,
        state: State | None = None,
        contains: str | None = None,
        before_id: int | None = None,
        limit: int = 100,
    ) -> TaskPage:
        """Return the newest tasks of a queue and in a state, at most ``limit`` of them.

        ``contains`` is a part of their URL, such as a function's name. ``before_id`` is the last page's
        ``next_before_id``. A page costs about the same wherever it is: with ``contains`` it looks at a bounded number
        of tasks, so that it may find none and still not be the last.
        """
        before = _NO_ID_ABOVE if before_id is None else before_id
        lists: list[tuple[str, tuple[str, ...]]]
        if queue is None and state is None:
            lists = [(_NEWEST_OF_ALL, ())]
        else:
            # Each list comes from its place in the index in the right order; the newest of all are at their heads.
            lists = [
                (_NEWEST, key) for key in self._counts.numbers() if queue in (None, key[0]) and state in (None, key[1])
            ]
        if contains is None:
            return self._page(lists, before, limit)
        return self._page_that_contains(lists, before, limit, contains)

    def _page(self, lists: Sequence[tuple[str, tuple[str, ...]]], before: int, limit: int) -> TaskPage:
        found = [
            rows.summary(row)
            for select, key in lists
            for row in self._read(f"SELECT {rows.TASK_COLUMNS} {select}", (*key, before, limit + 1))
        ]
        return _cut(found, limit)

    def _page_that_contains(
        self, lists: Sequence[tuple[str, tuple[str, ...]]], before: int, limit: int, contains: str
    ) -> TaskPage:
        texts = (contains.lower(), urllib.parse.quote(contains, safe="/~").lower())
        found = []
        floor = 0
        for select, key in lists:
            looked_at = (*key, before, _LOOKED_AT)
            ((number, last_id),) = self._read(f"SELECT count(*), min(id) FROM (SELECT id {select})", looked_at)
            if number == _LOOKED_AT:
                floor = max(floor, last_id)
            found += self._read(
                f"SELECT * FROM (SELECT {rows.TASK_COLUMNS} {select})"
                " WHERE instr(lower(url), ?) OR instr(lower(url), ?) LIMIT ?",
                (*looked_at, *texts, limit + 1),
            )
        # What is older than the last task that was looked at in every list comes with a later page.
        page = _cut([rows.summary(row) for row in found if row[0] >= floor], limit)
        if page.next_before_id is None and floor:
            return dataclasses.replace(page, next_before_id=floor)
        return page

    def get(self, queue: str, name: str) -> StoredTask | None:
        """Return a task, the newest of this name, or None when there is none."""
        return self._stored("queue = ? AND name = ? AND state <> 'held' ORDER BY id DESC LIMIT 1", (queue, name))

    def get_by_id(self, task_id: int) -> StoredTask | None:
        """Return a task, or None when there is none with this id."""
        return self._stored("id = ? AND state <> 'held'", (task_id,))

    def tasks(self, *, queue: str | None = None, state: State | None = None, limit: int = 100) -> list[StoredTask]:
        """Return tasks with their headers and bodies, those that were added last first."""
        page = self.find(queue=queue, state=state, limit=limit)
        found = [self.get_by_id(task.id) for task in page.tasks]
        return [task for task in found if task is not None]

    def attempts(self, task_id: int) -> list[AttemptRecord]:
        """Return the attempts of a task that are kept, oldest first."""
        fields = [field.name for field in dataclasses.fields(AttemptRecord)]
        found = self._read(f"SELECT {', '.join(fields)} FROM attempts WHERE task_id = ? ORDER BY number", (task_id,))
        return [AttemptRecord(**dict(zip(fields, row, strict=True))) for row in found]

    def retry(self, task_id: int) -> RetryOutcome:
        """Try a dead letter again, now, as if it were new: its counts begin anew, its attempts stay to be seen."""

        def operation(connection: sqlite3.Connection, tally: Tally) -> RetryOutcome:
            found = connection.execute("SELECT queue, name, state FROM tasks WHERE id = ?", (task_id,)).fetchone()
            if found is None:
                return "unknown"
            return self._start_anew(connection, tally, task_id, *found)

        return self._writer.submit(operation).result()

    def retry_failed(self, queue: str) -> int:
        """Try all dead letters of a queue again; return how many.

        One whose name a later task has stays as it is, and so does one that fails meanwhile.
        """
        newest = self._newest_id()
        skipped: list[int] = [0]

        def operation(connection: sqlite3.Connection, tally: Tally) -> int:
            found = connection.execute(
                "SELECT id, queue, name, state FROM tasks WHERE queue = ? AND state = 'failed' AND id > ? AND id <= ?"
                " ORDER BY id LIMIT ?",
                (queue, after[0], newest, BATCH),
            ).fetchall()
            outcomes = [self._start_anew(connection, tally, *row) for row in found]
            skipped[0] += len(outcomes) - outcomes.count("retried")
            after[0] = found[-1][0] if found else newest
            return len(found)

        after = [0]
        return self._in_batches(operation) - skipped[0]

    def remove(self, task_ids: Sequence[int]) -> int:
        """Delete tasks, whatever their state, with their attempts; return how many there were.

        The result of one that is running is dropped. Names that the app chose stay blocked.
        """
        total = 0
        for start in range(0, len(task_ids), BATCH):
            ids = list(task_ids[start : start + BATCH])

            def operation(connection: sqlite3.Connection, tally: Tally, ids: list[int] = ids) -> int:
                where = f"id IN ({', '.join('?' * len(ids))}) AND state <> 'held'"
                return self._remove(connection, where, ids, tally)

            total += self._writer.submit(operation).result()
        return total

    def purge(self, queue: str) -> int:
        """Delete all tasks of a queue that are not finished; return how many.

        One that is running runs to its end. A task that is added meanwhile stays.
        """
        return self._remove_all(queue, ("ready", "running"))

    def remove_failed(self, queue: str) -> int:
        """Delete all dead letters of a queue, with their attempts; return how many."""
        return self._remove_all(queue, ("failed",))

    def pause(self, queue: str) -> bool:
        """Let no task of a queue be run until it is resumed; return whether it was running until now."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            return bool(
                connection.execute(
                    "INSERT OR IGNORE INTO paused_queues VALUES (?, ?)", (queue, self._now_usec())
                ).rowcount
            )

        with self._pause_lock:
            changed = self._writer.submit(operation).result()
            self._paused = None
        return changed

    def resume(self, queue: str) -> bool:
        """Let the tasks of a paused queue be run again; return whether it was paused."""

        def operation(connection: sqlite3.Connection, _tally: Tally) -> bool:
            return bool(connection.execute("DELETE FROM paused_queues WHERE queue = ?", (queue,)).rowcount)

        with self._pause_lock:
            changed = self._writer.submit(operation).result()
            self._paused = None
        return changed

    def paused(self) -> frozenset[str]:
        """Return the queues that are paused. It is read from the file only after a change."""
        paused = self._paused
        if paused is None:
            with self._pause_lock:
                paused = self._paused = frozenset(row[0] for row in self._read("SELECT queue FROM paused_queues"))
        return paused

    def forget_names(self, queue: str, name: str | None = None) -> int:
        """Let a name that is blocked be used again, or all names of the queue; return how many were blocked."""
        return self._in_batches(lambda connection, _tally: names.forget(connection, queue, name, BATCH))

    def _stored(self, where: str, parameters: tuple[object, ...]) -> StoredTask | None:
        found = self._read(f"{rows.SELECT_TASK} WHERE {where}", parameters)
        return StoredTask(**rows.task_fields(found[0])) if found else None

    def _newest_id(self) -> int:
        return int(self._read("SELECT coalesce(max(id), 0) FROM tasks")[0][0])

    def _remove_all(self, queue: str, states: tuple[State, ...]) -> int:
        newest = self._newest_id()
        where = "id IN (SELECT id FROM tasks WHERE queue = ? AND state = ? AND id <= ? LIMIT ?)"
        return sum(
            self._in_batches(
                lambda connection, tally, state=state: self._remove(  # type: ignore[misc] # binds it now
                    connection, where, (queue, state, newest, BATCH), tally
                )
            )
            for state in states
        )

    def _start_anew(
        self, connection: sqlite3.Connection, tally: Tally, task_id: int, queue: str, name: str, state: str
    ) -> RetryOutcome:
        if state != "failed":
            return "not failed"
        if names.is_live(connection, queue, name):
            return "name taken"
        connection.execute(_START_ANEW, (self._now_usec(), task_id))
        tally[queue, "failed"] -= 1
        tally[queue, "ready"] += 1
        return "retried"


def _cut(found: list[TaskSummary], limit: int) -> TaskPage:
    found.sort(key=lambda task: task.id, reverse=True)
    page = tuple(found[:limit])
    return TaskPage(tasks=page, next_before_id=page[-1].id if page and len(found) > limit else None)
