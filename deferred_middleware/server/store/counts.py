"""How many tasks there are and how many were run lately, kept so that nobody has to count rows.

The numbers of tasks are written in the transactions that change them, so a store knows them when it is opened. How many
tasks were run lately is kept in memory, and begins anew with the server.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from deferred_middleware.server.store.writer import Tally

EXECUTED = "executed"
"""The tally's key, in place of a state, for tasks that were run or leased."""

_MINUTE_SECONDS = 60
_HOUR_SECONDS = 3600

_WRITE = """
    INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT (queue, state) DO UPDATE SET number = number + excluded.number"""


class StoreCounts:
    """The counts of the store that ``connection`` has open. ``monotonic`` returns seconds that only grow."""

    def __init__(self, connection: sqlite3.Connection, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        rows = connection.execute("SELECT queue, state, number FROM counts WHERE number <> 0").fetchall()
        self._lock = threading.Lock()
        self._numbers: Tally = Counter({(queue, state): number for queue, state, number in rows})
        self._monotonic = monotonic
        # For each queue, the seconds in which tasks were run and how many in each, the latest last.
        self._executed: dict[str, deque[list[int]]] = {}

    @staticmethod
    def move(connection: sqlite3.Connection, queue: str, old: str, new: str, number: int) -> None:
        """Write that tasks have gone from one state to another, before anybody counts."""
        connection.executemany(_WRITE, [(queue, old, -number), (queue, new, number)])

    def write(self, connection: sqlite3.Connection, tally: Tally) -> None:
        """Write what a transaction changes, within it."""
        changes = [(*key, number) for key, number in tally.items() if number and key[1] != EXECUTED]
        if changes:
            connection.executemany(_WRITE, changes)

    def committed(self, tally: Tally) -> None:
        """Take note that a transaction stands."""
        with self._lock:
            for key, number in tally.items():
                if key[1] == EXECUTED:
                    self._note_executed(key[0], number)
                elif number:
                    self._numbers[key] += number

    def numbers(self) -> Tally:
        """Return the number of tasks for each queue and state that has any."""
        with self._lock:
            return Counter({key: number for key, number in self._numbers.items() if number})

    def of(self, queue: str, *states: str) -> int:
        """Return how many tasks of a queue are in these states."""
        with self._lock:
            return sum(self._numbers[queue, state] for state in states)

    def of_state(self, state: str) -> int:
        """Return how many tasks of all queues are in a state."""
        with self._lock:
            return sum(number for (_queue, its_state), number in self._numbers.items() if its_state == state)

    def executed(self, queue: str) -> tuple[int, int]:
        """Return how many tasks of a queue were run or leased in the last minute, and in the last hour."""
        now = int(self._monotonic())
        with self._lock:
            seconds = list(self._executed.get(queue, ()))
        minute = sum(number for second, number in seconds if now - second < _MINUTE_SECONDS)
        return minute, sum(number for second, number in seconds if now - second < _HOUR_SECONDS)

    def _note_executed(self, queue: str, number: int) -> None:
        now = int(self._monotonic())
        seconds = self._executed.setdefault(queue, deque())
        if seconds and seconds[-1][0] == now:
            seconds[-1][1] += number
        else:
            seconds.append([now, number])
        while now - seconds[0][0] >= _HOUR_SECONDS:
            seconds.popleft()
