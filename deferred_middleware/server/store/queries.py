"""What the store answers without changing anything: tasks, lists of tasks, and how queues stand.

Numbers of tasks come from the counts that the store keeps. Only :meth:`TaskQueries.backlogs` counts rows.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deferred_middleware.server.store import rows
from deferred_middleware.server.store.database import Database
from deferred_middleware.server.store.listing import backlogs, extracts
from deferred_middleware.server.store.listing.backlogs import Backlog
from deferred_middleware.server.store.listing.extracts import Extract
from deferred_middleware.server.store.listing.filters import Condition
from deferred_middleware.server.store.records import AttemptRecord, Lane, State, StoredTask, TaskPage, TaskSummary

Waiting = Literal["scheduled", "retrying"]
"""What a ready task waits for: its own ETA, or the end of its back-off."""

# How many tasks, and how many payloads, a search reads for one page.
_MOST_SEARCHED = 20_000
_MOST_PAYLOADS_SEARCHED = 2_000

_NO_ID_ABOVE = 2**63 - 1

_READY = "state = 'ready' AND method <> 'PULL'"
# Two statements, because for "(queue, target) > (?, ?)" SQLite would read all rows with the same queue.
NEXT_TARGET = f"""
    SELECT queue, target, eta_usec FROM tasks
    WHERE {_READY} AND queue = ? AND target > ? ORDER BY target, eta_usec LIMIT 1"""
NEXT_QUEUE = f"""
    SELECT queue, target, eta_usec FROM tasks
    WHERE {_READY} AND queue > ? ORDER BY queue, target, eta_usec LIMIT 1"""
# The same for one lane, if tasks of it are claimed.
NEXT_UNCLAIMED = f"""
    SELECT eta_usec FROM tasks WHERE {_READY} AND queue = ? AND target = ?
        AND id NOT IN (SELECT value FROM json_each(?))
    ORDER BY eta_usec, id LIMIT 1"""
OLDEST_LEASABLE = """
    SELECT eta_usec FROM tasks WHERE state = 'ready' AND method = 'PULL' AND queue = ? ORDER BY eta_usec, id LIMIT 1"""
_NEWEST = "FROM tasks WHERE queue = ? AND state = ? AND id < ? ORDER BY id DESC LIMIT ?"
_NEWEST_CLAIMED = "FROM tasks WHERE id IN (SELECT value FROM json_each(?)) AND id < ? ORDER BY id DESC LIMIT ?"
# The tasks of transactions, and not those of purges. Names of transactions are hexadecimal numbers.
_HELD = f"state = 'held' AND hold < '{rows.PURGE_PREFIX}'"
_NOT_HELD = "state <> 'held'"
_OR_HELD = f"({_NOT_HELD} OR {_HELD})"
_ANY_HELD = f"SELECT 1 FROM tasks WHERE {_HELD} LIMIT 1"
_NEWEST_HELD = f"FROM tasks WHERE {_HELD} AND ? IN ('', queue) AND id < ? ORDER BY id DESC LIMIT ?"
_NEWEST_OF_ALL = f"FROM tasks WHERE {_NOT_HELD} AND id < ? ORDER BY id DESC LIMIT ?"
_UNFINISHED = f"{rows.SELECT_TASK} WHERE queue = ? AND state IN ('ready', 'running')"
_LISTED = f"""
    {rows.SELECT_TASK} WHERE queue = :queue AND state = 'ready' AND id > :after AND method <> 'PULL'
    ORDER BY id LIMIT :limit"""
_ATTEMPT_FIELDS = [field.name for field in dataclasses.fields(AttemptRecord)]
_ATTEMPTS = f"SELECT {', '.join(_ATTEMPT_FIELDS)} FROM attempts WHERE task_id = ? ORDER BY number"


@dataclass(frozen=True, kw_only=True)
class QueueStatistics:
    """How a queue stands.

    ``tasks`` is the number of unfinished tasks. ``oldest_eta_usec`` is the earliest ETA of these, None if there are
    none. The executed tasks were run or leased, and are known since the server was started.
    """

    tasks: int
    oldest_eta_usec: int | None
    in_flight: int
    executed_last_minute: int
    executed_last_hour: int


class TaskQueries:
    """Reads of a task store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # In the database, claimed tasks are ready like others.
        self._claims = database.claims

    # One task.

    def get(self, queue: str, name: str, *, or_held: bool = False) -> StoredTask | None:
        """Return the newest task of this name, or None if there is none; see :meth:`get_by_id`."""
        seen = _OR_HELD if or_held else _NOT_HELD
        return self._task(f"queue = ? AND name = ? AND {seen} ORDER BY id DESC LIMIT 1", (queue, name))

    def get_by_id(self, task_id: int, *, or_held: bool = False) -> StoredTask | None:
        """Return a task, or None if there is none with this id.

        With ``or_held``, it may be a task that is held until its transaction is committed.
        """
        return self._task(f"id = ? AND {_OR_HELD if or_held else _NOT_HELD}", (task_id,))

    def is_claimed(self, task_id: int) -> bool:
        """Return whether a task runs, or is the next to."""
        return self._claims.is_claimed(task_id)

    def attempts(self, task_id: int) -> list[AttemptRecord]:
        """Return the attempts of a task that are kept, oldest first."""
        found = self._database.read(_ATTEMPTS, (task_id,))
        if not found:
            return [rows.first_success(row) for row in self._database.read(rows.FIRST_SUCCESS, (task_id,))]
        return [AttemptRecord(**dict(zip(_ATTEMPT_FIELDS, row, strict=True))) for row in found]

    def extracts(self, task_ids: Sequence[int], *, most_bytes: int) -> dict[int, Extract]:
        """Return parts of tasks for a list; payloads of more than ``most_bytes`` are left out."""
        return extracts.extracts(self._database.read, task_ids, most_bytes=most_bytes)

    def is_blocked(self, queue: str, name: str) -> bool:
        """Return whether a name can't be used because a task that had it is finished or deleted."""

        def find(connection: sqlite3.Connection) -> bool:
            known = rows.find_name(connection, queue, name, self._database.steady_clock.now_usec())
            return known is not None and known.outcome == "tombstoned"

        return self._database.reader.use(find)

    # Lists of tasks.

    def find(
        self,
        *,
        queue: str | None = None,
        state: State | None = None,
        contains: str | None = None,
        waiting: Waiting | None = None,
        also: Condition | None = None,
        before_id: int | None = None,
        limit: int = 100,
    ) -> TaskPage:
        """Return the newest tasks of a queue and in a state, at most ``limit`` of them.

        Without a state, tasks that are held until their transactions are committed are among them.
        ``contains`` is a part of their URL, such as a function's name. ``waiting`` selects ready tasks by what they
        wait for, and ``also`` by anything else. ``before_id`` is the ``next_before_id`` of the page before. All pages
        cost about the same. With ``contains``, ``waiting`` or ``also``, a page reads a bounded number of tasks, so it
        may be empty without being the last.
        """
        if waiting is not None:
            state = "ready"
        before = _NO_ID_ABOVE if before_id is None else before_id
        lists: list[tuple[str, tuple[str, ...]]]
        if state == "running":
            running = self._claims.running_by_lane()
            ids = [task_id for lane, found in running.items() if queue in (None, lane.queue) for task_id in found]
            lists = [(_NEWEST_CLAIMED, (json.dumps(ids),))]
        elif queue is None and state is None:
            lists = [(_NEWEST_OF_ALL, ())]
        else:
            # One list for each queue and state. The index has each of them in order, so their heads are the newest.
            lists = [
                (_NEWEST, key)
                for key in self._database.counts.numbers()
                if queue in (None, key[0]) and state in (None, key[1])
            ]
        if state is None and self._database.read(_ANY_HELD):
            lists.append((_NEWEST_HELD, (queue or "",)))
        conditions: list[str] = []
        parameters: list[Any] = []
        if contains is not None:
            conditions.append("(instr(lower(url), ?) OR instr(lower(url), ?))")
            parameters += [contains.lower(), urllib.parse.quote(contains, safe="/~").lower()]
        if waiting is not None:
            conditions.append(
                f"method <> 'PULL' AND eta_usec > ? AND retry_count {'> 0' if waiting == 'retrying' else '= 0'}"
            )
            parameters.append(self._database.now_usec())
        if also is not None:
            conditions.append(also.sql)
            parameters += also.parameters
        if not conditions:
            page = self._page(lists, before, limit)
        else:
            most = _MOST_PAYLOADS_SEARCHED if also is not None and also.reads_payloads else _MOST_SEARCHED
            page = self._filtered_page(lists, before, limit, most, " AND ".join(conditions), parameters)
        tasks = self._claims.as_they_stand(page.tasks)
        # A task may be claimed, or get its result, between two of these reads.
        return dataclasses.replace(page, tasks=tuple(task for task in tasks if state in (None, task.state)))

    def unfinished(
        self, queue: str, *, from_name: str = "", from_eta_usec: int | None = None, limit: int = 100
    ) -> list[StoredTask]:
        """Return unfinished tasks of a queue, ordered by name, beginning with ``from_name``.

        With ``from_eta_usec``, they are ordered by ETA and then by name, which reads all tasks of the queue.
        """
        if from_eta_usec is None:
            sql, parameters = f"{_UNFINISHED} AND name >= ? ORDER BY name LIMIT ?", [queue, from_name, limit]
        else:
            sql = f"{_UNFINISHED} AND (eta_usec, name) >= (?, ?) ORDER BY eta_usec, name LIMIT ?"
            parameters = [queue, from_eta_usec, from_name, limit]
        return [self._claims.as_it_stands(rows.stored_task(row)) for row in self._database.read(sql, parameters)]

    def version(self) -> int:
        """Return a number that is another one after each change of the database or of the claims."""
        return int(self._database.read("PRAGMA data_version")[0][0]) + (self._claims.changes << 32)

    def listed(self, queue: str, *, after_id: int = 0, limit: int = 100) -> list[StoredTask]:
        """Return unfinished push tasks of a queue, the oldest first, beginning after ``after_id``."""
        found = self._database.read(_LISTED, {"queue": queue, "after": after_id, "limit": limit})
        return [self._claims.as_it_stands(rows.stored_task(row)) for row in found]

    def newest_created_usec(self) -> int | None:
        """Return when the last task was added, None if there is no task."""
        found = self._database.read("SELECT created_usec FROM tasks ORDER BY id DESC LIMIT 1")
        return found[0][0] if found else None

    def latest_known_usec(self) -> int | None:
        """Return the latest time that the wall clock is known to have shown, None if none is known."""
        known = (self.newest_created_usec(), self._database.last_wall_usec)
        return max((usec for usec in known if usec is not None), default=None)

    # Queues.

    def counts(self) -> dict[str, dict[State, int]]:
        """Return, for each queue that has tasks, how many are in each state."""
        numbers = self._database.counts.numbers()
        for lane, ids in self._claims.running_by_lane().items():
            # The claims are read a moment later than the counts.
            running = min(len(ids), numbers[lane.queue, "ready"])
            numbers[lane.queue, "ready"] -= running
            numbers[lane.queue, "running"] += running
        counts: dict[str, dict[State, int]] = {}
        for (queue, state), number in numbers.items():
            if number:
                counts.setdefault(queue, {})[state] = number  # type: ignore[index] # the schema checks it
        return counts

    def lanes(self) -> list[tuple[Lane, int]]:
        """Return each lane that has ready tasks that aren't claimed, with the earliest ETA among them."""
        read = self._database.lanes_reader.read
        lanes: list[tuple[Lane, int]] = []
        # Before the reads: a claim that ends meanwhile would show a task that is ready in what is read, and finished.
        taken = self._claims.taken_by_lane()
        # Each search finds the next lane in the index, so the cost depends on the number of lanes and not on the number
        # of tasks. A queue's name is never empty, so all of them come after "".
        found = read(NEXT_QUEUE, ("",))
        while found:
            queue, target, eta_usec = found[0]
            lane = Lane(queue, target)
            if lane in taken:
                unclaimed = read(NEXT_UNCLAIMED, (queue, target, json.dumps(taken[lane])))
                lanes += [(lane, row[0]) for row in unclaimed]
            else:
                lanes.append((lane, eta_usec))
            found = read(NEXT_TARGET, (queue, target)) or read(NEXT_QUEUE, (queue,))
        return lanes

    def executed(self, queue: str) -> tuple[int, int]:
        """Return how many tasks of a queue were run or leased in the last minute and in the last hour."""
        return self._database.counts.executed(queue)

    def statistics(self, queue: str) -> QueueStatistics:
        """Return how a queue stands; the queue may be unknown."""
        etas = [eta_usec for lane, eta_usec in self.lanes() if lane.queue == queue]
        etas += [row[0] for row in self._database.read(OLDEST_LEASABLE, (queue,))]
        oldest_claimed = self._claims.oldest_eta_usec(queue)
        etas += [] if oldest_claimed is None else [oldest_claimed]
        counts = self._database.counts
        minute, hour = counts.executed(queue)
        return QueueStatistics(
            tasks=counts.of(queue, "ready", "running"),
            oldest_eta_usec=min(etas, default=None),
            in_flight=self._claims.numbers()[queue],
            executed_last_minute=minute,
            executed_last_hour=hour,
        )

    def ahead_of(self, task_ids: Sequence[int], *, most: int) -> dict[int, tuple[int, bool]]:
        """Return how many tasks begin before each of these, counted up to ``most``, and whether there are more."""
        return backlogs.ahead_of(self._database.read, task_ids, self._claims.running_by_lane(), most)

    def backlog(self, queue: str) -> Backlog:
        """Count the ready push tasks of a queue; see :meth:`backlogs`."""
        return self.backlogs(queue).get(queue, Backlog())

    def backlogs(self, queue: str = "") -> dict[str, Backlog]:
        """Count the ready push tasks of each queue that has any, or of one queue."""
        running = self._claims.running_by_lane()
        return backlogs.backlogs(self._database.read, self._database.now_usec(), running, queue)

    def _task(self, where: str, parameters: Sequence[Any]) -> StoredTask | None:
        found = self._database.read(f"{rows.SELECT_TASK} WHERE {where}", parameters)
        return self._claims.as_it_stands(rows.stored_task(found[0])) if found else None

    def _page(self, lists: Sequence[tuple[str, tuple[str, ...]]], before: int, limit: int) -> TaskPage:
        found = [
            rows.summary(row)
            for select, key in lists
            for row in self._database.read(f"SELECT {rows.TASK_COLUMNS} {select}", (*key, before, limit + 1))
        ]
        return _newest(found, limit)

    def _filtered_page(
        self,
        lists: Sequence[tuple[str, tuple[str, ...]]],
        before: int,
        limit: int,
        most: int,
        condition: str,
        parameters: Sequence[Any],
    ) -> TaskPage:
        found = []
        most = max(limit + 1, most // max(1, len(lists)))
        # The oldest task that was read in each list. Older tasks come with a later page.
        floor = 0
        for select, key in lists:
            searched = (*key, before, most)
            ((number, last_id),) = self._database.read(f"SELECT count(*), min(id) FROM (SELECT id {select})", searched)
            if number == most:
                floor = max(floor, last_id)
            found += self._database.read(
                f"SELECT * FROM (SELECT {rows.TASK_COLUMNS} {select}) AS tasks WHERE {condition} LIMIT ?",
                (*searched, *parameters, limit + 1),
            )
        page = _newest([rows.summary(row) for row in found if row[0] >= floor], limit)
        if page.next_before_id is None and floor:
            return dataclasses.replace(page, next_before_id=floor)
        return page


def _newest(found: list[TaskSummary], limit: int) -> TaskPage:
    found.sort(key=lambda task: task.id, reverse=True)
    page = tuple(found[:limit])
    return TaskPage(tasks=page, next_before_id=page[-1].id if page and len(found) > limit else None)
