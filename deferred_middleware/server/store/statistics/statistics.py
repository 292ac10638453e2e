"""The figures of a task store: series for charts, functions, the slowest attempts, and how queues did lately."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from deferred_middleware.errors import ServerError
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.server.store.database import Database
from deferred_middleware.server.store.statistics.histogram import merged, percentiles
from deferred_middleware.server.store.statistics.spans import (
    ALL_QUEUES,
    PERIOD_SECONDS,
    SLOWEST_ATTEMPTS,
    SPAN_SECONDS,
    TOUCH,
    CountedAttempt,
    Figures,
    Kind,
    Period,
    figures_of,
)

_FLUSHES = "SELECT enqueued FROM statistics WHERE kind = 'queue' AND name = '' AND seconds = 0 AND start_usec = 0"
_COLUMNS = "name, start_usec, enqueued, executed, failed, dead, waited, took"
_OF_NAME = f"""
    SELECT {_COLUMNS} FROM statistics WHERE kind = ? AND seconds = ? AND start_usec >= ? AND name = ?"""
_OF_ALL = f"SELECT {_COLUMNS} FROM statistics WHERE kind = ? AND seconds = ? AND start_usec >= ?"
_NAMES = "SELECT DISTINCT name FROM statistics WHERE kind = ?"
_SLOWEST = f"""
    SELECT queue, task_id, number, started_usec, duration_usec FROM slowest_attempts
    WHERE function = ? AND started_usec >= ? ORDER BY duration_usec DESC LIMIT {SLOWEST_ATTEMPTS}"""
_EXISTS = "SELECT 1 FROM tasks WHERE id = ?"

logger: Final = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One span of a series. Percentiles are microseconds, None if nothing was executed."""

    start_usec: int
    seconds: int
    enqueued: int
    executed: int
    failed: int
    dead: int
    waited_p50: int | None
    waited_p95: int | None
    took_p50: int | None
    took_p95: int | None


@dataclass(frozen=True, kw_only=True)
class FunctionFigures:
    """How a function did. ``executed`` and ``failed`` are numbers of attempts, ``dead`` one of dead letters."""

    name: str
    enqueued: int
    executed: int
    failed: int
    dead: int
    took_p50: int | None
    took_p95: int | None
    took_p99: int | None


@dataclass(frozen=True, kw_only=True)
class QueueFigures:
    """How a queue did in the last hour; ``executed_per_minute`` has 60 numbers, the latest last."""

    executed_per_minute: tuple[int, ...]
    executed: int
    failed: int
    enqueued: int
    waited_p50: int | None
    waited_p95: int | None
    took_p50: int | None
    took_p95: int | None


@dataclass(frozen=True, kw_only=True)
class SlowAttempt:
    """A slow attempt. ``is_stored`` tells whether its task is still in the store."""

    queue: str
    task_id: int
    number: int
    started_usec: int
    duration_usec: int
    is_stored: bool


