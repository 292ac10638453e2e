"""Looking at tasks: lists of them, page by page, and everything about one."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Sequence

from deferred_middleware.server.store import rows, task_names
from deferred_middleware.server.store.records import AttemptRecord, State, StoredTask, TaskPage, TaskSummary
from deferred_middleware.server.store.storecore import StoreCore

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
