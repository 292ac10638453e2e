"""Which names of tasks are taken, and for how long after their tasks are over.

The names of unfinished tasks are taken by their rows, those of finished and deleted ones by tombstones. Source:
https://cloud.google.com/appengine/docs/standard/services/task-queue/rest ("task names").
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable

from deferred_middleware.server.store.records import AddResult

_BY_NAME = "SELECT state, user_named FROM tasks WHERE queue = ? AND name = ?"
_TOMBSTONE = "SELECT 1 FROM tombstones WHERE queue = ? AND name = ? AND expires_usec > ?"
_BLOCK = "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)"
_LIVE = frozenset({"held", "ready", "running"})


class NameChooser:
    """Chooses names for tasks that have none. ``now_usec`` returns the time."""

    def __init__(self, now_usec: Callable[[], int]) -> None:
        self._now_usec = now_usec
        self._lock = threading.Lock()
        self._last_usec = 0

    def __call__(self) -> str:
        """Return a name: digits, as on the platform, never the same twice in one process.

        It begins with the time, so that the index of names grows at its end however large it is.
        """
        with self._lock:
            self._last_usec = max(self._last_usec + 1, self._now_usec())
            return f"{self._last_usec:016d}{secrets.randbelow(10_000):04d}"


def find(connection: sqlite3.Connection, queue: str, name: str, now_usec: int) -> AddResult | None:
    """Return what stands against adding a task of this name: ``exists``, ``tombstoned``, or None."""
    rows = connection.execute(_BY_NAME, (queue, name)).fetchall()
    if any(state in _LIVE for state, _user_named in rows):
        return AddResult(name=name, outcome="exists")
    # A name that was chosen here is taken as long as its task is remembered; nobody has a reason to choose it again.
    if any(not user_named for _state, user_named in rows) or (
        connection.execute(_TOMBSTONE, (queue, name, now_usec)).fetchone() is not None
    ):
        return AddResult(name=name, outcome="tombstoned")
    return None


def is_live(connection: sqlite3.Connection, queue: str, name: str) -> bool:
    """Tell whether an unfinished task has this name."""
    return any(state in _LIVE for state, _user_named in connection.execute(_BY_NAME, (queue, name)).fetchall())


def block(connection: sqlite3.Connection, names: Iterable[tuple[str, str, int]]) -> None:
    """Keep names from being used again, each of which is given by its queue, itself and until when."""
    connection.executemany(_BLOCK, names)


def forget(connection: sqlite3.Connection, queue: str, name: str | None, limit: int) -> int:
    """Let a name be used again, or at most ``limit`` names of the queue; return how many were blocked."""
    return connection.execute(
        "DELETE FROM tombstones WHERE (queue, name) IN"
        " (SELECT queue, name FROM tombstones WHERE queue = ? AND name = coalesce(?, name) LIMIT ?)",
        (queue, name, limit),
    ).rowcount


def forget_expired(connection: sqlite3.Connection, now_usec: int, limit: int) -> int:
    """Let at most ``limit`` names be used again that have been blocked long enough; return how many."""
    return connection.execute(
        "DELETE FROM tombstones WHERE (queue, name) IN"
        " (SELECT queue, name FROM tombstones WHERE expires_usec <= ? LIMIT ?)",
        (now_usec, limit),
    ).rowcount
