"""How tasks fail: dead letters and failing tasks, in groups by the exception's type and the place in the app's code.

Each task has the group of its last attempt, if that failed. The numbers of tasks in a group are kept by triggers
(``schema.sql``), so nothing has to be counted, however many tasks there are.
"""

from __future__ import annotations

import dataclasses
import functools
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deferred_middleware.server.store import rows
from deferred_middleware.server.store.counts import Tally
from deferred_middleware.server.store.database import BATCH, Database
from deferred_middleware.server.store.records import Completion, RetryOutcome, TaskPage
from deferred_middleware.server.store.statistics.traceback_text import FailureSite

MOST_GROUPS = 10_000
"""Beyond this number, new failures share a group."""
DAYS_KEPT = 7
"""How long a group without tasks is kept."""

_NOTE = """
    INSERT INTO failures (key, exception, message, file, line, function, source, first_usec, last_usec, attempts)
    VALUES (:key, :exception, :message, :file, :line, :function, :source, :first_usec, :last_usec, :attempts)
    ON CONFLICT (key) DO UPDATE SET message = excluded.message, line = excluded.line,
        last_usec = max(last_usec, excluded.last_usec), attempts = attempts + excluded.attempts
    RETURNING id"""
_COLUMNS = "id, exception, message, file, line, function, source, first_usec, last_usec, attempts, dead, failing"
_GROUPS = f"""
    SELECT {_COLUMNS} FROM failures
    WHERE (dead + failing > 0) = ? AND (last_usec, id) < (?, ?) ORDER BY last_usec DESC, id DESC LIMIT ?"""
_GROUP = f"SELECT {_COLUMNS} FROM failures WHERE id = ?"
_TASKS = f"""
    SELECT {rows.TASK_COLUMNS} FROM tasks WHERE failure = ? AND state = ? AND id < ? ORDER BY id DESC LIMIT ?"""
# Tasks that are running are ready in the database.
_STATES = ("failed", "ready")
_DEAD_AFTER = """
    SELECT id, queue, name, state FROM tasks WHERE failure = ? AND state = 'failed' AND id > ? AND id <= ?
    ORDER BY id LIMIT ?"""
_MAKE_DUE = """
    UPDATE tasks SET eta_usec = ? WHERE id IN (
        SELECT id FROM tasks WHERE failure = ? AND state = 'ready' AND eta_usec > ? AND method <> 'PULL' LIMIT ?)"""
_PRUNE = "DELETE FROM failures WHERE (dead + failing > 0) = 0 AND last_usec < ?"
_SET = "UPDATE tasks SET failure = ? WHERE id = ?"
_FORGET = "UPDATE tasks SET failure = NULL WHERE id = ? AND failure IS NOT NULL"
_NO_ID_ABOVE = 2**63 - 1
_OTHERS = FailureSite(exception="other failures")


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Tasks that failed in the same way.

    ``dead`` of them are dead letters, and ``failing`` will be tried again or are running. ``attempts`` failed so from
    ``first_usec`` to ``last_usec``; ``message`` and ``line`` are those of the last one.
    """

    id: int
    exception: str
    message: str
    file: str
    line: int
    function: str
    source: str
    first_usec: int
    last_usec: int
    attempts: int
    dead: int
    failing: int


@dataclass(frozen=True, kw_only=True)
class GroupPage:
    """Some groups, the one that failed last first. ``next_before`` is the begin of the next page, if there is one."""

    groups: tuple[FailureGroup, ...]
    next_before: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class GroupRetry:
    """What a retry of a group did: dead letters that run again, and tasks whose back-off was ended."""

    retried: int
    made_due: int


def note(connection: sqlite3.Connection, sites: Iterable[tuple[FailureSite, int]]) -> dict[str, int]:
    """Count attempts that failed, each given with the time of its end; return the groups' ids by their keys."""
    known: dict[str, dict[str, object]] = {}
    for site, usec in sites:
        entry = known.get(site.key)
        if entry is None:
            known[site.key] = {**vars(site), "key": site.key, "first_usec": usec, "last_usec": usec, "attempts": 1}
        else:
            entry.update(message=site.message, line=site.line, last_usec=usec, attempts=int(str(entry["attempts"])) + 1)
    return {key: _group_id(connection, key, entry) for key, entry in known.items()}


def _group_id(connection: sqlite3.Connection, key: str, entry: dict[str, object]) -> int:
    """Count attempts in their group; return its ID."""
    if not connection.execute("SELECT 1 FROM failures WHERE key = ?", (key,)).fetchone():
        (number,) = connection.execute("SELECT count(*) FROM failures").fetchone()
        if number >= MOST_GROUPS:
            entry.update(vars(_OTHERS), key=_OTHERS.key)
    group_id: int = connection.execute(_NOTE, entry).fetchall()[0][0]
    return group_id


