"""Compares a store that is about to be opened with what was acknowledged, and keeps damaged files aside.

SQLite reads a damaged log up to the damage, ignores a log that is missing, and says nothing in both cases. This looks
first, with a connection that can't write:

    found = check_files(path)       # before the store is opened for writing
    ...                             # the store is opened
    found.report(connection)        # an error in the server's log, if acknowledged commits are gone
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import sync_directory
from deferred_middleware.server.store.upkeep.commit_record import Recorded, read_record, read_stamp
from deferred_middleware.server.store.upkeep.kept_files import keep_aside
from deferred_middleware.server.store.upkeep.write_ahead_log import TaskRow, read_log

logger: Final = logging.getLogger(__name__)

_MOST_NAMES = 10
_SQLITE_HEADER_BYTES = 100
# A power cut may leave some commits behind a frame that it has lost: those that were never synced. The writer leaves at
# most 8 of them. An earlier power cut may have left as many. More than these are damage, even if there is no record.
_MOST_UNSYNCED_COMMITS = 24


def record_path(path: Path) -> Path:
    """Return the path of the commit record that belongs to the store ``path``."""
    return path.with_name(path.name + ".committed")


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """What was found before a store was opened. ``problem`` is empty if nothing that was acknowledged is missing."""

    stamp_usec: int = 0
    recorded: Recorded | None = None
    problem: str = ""
    later_tasks: dict[int, TaskRow] = field(default_factory=dict)
    kept: Path | None = None

    @property
    def last_usec(self) -> int:
        """The newest stamp that is known."""
        return max(self.stamp_usec, self.recorded.stamp_usec if self.recorded else 0)

    def report(self, connection: sqlite3.Connection, stored_tasks: int) -> bool:
        """Log what is missing, if anything is; return whether it is. ``stored_tasks`` are those that are left."""
        if not self.problem:
            return False
        sentences = [f"Acknowledged changes of the task store are lost: {self.problem}."]
        if self.stamp_usec:
            # Stamps may lag behind the wall clock.
            lag_usec = self.recorded.wall_usec - self.recorded.stamp_usec if self.recorded else 0
            sentences.append(f"The store is as it was at {_time(self.stamp_usec + lag_usec)}.")
        if self.recorded is not None:
            sentences.append(
                f"The last acknowledged change was made at {_time(self.recorded.wall_usec)}. After it, the number of "
                f"stored tasks was {self.recorded.tasks}; now it is {stored_tasks}."
            )
        lost = [
            task
            for task_id, task in sorted(self.later_tasks.items())
            if task.state not in ("succeeded", "failed")
            and not connection.execute(
                "SELECT 1 FROM tasks WHERE id = ? AND queue = ? AND name = ?", (task_id, task.queue, task.name)
            ).fetchone()
        ]
        if lost:
            names = ", ".join(f"{task.queue}/{task.name}" for task in lost[:_MOST_NAMES])
            more = ", …" if len(lost) > _MOST_NAMES else ""
            sentences.append(f"Lost tasks that the damaged log still shows: {len(lost)} ({names}{more}).")
        if self.kept is not None:
            sentences.append(f"The damaged log is kept in {self.kept}.")
        logger.error("%s", " ".join(sentences))
        return True


def check_files(path: Path, open_reader: Callable[[Path], sqlite3.Connection]) -> FoundFiles:
    """Look at the store ``path`` and its log, before it is opened for writing; the caller has locked it.

    Raises :class:`ServerError` if the database is missing or shortened so that SQLite would begin with an empty one.
    """
    log_path = path.with_name(path.name + "-wal")
    recorded = read_record(record_path(path))
    # Before the connection below, which creates an empty log.
    log_size = log_path.stat().st_size if log_path.exists() else -1
    size = path.stat().st_size if path.exists() else -1
    if size < _SQLITE_HEADER_BYTES:
        if size >= 0 and recorded is not None:
            raise ServerError(
                f"{path} was cut off to {size} bytes, and it had tasks: put a copy of it back, or move it and "
                f"{record_path(path)} away to begin with an empty store."
            )
        if log_size > 0:
            raise ServerError(
                f"{path} is {'missing' if size < 0 else 'empty'}, and its log {log_path} has changes of it: put it "
                "back, or move the log away to begin with an empty store."
            )
        problem = f"{path} is missing" if recorded is not None else ""
        return FoundFiles(recorded=recorded, problem=problem)
    stamp_usec, alone_usec = 0, 0
    try:
        # A file that was not in WAL mode yet may have a journal, and a connection that only reads can't roll it back.
        journal = path.with_name(f"{path.name}-journal").exists()
        with contextlib.closing(sqlite3.connect(path) if journal else open_reader(path)) as connection:
            stamp_usec = read_stamp(connection)
    except sqlite3.Error as error:
        # What follows finds and reports damage inside the database.
        if "malformed" in str(error) and recorded is not None:
            return FoundFiles(stamp_usec=recorded.stamp_usec, recorded=recorded)
        raise ServerError(
            f"{path} can't be used as a task store: {error}. Put a copy of it back, or move it, its log and "
            f"{record_path(path)} away to begin with an empty store."
        ) from error
    if recorded is not None and stamp_usec >= recorded.stamp_usec:
        return FoundFiles(stamp_usec=stamp_usec, recorded=recorded)
    if log_size <= 0:
        lost = recorded is not None
        problem = f"its log {log_path} is {'missing' if log_size < 0 else 'empty'}" if lost else ""
        return FoundFiles(stamp_usec=stamp_usec, recorded=recorded, problem=problem)
    log = read_log(log_path)
    if recorded is None and log.later_commits <= _MOST_UNSYNCED_COMMITS:
        return FoundFiles(stamp_usec=stamp_usec)
    kept = keep_aside(log_path)
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_open_without_log(path)) as connection:
        alone_usec = read_stamp(connection)
    if alone_usec > stamp_usec:
        # The damaged part of the log was copied into the database before. With the rest, old pages would come back.
        log_path.unlink()
        sync_directory(path.parent)
        stamp_usec = alone_usec
        if recorded is not None and stamp_usec >= recorded.stamp_usec:
            logger.warning("The log %s is damaged, and nothing is lost. It is kept in %s.", log_path, kept)
            return FoundFiles(stamp_usec=stamp_usec, recorded=recorded)
    problem = f"its log {log_path} can be read only up to frame {log.whole_frames}"
    if log.later_commits:
        problem += f", and commits follow after the damage: {log.later_commits}"
    return FoundFiles(
        stamp_usec=stamp_usec, recorded=recorded, problem=problem, later_tasks=log.later_tasks(), kept=kept
    )


def _open_without_log(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)


def _time(usec: int) -> str:
    return datetime.datetime.fromtimestamp(usec / 1e6).astimezone().isoformat(sep=" ", timespec="milliseconds")
