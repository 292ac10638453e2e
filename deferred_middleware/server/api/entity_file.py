"""The datastore's entities in a SQLite file of their own, so that a commit writes only what it has changed.

The task store's file has another owner and other transactions: a commit of the datastore waits for no task.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import OpenFiles, sync_directory

_VERSION = 1
_SCHEMA = """
    BEGIN IMMEDIATE;
    CREATE TABLE entities (key BLOB PRIMARY KEY, entity BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE staged_transactions (id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE commit_time (time INTEGER NOT NULL);
    INSERT INTO commit_time VALUES (0);
    PRAGMA user_version = 1;
    COMMIT;
"""


@dataclass(frozen=True)
class StoredEntities:
    """The content of an entity file: encoded entities by their encoded keys.

    ``commit_time`` is that of the last commit in the SDK's own count, 0 if there was none. ``staged`` are the
    transactions whose tasks may be staged in the task store.
    """

    entities: Mapping[bytes, bytes]
    commit_time: int
    staged: Collection[str]


class EntityFile:
    """The SQLite file at ``path``, which is created with what ``initial`` returns if it doesn't exist.

    Only one thread at a time may call its methods. Raises :class:`ServerError` if the file can't be used; its methods
    raise that, :class:`OSError` and :class:`sqlite3.Error`.
    """

    def __init__(self, path: Path, initial: Callable[[], StoredEntities]) -> None:
        if not path.exists():
            _create(path, initial())
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                raise ServerError(f"it has version {version} and this package knows {_VERSION}")
            self._staged = {name for (name,) in self._connection.execute("SELECT id FROM staged_transactions")}
        except BaseException:
            self._connection.close()
            raise
        self._files = OpenFiles(path, path.with_name(f"{path.name}-wal"))

    def read(self) -> StoredEntities:
        """Return the whole content."""
        entities = dict(self._connection.execute("SELECT key, entity FROM entities"))
        (commit_time,) = self._connection.execute("SELECT time FROM commit_time").fetchone()
        return StoredEntities(entities, commit_time, frozenset(self._staged))

    def write(self, changes: Mapping[bytes, bytes | None], commit_time: int, staged: Collection[str]) -> None:
        """Write changed entities, by their keys; None for those that were deleted. It is on disk at the return."""
        _change(self._connection, changes, commit_time, set(staged) - self._staged, self._staged - set(staged))
        self._staged = set(staged)
        self._files.check()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _create(path: Path, content: StoredEntities) -> None:
    # Under another name until it is whole: a file that exists has all of the content.
    created = path.with_name(f"{path.name}.new")
    created.unlink(missing_ok=True)
    os.close(os.open(created, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(created, isolation_level=None)
    try:
        connection.executescript(_SCHEMA)
        _change(connection, content.entities, content.commit_time, content.staged, ())
    finally:
        connection.close()
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        # The file was moved away after a crash, without its log, which SQLite would write over the new content.
        log.replace(path.with_name(f"{path.name}-wal.old"))
    created.replace(path)
    sync_directory(path.parent)


def _change(
    connection: sqlite3.Connection,
    changes: Mapping[bytes, bytes | None],
    commit_time: int,
    staged: Collection[str],
    over: Collection[str],
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        put = [(key, entity) for key, entity in changes.items() if entity is not None]
        deleted = [(key,) for key, entity in changes.items() if entity is None]
        connection.executemany("INSERT OR REPLACE INTO entities VALUES (?, ?)", put)
        connection.executemany("DELETE FROM entities WHERE key = ?", deleted)
        connection.executemany("INSERT OR IGNORE INTO staged_transactions VALUES (?)", [(name,) for name in staged])
        connection.executemany("DELETE FROM staged_transactions WHERE id = ?", [(name,) for name in over])
        connection.execute("UPDATE commit_time SET time = ?", (commit_time,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
