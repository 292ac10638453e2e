"""How many push tasks wait: of each queue, and ahead of a task.

Each answer is one statement, whatever the number of queues and tasks. Other threads of the server run between two
statements, so a page that needs many of them is slow while tasks run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deferred_middleware.server.store.records import Lane

MOST_COUNTED = 10_000
"""Of each queue and target, a backlog counts at most this many due tasks, and as many later ones."""

Read = Callable[[str, dict[str, Any]], list[Any]]

_READY = "state = 'ready' AND method <> 'PULL'"
_IN_LANE = f"FROM tasks WHERE {_READY} AND queue = lanes.queue AND target = lanes.target"
# Each step finds the next lane in the index, so the cost depends on the number of lanes and not on the number of tasks.
_BACKLOGS = f"""
    WITH RECURSIVE lanes (queue, target) AS (
        SELECT * FROM (SELECT queue, target FROM tasks WHERE {_READY} ORDER BY queue, target LIMIT 1)
        UNION ALL
        SELECT next.queue, next.target FROM lanes JOIN tasks AS next ON next.id = coalesce(
            (SELECT id FROM tasks
                WHERE {_READY} AND queue = lanes.queue AND target > lanes.target ORDER BY target, eta_usec LIMIT 1),
            (SELECT id FROM tasks
                WHERE {_READY} AND queue > lanes.queue ORDER BY queue, target, eta_usec LIMIT 1)))
    SELECT queue, target,
        (SELECT count(*) FROM (SELECT 1 {_IN_LANE} AND eta_usec <= :now LIMIT :most)),
        (SELECT count(*) FROM (SELECT 1 {_IN_LANE} AND eta_usec > :now LIMIT :most)),
        (SELECT sum(retry_count > 0) FROM (
            SELECT retry_count {_IN_LANE} AND eta_usec > :now ORDER BY eta_usec LIMIT :most)),
        (SELECT eta_usec {_IN_LANE} AND eta_usec > :now ORDER BY eta_usec LIMIT 1),
        (SELECT eta_usec {_IN_LANE} AND id NOT IN (SELECT value FROM json_each(:running)) ORDER BY eta_usec LIMIT 1)
    FROM lanes WHERE :queue IN ('', queue)"""
_AHEAD = f"""
    SELECT wanted.id, (SELECT count(*) FROM (
        SELECT 1 FROM tasks WHERE {_READY} AND queue = wanted.queue AND target = wanted.target
            AND (eta_usec, id) < (wanted.eta_usec, wanted.id) AND id NOT IN (SELECT value FROM json_each(:running))
        LIMIT :most))
    FROM tasks AS wanted WHERE wanted.id IN (SELECT value FROM json_each(:ids))"""


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """How many ready push tasks of a queue are due, scheduled for a later ETA, or wait to be retried.

    ``next_eta_usec`` is the earliest ETA of the tasks that are not due, and ``oldest_eta_usec`` that of all of them,
    None if there are none.
    """

    due: int = 0
    scheduled: int = 0
    retrying: int = 0
    next_eta_usec: int | None = None
    oldest_eta_usec: int | None = None


def backlogs(read: Read, now_usec: int, running: Mapping[Lane, Sequence[int]], queue: str = "") -> dict[str, Backlog]:
    """Count the ready push tasks of each queue that has any, or of one ``queue``, up to :data:`MOST_COUNTED`.

    ``running`` are the tasks that have begun, which are ready in the database.
    """
    found: dict[str, Backlog] = {}
    parameters = {"now": now_usec, "most": MOST_COUNTED, "queue": queue, "running": _ids(running)}
    for name, target, due, later, retrying, next_usec, oldest_usec in read(_BACKLOGS, parameters):
        before = found.get(name, Backlog())
        found[name] = Backlog(
            due=before.due + max(0, due - len(running.get(Lane(name, target), ()))),
            scheduled=before.scheduled + later - (retrying or 0),
            retrying=before.retrying + (retrying or 0),
            next_eta_usec=_earlier(before.next_eta_usec, next_usec),
            oldest_eta_usec=_earlier(before.oldest_eta_usec, oldest_usec),
        )
    return found


def ahead_of(
    read: Read, task_ids: Sequence[int], running: Mapping[Lane, Sequence[int]], most: int
) -> dict[int, tuple[int, bool]]:
    """Return how many tasks of its queue and target begin before each task, at most ``most``, and whether more do."""
    parameters = {"ids": json.dumps(list(task_ids)), "running": _ids(running), "most": most + 1}
    return {task_id: (min(number, most), number > most) for task_id, number in read(_AHEAD, parameters)}


def _ids(running: Mapping[Lane, Sequence[int]]) -> str:
    return json.dumps([task_id for lane in running.values() for task_id in lane])


def _earlier(*etas: int | None) -> int | None:
    return min((usec for usec in etas if usec is not None), default=None)
