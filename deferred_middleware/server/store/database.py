"""The files of a task store: who may open it, how it is opened, which version it is.

What all parts of the task store share: its file, its writer, its reader, its counts and its clock.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.counts import StoreCounts
from deferred_middleware.server.store.disk_reserve import DiskReserve, is_disk_full
from deferred_middleware.server.store.files import FileLock, sync_directory
from deferred_middleware.server.store.records import Retention
from deferred_middleware.server.store.task_names import NameChooser
from deferred_middleware.server.store.writer import GroupCommitWriter, Operation, Tally

_log = logging.getLogger(__name__)

SCHEMA_VERSION = 2

_JOURNAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
_BUSY_TIMEOUT_MS = 5000
# The indexes of a million tasks, and not more: beyond it the system's own cache serves.
_CACHE_KIB = 64 * 1024


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the one connection that writes, creating the file when there is none.

    Raises :class:`ServerError` for a file that is no task store or that a newer version of this package has written.
    """
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_SIZE_LIMIT_BYTES}")
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        # What undoes one operation of a transaction is of no use after a crash, so that no file need be made of it.
        connection.execute("PRAGMA temp_store=MEMORY")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION or version < 0:
            raise ServerError(
                f"{path} has schema version {version} and this package knows {SCHEMA_VERSION}: "
                "use the version that wrote it, or choose another --data-dir."
            )
        _bring_up_to_date(connection, version)
    except sqlite3.Error as error:
        connection.close()
        raise ServerError(f"{path} can't be used as a task store: {error}.") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up_to_date(connection: sqlite3.Connection, version: int) -> None:
    """Make the tables of an empty file, or change those that an earlier version of this package has made.

    Each script is one transaction, so that a file is of one version or of the next whatever happens meanwhile.
    """
    # A table that others refer to is replaced by a script; the setting can't change within a transaction.
    connection.execute("PRAGMA foreign_keys=OFF")
    scripts = resources.files(__package__)
    if version == 0:
        connection.executescript(scripts.joinpath("schema.sql").read_text("utf-8"))
        version = SCHEMA_VERSION
    while version < SCHEMA_VERSION:
        _log.info("Bringing the task store from version %d to version %d.", version, version + 1)
        connection.executescript(scripts.joinpath(f"schema-{version}-to-{version + 1}.sql").read_text("utf-8"))
        version += 1
    connection.execute("PRAGMA foreign_keys=ON")


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can only read, so that there is never a second one that writes or checkpoints."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA query_only=ON")
    return connection


T = TypeVar("T")

Parameters = Sequence[Any] | dict[str, Any]

BATCH = 1000
"""How many rows one operation changes at most where there may be many: everybody else waits for it."""


class Reader:
    """A connection that can only read, for one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = open_reader(path)
        self._lock = threading.Lock()

    def read(self, sql: str, parameters: Parameters = ()) -> list[Any]:
        """Return the rows of one statement."""
        with self._lock:
            return self._connection.execute(sql, parameters).fetchall()

    def use(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Return what an operation finds."""
        with self._lock:
            return operation(self._connection)

    def close(self) -> None:
        """Close the connection, once nobody reads."""
        with self._lock:
            self._connection.close()


class StoreCore:
    """The store in the SQLite file at ``path``, without what can be done with it.

    ``clock`` returns the wall clock's seconds since the epoch. Tasks that were running when a server died are due again
    once the store is open. Raises :class:`~deferred_middleware.errors.ServerError` at once when another process has the
    store, or when the file can't be used.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, retention: Retention | None = None
    ) -> None:
        self._clock = clock
        self._retention = retention or Retention()
        path.parent.mkdir(parents=True, exist_ok=True)
        # The lock is on a file of its own: closing any descriptor of a SQLite database drops the locks that SQLite
        # itself has on it.
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            connection = open_writer(path)
            try:
                reserve = DiskReserve(path.with_name(path.name + ".reserve"))
                try:
                    self._recover(connection)
                except sqlite3.OperationalError as error:
                    if not is_disk_full(error) or not reserve.spend():
                        raise
                    self._recover(connection)
                self._counts = StoreCounts(connection)
                self._reader = Reader(path)
                # People's questions may take a while, and the scheduler's must not wait for them.
                self._lanes_reader = Reader(path)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        self._closed = False
        self._writer = GroupCommitWriter(connection, self._counts, reserve)
        self.choose_name = NameChooser(self._now_usec)

    @property
    def commits(self) -> int:
        """How many transactions were committed since the store was opened."""
        return self._writer.commits

    def close(self) -> None:
        """Write what was handed in, close the file, and let another server have it."""
        if self._closed:
            return
        self._closed = True
        # Before the writer: the last connection to close folds the log into the database, and must be able to.
        self._reader.close()
        self._lanes_reader.close()
        self._writer.close()
        self._lock.release()

    def _read(self, sql: str, parameters: Parameters = ()) -> list[Any]:
        return self._reader.read(sql, parameters)

    def _in_batches(self, operation: Operation[int]) -> int:
        """Do an operation of at most :data:`BATCH` rows again and again until it finds fewer; return their number."""
        total = 0
        while True:
            number = self._writer.submit(operation).result()
            total += number
            if number < BATCH:
                return total

    def _now_usec(self) -> int:
        return int(self._clock() * 1e6)

    def _blocked_until(self, now_usec: int) -> int:
        return now_usec + int(self._retention.tombstone_seconds * 1e6)

    def _remove(
        self,
        connection: sqlite3.Connection,
        where: str,
        parameters: Sequence[Any],
        tally: Tally,
        *,
        all_names: bool = False,
    ) -> int:
        """Delete the rows that ``where`` names.

        The names of unfinished ones that the app chose (or all of their names) stay blocked; those of finished tasks
        have been since they were finished.
        """
        blocked = "1" if all_names else "user_named"
        connection.execute(
            "INSERT OR REPLACE INTO tombstones SELECT queue, name, ? FROM tasks"
            f" WHERE {where} AND finished_usec IS NULL AND {blocked}",
            (self._blocked_until(self._now_usec()), *parameters),
        )
        gone = connection.execute(f"DELETE FROM tasks WHERE {where} RETURNING queue, state", parameters).fetchall()
        for key, number in Counter(gone).items():
            if key[1] != "held":
                tally[key] -= number
        return len(gone)

    def _recover(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            queues = connection.execute("SELECT queue FROM counts WHERE state = 'running' AND number <> 0").fetchall()
            recovered = 0
            for (queue,) in queues:
                # They were due when they were claimed; if the clock has been set back since, they still are.
                number = connection.execute(
                    "UPDATE tasks SET state = 'ready', claim_token = NULL, eta_usec = min(eta_usec, ?)"
                    " WHERE queue = ? AND state = 'running'",
                    (self._now_usec(), queue),
                ).rowcount
                StoreCounts.move(connection, queue, "running", "ready", number)
                recovered += number
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        if recovered:
            _log.warning("%d tasks were in flight when the server ended; they run again.", recovered)
