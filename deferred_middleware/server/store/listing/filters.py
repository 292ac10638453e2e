"""Filters of tasks as conditions of SQL.

    condition = condition_of(TaskFilter(name="welcome", text="alice"), now_usec)
    store.queries.find(queue="mail", also=condition)

A list reads a bounded number of tasks for one page, whatever the filter, so its cost does not depend on how many tasks
there are.
"""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from deferred_middleware.wire.compression import decompress, looks_compressed

_MAX_DECOMPRESSED_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Destination:
    """The tasks that go to one service: by the target of their queue in ``queues``, or by their own.

    ``elsewhere`` are all queues that have a target. A task's own target is one of ``targets``, or ``version`` after an
    instance and a dot. These are in lower case, and upper case doesn't matter.
    """

    queues: tuple[str, ...]
    elsewhere: tuple[str, ...]
    targets: tuple[str, ...]
    version: str


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Which tasks to list, besides their queue, state and function.

    ``name`` and ``text`` are parts of a task's name and of its payload. The tasks were added at least ``older_seconds``
    and at most ``newer_seconds`` ago. Their last attempt took at least ``slower_seconds`` and at most
    ``faster_seconds``. With ``due``, their ETA has been reached.
    """

    name: str | None = None
    text: str | None = None
    older_seconds: float | None = None
    newer_seconds: float | None = None
    slower_seconds: float | None = None
    faster_seconds: float | None = None
    destination: Destination | None = None
    due: bool = False


class Condition(NamedTuple):
    """A condition of SQL on the table ``tasks``, and its parameters. ``reads_payloads``: it is slow."""

    sql: str
    parameters: tuple[object, ...]
    reads_payloads: bool = False


def condition_of(wanted: TaskFilter, now_usec: int) -> Condition | None:
    """Return the condition of a filter; None if it takes every task."""
    conditions: list[str] = []
    parameters: list[object] = []

    def add(condition: str, *values: object) -> None:
        conditions.append(condition)
        parameters.extend(values)

    if wanted.name is not None:
        add("instr(lower(name), lower(?))", wanted.name)
    if wanted.due:
        add("eta_usec <= ?", now_usec)
    if wanted.older_seconds is not None:
        add("created_usec <= ?", now_usec - int(wanted.older_seconds * 1e6))
    if wanted.newer_seconds is not None:
        add("created_usec >= ?", now_usec - int(wanted.newer_seconds * 1e6))
    if wanted.destination is not None:
        condition, values = _destination(wanted.destination)
        add(condition, *values)
    for sign, seconds in ((">=", wanted.slower_seconds), ("<=", wanted.faster_seconds)):
        if seconds is not None:
            add(f"{LAST_DURATION} {sign} ?", int(seconds * 1e6))
    if wanted.text is not None:
        # The last one, because it is the slowest.
        add("(SELECT body_has(body, ?) FROM payloads WHERE task_id = tasks.id)", wanted.text)
    if not conditions:
        return None
    return Condition(" AND ".join(conditions), tuple(parameters), wanted.text is not None)


# The attempt of a task that succeeded at once is in its own row.
LAST_DURATION = """coalesce(
    (SELECT duration_usec FROM attempts WHERE task_id = tasks.id ORDER BY number DESC LIMIT 1),
    (SELECT first_duration_usec FROM tasks AS row WHERE row.id = tasks.id))"""


def _destination(wanted: Destination) -> tuple[str, list[str]]:
    in_queues = f"queue IN ({', '.join('?' * len(wanted.queues))})"
    not_elsewhere = f"queue NOT IN ({', '.join('?' * len(wanted.elsewhere))})"
    own = f"lower(target) IN ({', '.join('?' * len(wanted.targets))})"
    # An instance has no dot.
    instance = "(target LIKE ? ESCAPE '\\' AND target NOT LIKE ? ESCAPE '\\')"
    version = wanted.version.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return (
        f"({in_queues} OR ({not_elsewhere} AND ({own} OR {instance})))",
        [*wanted.queues, *wanted.elsewhere, *wanted.targets, f"_%.{version}", f"%.%.{version}"],
    )


def install(connection: sqlite3.Connection) -> None:
    """Let a connection use the conditions."""
    connection.create_function("body_has", 2, body_has, deterministic=True)


def body_has(body: bytes, text: str) -> bool:
    """Tell whether a payload has a text in it, also if it is compressed; upper and lower case are different."""
    wanted = text.encode("utf-8", "surrogatepass")
    if wanted in body:
        return True
    if not looks_compressed(body):
        return False
    try:
        return wanted in decompress(body, _MAX_DECOMPRESSED_BYTES).content
    except zlib.error:
        return False  # other content that begins like compressed data
