"""The figures of a queue that the taskqueue API and people ask for; no task is counted for them.

What waits in a queue, and for what: its turn, its ETA, or another attempt.

Looking at tasks: lists of them, page by page, and everything about one.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from deferred_middleware.server.store import rows, task_names
from deferred_middleware.server.store.database import BATCH, StoreCore
from deferred_middleware.server.store.records import AttemptRecord, Lane, State, StoredTask, TaskPage, TaskSummary
from deferred_middleware.server.store.writer import Tally

# Two statements, because SQLite reads all that has the same queue for "(queue, target) > (?, ?)".
NEXT_TARGET = """
    SELECT queue, target, eta_usec FROM tasks
    WHERE state = 'ready' AND method <> 'PULL' AND queue = ? AND target > ? ORDER BY target, eta_usec LIMIT 1"""
NEXT_QUEUE = """
    SELECT queue, target, eta_usec FROM tasks
    WHERE state = 'ready' AND method <> 'PULL' AND queue > ? ORDER BY queue, target, eta_usec LIMIT 1"""
OLDEST_RUNNING = "SELECT min(eta_usec) FROM tasks WHERE queue = ? AND state = 'running'"
OLDEST_LEASABLE = """
    SELECT eta_usec FROM tasks WHERE state = 'ready' AND method = 'PULL' AND queue = ? ORDER BY eta_usec, id LIMIT 1"""


@dataclass(frozen=True, kw_only=True)
class QueueFigures:
    """How a queue stands.

    ``tasks`` are those that are not finished. ``oldest_eta_usec`` is the earliest ETA among them, None when there are
    none. What was executed, run or leased, is known since the server was started.
    """

    tasks: int
    oldest_eta_usec: int | None
    in_flight: int
    executed_last_minute: int
    executed_last_hour: int


class StoreFigures(StoreCore):
    """What the store knows of its queues at a glance."""

    def lanes(self) -> list[tuple[Lane, int]]:
        """Return each lane that has tasks waiting, with the earliest ETA among them."""
        lanes: list[tuple[Lane, int]] = []
        # Jumps from lane to lane in the index: the cost grows with the lanes, not with the tasks in them. The name of a
        # queue is never empty, so "" comes before all of them.
        found = self._lanes_reader.read(NEXT_QUEUE, ("",))
        while found:
            queue, target, eta_usec = found[0]
            lanes.append((Lane(queue, target), eta_usec))
            found = self._lanes_reader.read(NEXT_TARGET, (queue, target)) or self._lanes_reader.read(
                NEXT_QUEUE, (queue,)
            )
        return lanes

    def next_eta_usec(self) -> int | None:
        """Return the earliest ETA of the tasks that wait, None when none does."""
        return min((eta_usec for _lane, eta_usec in self.lanes()), default=None)

    def figures(self, queue: str) -> QueueFigures:
        """Return how a queue stands, be it known or not."""
        etas = [eta_usec for lane, eta_usec in self.lanes() if lane.queue == queue]
        etas += [row[0] for row in self._read(OLDEST_LEASABLE, (queue,))]
        etas += [row[0] for row in self._read(OLDEST_RUNNING, (queue,)) if row[0] is not None]
        minute, hour = self._counts.executed(queue)
        return QueueFigures(
            tasks=self._counts.of(queue, "ready", "running"),
            oldest_eta_usec=min(etas, default=None),
            in_flight=self._counts.of(queue, "running"),
            executed_last_minute=minute,
            executed_last_hour=hour,
        )


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


# How many tasks are looked at for one page when their URLs have to be read.
_LOOKED_AT = 20_000

_NEWEST = "FROM tasks WHERE queue = ? AND state = ? AND id < ? ORDER BY id DESC LIMIT ?"
_NEWEST_OF_ALL = "FROM tasks WHERE state <> 'held' AND id < ? ORDER BY id DESC LIMIT ?"
_NO_ID_ABOVE = 2**63 - 1


_UNFINISHED = f"{rows.SELECT_TASK} WHERE queue = ? AND state IN ('ready', 'running')"


class StoreBrowsing(StoreCore):
    """The store's lists for people, and for the taskqueue API."""

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

    def unfinished(
        self, queue: str, *, from_name: str = "", from_eta_usec: int | None = None, limit: int = 100
    ) -> list[StoredTask]:
        """Return unfinished tasks of a queue, ordered by name, beginning with ``from_name``.

        With ``from_eta_usec`` they are ordered by ETA and then by name, which looks at all of the queue's tasks.
        """
        if from_eta_usec is None:
            found = self._read(f"{_UNFINISHED} AND name >= ? ORDER BY name LIMIT ?", (queue, from_name, limit))
        else:
            found = self._read(
                f"{_UNFINISHED} AND (eta_usec, name) >= (?, ?) ORDER BY eta_usec, name LIMIT ?",
                (queue, from_eta_usec, from_name, limit),
            )
        return [StoredTask(**rows.task_fields(row)) for row in found]

    def is_blocked(self, queue: str, name: str) -> bool:
        """Tell whether a name can't be used because of a task that is over."""
        known = self._reader.use(lambda connection: task_names.find(connection, queue, name, self._now_usec()))
        return known is not None and known.outcome == "tombstoned"

    def _stored(self, where: str, parameters: tuple[object, ...]) -> StoredTask | None:
        found = self._read(f"{rows.SELECT_TASK} WHERE {where}", parameters)
        return StoredTask(**rows.task_fields(found[0])) if found else None


def _cut(found: list[TaskSummary], limit: int) -> TaskPage:
    found.sort(key=lambda task: task.id, reverse=True)
    page = tuple(found[:limit])
    return TaskPage(tasks=page, next_before_id=page[-1].id if page and len(found) > limit else None)
