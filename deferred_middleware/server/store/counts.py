"""How many tasks each queue has in each state, and how many were executed lately.

The numbers of tasks are written in the same transactions that change the tasks, so no rows have to be counted. How many
tasks were executed lately is kept in memory only and starts at zero with each server.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable


class Tally(Counter[tuple[str, str]]):
    """By how much a transaction changes the number of tasks, for each queue and state, and which claims it ends.

    Attributes:
        ended: The IDs of tasks whose claims end with the commit, if they have any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[int] = []

    def merge(self, other: Tally) -> None:
        """Add what another part of the transaction has changed."""
        for key, number in other.items():
            self[key] += number
        self.ended += other.ended


EXECUTED = "executed"
"""Stands in a tally in place of a state, for tasks that were run or leased."""

_MINUTE_SECONDS = 60
_HOUR_SECONDS = 3600

_ADD = """
    INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT (queue, state) DO UPDATE SET number = number + excluded.number"""


class TaskCounts:
    """The counts of the database that ``connection`` has open. ``monotonic`` returns seconds that only grow."""

    def __init__(self, connection: sqlite3.Connection, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        rows = connection.execute(
            "SELECT queue, state, number FROM counts WHERE number <> 0 AND queue <> ''"
        ).fetchall()
        self._monotonic = monotonic
        # Guards the two dictionaries. The thread that has committed changes them; any thread reads them.
        self._lock = threading.Lock()
        self._numbers: Counter[tuple[str, str]] = Counter({(queue, state): number for queue, state, number in rows})
        # Only the thread that writes changes and reads it.
        self.stored_tasks: int = sum(self._numbers.values())
        # For each queue, the seconds in which tasks were executed, each with their number, the latest second last.
        self._executed: dict[str, deque[list[int]]] = {}

    @staticmethod
    def write(connection: sqlite3.Connection, tally: Tally) -> None:
        """Write a transaction's changes to the database, inside that transaction."""
        changes = [(*key, number) for key, number in tally.items() if number and key[1] != EXECUTED]
        if changes:
            connection.executemany(_ADD, changes)

    def apply(self, tally: Tally) -> None:
        """Add a transaction's changes to the counts in memory, after its commit."""
        with self._lock:
            for key, number in tally.items():
                if key[1] == EXECUTED:
                    self._add_executed(key[0], number)
                elif number:
                    self._numbers[key] += number
                    self.stored_tasks += number

    def numbers(self) -> Counter[tuple[str, str]]:
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
        """Return how many tasks of a queue were run or leased in the last minute and in the last hour."""
        now = int(self._monotonic())
        with self._lock:
            seconds = list(self._executed.get(queue, ()))
        minute = sum(number for second, number in seconds if now - second < _MINUTE_SECONDS)
        return minute, sum(number for second, number in seconds if now - second < _HOUR_SECONDS)

    def _add_executed(self, queue: str, number: int) -> None:
        now = int(self._monotonic())
        seconds = self._executed.setdefault(queue, deque())
        if seconds and seconds[-1][0] == now:
            seconds[-1][1] += number
        else:
            seconds.append([now, number])
        while now - seconds[0][0] >= _HOUR_SECONDS:
            seconds.popleft()
