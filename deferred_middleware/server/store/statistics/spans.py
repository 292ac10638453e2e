"""What happened in spans of time: how many tasks were enqueued and executed, how many failed, how long they took.

An hour, a day and a week are each divided into spans of a fixed length. Older spans are deleted, and the number of
names is bounded, so the number of rows is too.

Counting must not slow the tasks down. So the counts are gathered in memory, and every few seconds the writer adds them
to the rows in a commit that it makes anyway. A server that is killed loses the counts since the last such commit.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from deferred_middleware.server.store.statistics.histogram import Histogram, decode, encode, step_of
from deferred_middleware.server.store.statistics.traceback_text import function_in

Kind: TypeAlias = Literal["queue", "function"]
Period: TypeAlias = Literal["hour", "day", "week"]

PERIOD_SECONDS: dict[Period, int] = {"hour": 3600, "day": 24 * 3600, "week": 7 * 24 * 3600}
SPAN_SECONDS: dict[Kind, dict[Period, int]] = {
    "queue": {"hour": 60, "day": 600, "week": 3600},
    "function": {"hour": 600, "day": 3600, "week": 24 * 3600},
}
"""How long the spans are into which each period is divided."""

ALL_QUEUES = ""
"""The name of all queues together."""
OTHERS = "(others)"
"""The name of the queues or functions that came after the first ones, if there are very many."""

MOST_QUEUES = 200
MOST_FUNCTIONS = 500
SLOWEST_ATTEMPTS = 10
"""How many slow attempts are kept for each function and day."""

TOUCH = "INSERT OR REPLACE INTO statistics VALUES ('queue', '', 0, -1, 0, 0, 0, 0, '', '')"
"""A change without meaning."""

FLUSH_SECONDS = 5.0
"""How often the counts are written at most."""

_MINUTE_USEC = 60_000_000
_DAY_USEC = 24 * 3600 * 1_000_000
_MOST_CANDIDATES = 2000
_FIELDS = "enqueued, executed, failed, dead, waited, took"
_UPSERT = f"INSERT OR REPLACE INTO statistics (kind, name, seconds, start_usec, {_FIELDS}) VALUES (?,?,?,?,?,?,?,?,?,?)"
_ROW = f"SELECT {_FIELDS} FROM statistics WHERE kind = ? AND name = ? AND seconds = ? AND start_usec = ?"
# The number of the last flush is in the table itself, so that a reader sees whether a flush is in what it reads.
_NUMBER_KEY = ("queue", "", 0, 0)
_PRUNE = "DELETE FROM statistics WHERE kind = ? AND seconds = ? AND start_usec < ?"
_KEEP_SLOWEST = f"""
    DELETE FROM slowest_attempts WHERE function = :function AND day_usec = :day AND (task_id, number) NOT IN (
        SELECT task_id, number FROM slowest_attempts WHERE function = :function AND day_usec = :day
        ORDER BY duration_usec DESC LIMIT {SLOWEST_ATTEMPTS})"""
_FLOOR = "SELECT count(*), min(duration_usec) FROM slowest_attempts WHERE function = ? AND day_usec = ?"


class CountedAttempt(NamedTuple):
    """An attempt that is to be counted. ``state`` is that of the task afterwards."""

    queue: str
    url: str
    state: str
    task_id: int
    number: int
    started_usec: int
    waited_usec: int
    duration_usec: int


@dataclass(kw_only=True, slots=True)
class Figures:
    """What was counted in a span, or in several."""

    enqueued: int = 0
    executed: int = 0
    failed: int = 0
    dead: int = 0
    waited: Histogram = field(default_factory=dict)
    took: Histogram = field(default_factory=dict)

    def add(self, other: Figures) -> None:
        """Add the figures of another span."""
        self.enqueued += other.enqueued
        self.executed += other.executed
        self.failed += other.failed
        self.dead += other.dead
        for mine, theirs in ((self.waited, other.waited), (self.took, other.took)):
            for step, number in theirs.items():
                mine[step] = mine.get(step, 0) + number


class SpanKey(NamedTuple):
    """Which row of the table a span is."""

    kind: Kind
    name: str
    seconds: int
    start_usec: int


_SlowAttempt: TypeAlias = tuple[str, int, CountedAttempt]
_Gathered: TypeAlias = dict[tuple[str, str, int], Figures]


def figures_of(row: Sequence[object]) -> Figures:
    """Return the figures of a row of the table, of which these are the columns after the key."""
    enqueued, executed, failed, dead, waited, took = row
    return Figures(
        enqueued=int(str(enqueued)),
        executed=int(str(executed)),
        failed=int(str(failed)),
        dead=int(str(dead)),
        waited=decode(str(waited)),
        took=decode(str(took)),
    )


class SpanCounters:
    """Counts what happens. Any thread may call any method.

    ``now_usec`` is the wall clock's time; ``elapsed`` counts seconds that only grow.
    """

    def __init__(
        self, connection: sqlite3.Connection, now_usec: Callable[[], int], elapsed: Callable[[], float]
    ) -> None:
        self._now_usec = now_usec
        self._elapsed = elapsed
        # Guards all other fields.
        self._lock = threading.Lock()
        # By queue, function and minute. Those in flight are in a transaction that has perhaps been committed.
        self._gathered: _Gathered = {}
        self._in_flight: _Gathered = {}
        self._slow: list[_SlowAttempt] = []
        self._slow_in_flight: list[_SlowAttempt] = []
        # By function and day: an attempt that took no longer is not one of the slowest.
        self._floors: dict[tuple[str, int], int] = {}
        self._names: dict[Kind, set[str]] = {"queue": set(), "function": set()}
        for kind, name in connection.execute("SELECT DISTINCT kind, name FROM statistics"):
            self._names[kind].add(name)
        found = connection.execute(_ROW, _NUMBER_KEY).fetchone()
        self._flushes: int = found[0] if found else 0
        self._pruned_usec = 0
        self._next_flush = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the next commit should write the counts."""
        return bool(self._gathered or self._in_flight) and self._elapsed() >= self._next_flush

    def hurry(self) -> bool:
        """Have the next commit write the counts; return whether there are any."""
        self._next_flush = 0.0
        return self.is_due

    def enqueued(self, tasks: Iterable[tuple[str, str]]) -> None:
        """Count tasks that were added, each given as its queue and URL."""
        minute = self._now_usec() // _MINUTE_USEC
        with self._lock:
            for queue, url in tasks:
                self._figures(queue, self._function(url), minute).enqueued += 1

    def leased(self, queue: str, number: int) -> None:
        """Count pull tasks of a queue that were leased."""
        if number:
            with self._lock:
                self._figures(queue, "", self._now_usec() // _MINUTE_USEC).executed += number

    def ended(self, attempts: Iterable[CountedAttempt]) -> None:
        """Count attempts that have ended."""
        now_usec = self._now_usec()
        minute, day = now_usec // _MINUTE_USEC, now_usec // _DAY_USEC * _DAY_USEC
        with self._lock:
            for attempt in attempts:
                function = self._function(attempt.url)
                figures = self._figures(attempt.queue, function, minute)
                figures.executed += 1
                if attempt.state != "succeeded":
                    figures.failed += 1
                    if attempt.state == "failed":
                        figures.dead += 1
                waited, took = figures.waited, figures.took
                step = step_of(attempt.waited_usec)
                waited[step] = waited.get(step, 0) + 1
                step = step_of(attempt.duration_usec)
                took[step] = took.get(step, 0) + 1
                if attempt.duration_usec > self._floors.get((function, day), 0):
                    self._slow.append((function, day, attempt))
                    if len(self._slow) > _MOST_CANDIDATES:
                        self._slow = _slowest(self._slow)

    def unwritten(self, flushes: int) -> Iterator[tuple[SpanKey, Figures]]:
        """Go through what rows do not have yet in which the last flush is number ``flushes``."""
        with self._lock:
            gathered = [*self._gathered.items()]
            if flushes != self._flushes:
                gathered += self._in_flight.items()
            spread = self._spread(gathered)
        yield from spread.items()

    def slow_candidates(self) -> list[tuple[str, CountedAttempt]]:
        """Return attempts that may be among the slowest and may not be in the table, each with its function."""
        with self._lock:
            slow = _slowest([*self._slow_in_flight, *self._slow])
        return [(function, attempt) for function, _day, attempt in slow]

    # The writer calls write in a transaction, and written after the commit.

    def write(self, connection: sqlite3.Connection) -> None:
        """Add what was counted to the rows, inside a transaction."""
        with self._lock:
            if not self._in_flight and not self._slow_in_flight:
                self._flushes += 1
            for key, figures in self._gathered.items():
                self._in_flight.setdefault(key, Figures()).add(figures)
            self._gathered = {}
            self._slow_in_flight, self._slow = _slowest([*self._slow_in_flight, *self._slow]), []
            spread = self._spread(self._in_flight.items())
            slow = self._slow_in_flight
            self._next_flush = self._elapsed() + FLUSH_SECONDS
        rows = [self._row(connection, key, figures) for key, figures in spread.items()]
        connection.executemany(_UPSERT, [*rows, (*_NUMBER_KEY, self._flushes, 0, 0, 0, "", "")])
        self._write_slowest(connection, slow)
        self._prune(connection)

    def written(self) -> None:
        """Forget what the transaction has written, because it was committed."""
        with self._lock:
            self._in_flight = {}
            self._slow_in_flight = []

    def _figures(self, queue: str, function: str, minute: int) -> Figures:
        figures = self._gathered.get((queue, function, minute))
        if figures is None:
            queue = self._known("queue", queue)
            figures = self._gathered.setdefault((queue, function, minute), Figures())
        return figures

    def _function(self, url: str) -> str:
        return self._known("function", function_in(url)) if url else ""

    def _known(self, kind: Kind, name: str) -> str:
        """Return the name, or that of the others if there are too many names."""
        names = self._names[kind]
        if name not in names:
            if len(names) >= (MOST_QUEUES if kind == "queue" else MOST_FUNCTIONS):
                return OTHERS
            names.add(name)
        return name

    @staticmethod
    def _spread(gathered: Iterable[tuple[tuple[str, str, int], Figures]]) -> dict[SpanKey, Figures]:
        """Return the sums for each row."""
        sums: dict[SpanKey, Figures] = {}
        for (queue, function, minute), figures in gathered:
            names: list[tuple[Kind, str]] = [("queue", ALL_QUEUES), ("queue", queue)]
            if function:
                names.append(("function", function))
            for kind, name in names:
                for seconds in SPAN_SECONDS[kind].values():
                    usec = seconds * 1_000_000
                    key = SpanKey(kind, name, seconds, minute * _MINUTE_USEC // usec * usec)
                    sums.setdefault(key, Figures()).add(figures)
        return sums

    @staticmethod
    def _row(connection: sqlite3.Connection, key: SpanKey, figures: Figures) -> tuple[object, ...]:
        found = connection.execute(_ROW, key).fetchone()
        if found is not None:
            figures.add(figures_of(found))
        return (
            *key,
            figures.enqueued,
            figures.executed,
            figures.failed,
            figures.dead,
            encode(figures.waited),
            encode(figures.took),
        )

    def _write_slowest(self, connection: sqlite3.Connection, slow: Iterable[_SlowAttempt]) -> None:
        for function, day, attempt in slow:
            row = (attempt.task_id, attempt.number, attempt.queue, attempt.started_usec, attempt.duration_usec)
            connection.execute("INSERT OR REPLACE INTO slowest_attempts VALUES (?,?,?,?,?,?,?)", (function, day, *row))
        for function, day in {(function, day) for function, day, _attempt in slow}:
            connection.execute(_KEEP_SLOWEST, {"function": function, "day": day})
            number, floor = connection.execute(_FLOOR, (function, day)).fetchone()
            if number >= SLOWEST_ATTEMPTS:
                with self._lock:
                    self._floors = {key: value for key, value in self._floors.items() if key[1] == day}
                    self._floors[function, day] = floor

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Delete old spans, once an hour. The table is small enough to be searched as a whole."""
        now_usec = self._now_usec()
        if 0 <= now_usec - self._pruned_usec < 3600 * 1_000_000:
            return
        self._pruned_usec = now_usec
        for kind, periods in SPAN_SECONDS.items():
            for period, seconds in periods.items():
                oldest_usec = now_usec - (PERIOD_SECONDS[period] + seconds) * 1_000_000
                connection.execute(_PRUNE, (kind, seconds, oldest_usec))
        connection.execute("DELETE FROM slowest_attempts WHERE day_usec < ?", (now_usec - 8 * _DAY_USEC,))


def _slowest(slow: list[_SlowAttempt]) -> list[_SlowAttempt]:
    """Return the slowest attempts of each function and day, at most half of :data:`_MOST_CANDIDATES`."""
    kept: dict[tuple[str, int], int] = {}
    found = []
    for candidate in sorted(slow, key=lambda one: one[2].duration_usec, reverse=True):
        number = kept[candidate[:2]] = kept.get(candidate[:2], 0) + 1
        if number <= SLOWEST_ATTEMPTS:
            found.append(candidate)
    return found[: _MOST_CANDIDATES // 2]
