"""The files of a task store: who may open it, how it is opened, which version it is."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from importlib import resources
from pathlib import Path

from deferred_middleware.errors import ServerError

_log = logging.getLogger(__name__)

SCHEMA_VERSION = 2

_JOURNAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
_BUSY_TIMEOUT_MS = 5000
# The indexes of a million tasks, and not more: beyond it the system's own cache serves.
_CACHE_KIB = 64 * 1024


class StoreLock:
    """Exclusive use of a store, held from its making until :meth:`release` or the end of the process.

    The lock is on a file of its own, because closing any descriptor of a SQLite database drops the locks that SQLite
    itself has on it. Raises :class:`ServerError` at once when another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise ServerError(
                f"Another server (process {holder}) is using {path.parent}: stop it, or choose another --data-dir."
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process have the store."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the one connection that writes, creating the file when there is none.

    Raises :class:`ServerError` for a file that is no task store or that a newer version of this package has written.
    """
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        # Without it a power cut may leave the directory without the file, acknowledged tasks and all.
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
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