class TaskStatistics:
    """Counts what happens in a task store, and answers what has happened. Any thread may call any method."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._counters = database.counters

    # Counting.

    def enqueued(self, tasks: Iterable[tuple[str, str]]) -> None:
        """Count tasks that were added, each given as its queue and URL."""
        self._counters.enqueued(tasks)

    def leased(self, queue: str, number: int) -> None:
        """Count pull tasks of a queue that were leased."""
        self._counters.leased(queue, number)

    def ended(self, attempts: Sequence[CountedAttempt]) -> None:
        """Count attempts whose results were written."""
        self._counters.ended(attempts)

    def flush(self) -> None:
        """Write what was counted, and wait for it. It is not an error if the store can't write any more."""
        if self._counters.hurry():
            try:
                # The counts are written with any commit that changes something.
                self._database.write(lambda connection, _tally: connection.execute(TOUCH))
            except (ServerError, sqlite3.Error) as error:
                logger.warning("The last figures are not written: %s", error)

    # Answers.

    def series(self, period: Period, *, queue: str = ALL_QUEUES, function: str | None = None) -> list[Point]:
        """Return the spans of a period until now, the oldest first: of a queue, of a function, or of all queues."""
        kind: Kind = "queue" if function is None else "function"
        name = queue if function is None else function
        seconds = SPAN_SECONDS[kind][period]
        figures = self._read(kind, period, name).get(name, {})
        return [_point(start, seconds, figures.get(start) or Figures()) for start in self._starts(kind, period)]

    def functions(self, period: Period) -> list[FunctionFigures]:
        """Return the functions that had tasks in a period, those with the most attempts first."""
        found = []
        for name, spans in self._read("function", period, None).items():
            took = merged(one.took for one in spans.values())
            p50, p95, p99 = percentiles(took, 50, 95, 99)
            found.append(
                FunctionFigures(
                    name=name,
                    enqueued=sum(one.enqueued for one in spans.values()),
                    executed=sum(one.executed for one in spans.values()),
                    failed=sum(one.failed for one in spans.values()),
                    dead=sum(one.dead for one in spans.values()),
                    took_p50=p50,
                    took_p95=p95,
                    took_p99=p99,
                )
            )
        return sorted(found, key=lambda one: (-one.executed, one.name))

    def queues_last_hour(self) -> dict[str, QueueFigures]:
        """Return how each queue did in the last hour; queues in which nothing happened are left out."""
        starts = self._starts("queue", "hour")[-60:]
        found = {}
        for name, spans in self._read("queue", "hour", None).items():
            lately = [spans.get(start) or Figures() for start in starts]
            waited50, waited95 = percentiles(merged(one.waited for one in lately), 50, 95)
            took50, took95 = percentiles(merged(one.took for one in lately), 50, 95)
            found[name] = QueueFigures(
                executed_per_minute=tuple(one.executed for one in lately),
                executed=sum(one.executed for one in lately),
                failed=sum(one.failed for one in lately),
                enqueued=sum(one.enqueued for one in lately),
                waited_p50=waited50,
                waited_p95=waited95,
                took_p50=took50,
                took_p95=took95,
            )
        found.pop(ALL_QUEUES, None)
        return found

    def slowest(self, function: str, period: Period = "week") -> list[SlowAttempt]:
        """Return the slowest attempts of a function, the slowest first. Of each day, at most ten are known."""
        since_usec = self._database.now_usec() - PERIOD_SECONDS[period] * 1_000_000
        rows = {(row[1], row[2]): row for row in self._database.read(_SLOWEST, (function, since_usec))}
        for name, attempt in self._counters.slow_candidates():
            if name == function and attempt.started_usec >= since_usec:
                key = (attempt.task_id, attempt.number)
                rows[key] = (attempt.queue, *key, attempt.started_usec, attempt.duration_usec)
        ordered = sorted(rows.values(), key=lambda row: -row[4])[:SLOWEST_ATTEMPTS]
        return [
            SlowAttempt(
                queue=row[0],
                task_id=row[1],
                number=row[2],
                started_usec=row[3],
                duration_usec=row[4],
                is_stored=bool(self._database.read(_EXISTS, (row[1],))),
            )
            for row in ordered
        ]

    def _starts(self, kind: Kind, period: Period) -> range:
        """Return when the spans of a period start. The first one may have begun before the period."""
        usec = SPAN_SECONDS[kind][period] * 1_000_000
        current = self._database.now_usec() // usec * usec
        return range(current - PERIOD_SECONDS[period] * 1_000_000, current + 1, usec)

    def _read(self, kind: Kind, period: Period, name: str | None) -> dict[str, dict[int, Figures]]:
        """Return the figures of each name and span of a period."""
        seconds = SPAN_SECONDS[kind][period]
        first_usec = self._starts(kind, period)[0]

        def read(connection: sqlite3.Connection) -> tuple[int, list[tuple[object, ...]]]:
            # Both must be of the same state of the database.
            connection.execute("BEGIN")
            try:
                number = connection.execute(_FLUSHES).fetchone()
                rows = (
                    connection.execute(_OF_ALL, (kind, seconds, first_usec))
                    if name is None
                    else connection.execute(_OF_NAME, (kind, seconds, first_usec, name))
                ).fetchall()
            finally:
                connection.execute("COMMIT")
            return (number[0] if number else 0), rows

        flushes, rows = self._database.reader.use(read)
        found: dict[str, dict[int, Figures]] = {}
        for its_name, start, *columns in rows:
            found.setdefault(str(its_name), {})[int(str(start))] = figures_of(columns)
        for key, figures in self._counters.unwritten(flushes):
            wanted = key.kind == kind and key.seconds == seconds and name in (None, key.name)
            if wanted and key.start_usec >= first_usec:
                found.setdefault(key.name, {}).setdefault(key.start_usec, Figures()).add(figures)
        return found


def _point(start_usec: int, seconds: int, figures: Figures) -> Point:
    waited50, waited95 = percentiles(figures.waited, 50, 95)
    took50, took95 = percentiles(figures.took, 50, 95)
    return Point(
        start_usec=start_usec,
        seconds=seconds,
        enqueued=figures.enqueued,
        executed=figures.executed,
        failed=figures.failed,
        dead=figures.dead,
        waited_p50=waited50,
        waited_p95=waited95,
        took_p50=took50,
        took_p95=took95,
    )