def write(connection: sqlite3.Connection, completions: Sequence[Completion]) -> None:
    """Write the groups of tasks whose results have just been written; a task that succeeded has none any more."""
    failed = [(completion, completion.failure) for completion in completions if completion.failure is not None]
    if failed:
        groups = note(connection, [(site, _end_of(completion)) for completion, site in failed])
        connection.executemany(_SET, [(groups[site.key], completion.task_id) for completion, site in failed])
    succeeded = [(one.task_id,) for one in completions if one.failure is None]
    if succeeded:
        connection.executemany(_FORGET, succeeded)


def _end_of(completion: Completion) -> int:
    return completion.attempt.started_usec + completion.attempt.duration_usec


def prune(connection: sqlite3.Connection, now_usec: int) -> None:
    """Delete old groups that have no tasks."""
    connection.execute(_PRUNE, (now_usec - DAYS_KEPT * 24 * 3600 * 1_000_000,))


class TaskFailures:
    """The groups of a task store. None of the operations wakes the scheduler. Any thread may call any method."""

    def __init__(
        self,
        database: Database,
        reset: Callable[[sqlite3.Connection, Tally, int, str, str, str], RetryOutcome],
    ) -> None:
        self._database = database
        self._reset = reset

    def groups(self, *, solved: bool = False, before: tuple[int, int] | None = None, limit: int = 50) -> GroupPage:
        """Return groups that have tasks, or with ``solved`` those that have none any more."""
        found = self._database.read(_GROUPS, (not solved, *(before or (_NO_ID_ABOVE, _NO_ID_ABOVE)), limit + 1))
        groups = tuple(_group(row) for row in found[:limit])
        more = len(found) > limit
        return GroupPage(groups=groups, next_before=(groups[-1].last_usec, groups[-1].id) if more else None)

    def group(self, group_id: int) -> FailureGroup | None:
        """Return a group, or None if there is none with this id."""
        found = self._database.read(_GROUP, (group_id,))
        return _group(found[0]) if found else None

    def group_of(self, task_id: int) -> int | None:
        """Return the group of a task whose last attempt failed; None for other tasks."""
        found = self._database.read("SELECT failure FROM tasks WHERE id = ?", (task_id,))
        return found[0][0] if found else None

    def tasks(self, group_id: int, *, before_id: int | None = None, limit: int = 50) -> TaskPage:
        """Return the newest tasks of a group."""
        before = _NO_ID_ABOVE if before_id is None else before_id
        found = [
            rows.summary(row)
            for state in _STATES
            for row in self._database.read(_TASKS, (group_id, state, before, limit + 1))
        ]
        found.sort(key=lambda task: task.id, reverse=True)
        page = tuple(self._database.claims.as_they_stand(found[:limit]))
        return TaskPage(tasks=page, next_before_id=page[-1].id if len(found) > limit else None)

    def retry(self, group_id: int) -> GroupRetry:
        """Run all dead letters of a group again, and make its tasks due that wait for another attempt.

        A dead letter is left as it is if a later task has its name. Tasks that fail after this call began are left too.
        """
        newest_id = int(self._database.read("SELECT coalesce(max(id), 0) FROM tasks")[0][0])
        now_usec = self._database.now_usec()

        def make_due(connection: sqlite3.Connection, _tally: Tally) -> int:
            return connection.execute(_MAKE_DUE, (now_usec, group_id, now_usec, BATCH)).rowcount

        # Before the dead letters: those that run again may soon wait for another attempt.
        made_due = self._database.write_in_batches(make_due)
        last_id = retried = 0
        while True:
            some = functools.partial(self._retry_some, group_id, last_id, newest_id)
            outcomes, last_id = self._database.write(some)
            retried += outcomes.count("retried")
            if len(outcomes) < BATCH:
                return GroupRetry(retried=retried, made_due=made_due)

    def _retry_some(
        self, group_id: int, after_id: int, newest_id: int, connection: sqlite3.Connection, tally: Tally
    ) -> tuple[list[RetryOutcome], int]:
        found = connection.execute(_DEAD_AFTER, (group_id, after_id, newest_id, BATCH)).fetchall()
        outcomes = [self._reset(connection, tally, *row) for row in found]
        return outcomes, found[-1][0] if found else newest_id


def _group(row: tuple[object, ...]) -> FailureGroup:
    names = [field.name for field in dataclasses.fields(FailureGroup)]
    return FailureGroup(**dict(zip(names, row, strict=True)))  # type: ignore[arg-type] # the columns have these types
