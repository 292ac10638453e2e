"""Finds damage inside the database, and makes a new one of the rows that can still be read.

SQLite notices damage only when it reads the damaged page, and some damage not even then: an index that lacks a task
hides it for ever. So the whole file is checked before the store is opened (``PRAGMA integrity_check``, about 3 s for a
gigabyte). If something is wrong, all rows that can be read are copied to a new database, and the damaged one is kept::

    repair = repair_if_damaged(path, open_reader, create)   # before the store is opened for writing
    ...                                                     # the store is opened
    repair.report(stored_tasks)                             # an error in the server's log, if anything is lost

A crash at any moment leaves either the damaged database or the complete new one, see :func:`finish_interrupted`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import sync_directory
from deferred_middleware.server.store.upkeep.checksum import any_text
from deferred_middleware.server.store.upkeep.kept_files import keep_aside

logger: Final = logging.getLogger(__name__)

_MOST_PROBLEMS = 5
_MOST_NAMES = 10
_HEADER_BYTES = 100
_PAGE_SIZE_AT = slice(16, 18)
_PAGES_AT = slice(28, 32)
_LAST_ID = 2**63 - 1
_LARGE_BYTES = 256_000_000
# These are computed from the tasks again, or belong to what was running.
_NOT_COPIED = frozenset({"counts"})
_UNFINISHED = ("held", "ready", "running")


class StoreDamagedError(ServerError):
    """Damage was found in the database while it was in use. The next start saves what can be read."""


def is_damage(error: BaseException) -> bool:
    """Tell whether SQLite has come across damage. Its other errors have classes of their own."""
    return type(error) is sqlite3.DatabaseError


def damaged(error: BaseException) -> StoreDamagedError:
    """Return the error for damage that was found while the store was in use."""
    return StoreDamagedError(f"The task store is damaged ({error}): start the server again, to save what can be read.")


@dataclass(kw_only=True)
class Repair:
    """What was found and saved. ``problems`` is empty if the database was whole."""

    problems: list[str] = field(default_factory=list)
    kept: Path | None = None
    tasks_before: int | None = None
    lost_names: list[str] = field(default_factory=list)
    unreadable: Counter[str] = field(default_factory=Counter)

    def report(self, path: Path, stored_tasks: int) -> None:
        """Log what was damaged and what is lost; ``stored_tasks`` are those that are left."""
        if not self.problems:
            return
        before = "unknown" if self.tasks_before is None else self.tasks_before
        sentences = [
            f"The database {path} was damaged ({'; '.join(self.problems)}).",
            f"All that can be read is in a new one. Stored tasks before: {before}, now: {stored_tasks}.",
        ]
        if self.lost_names:
            more = ", …" if len(self.lost_names) > _MOST_NAMES else ""
            names = ", ".join(self.lost_names[:_MOST_NAMES])
            sentences.append(f"Lost tasks whose names are known: {len(self.lost_names)} ({names}{more}).")
        others = [f"{table}: {number}" for table, number in sorted(self.unreadable.items()) if table != "tasks"]
        if others:
            sentences.append(f"Places of other tables that can't be read: {', '.join(others)}.")
        sentences.append(f"The damaged database is kept in {self.kept}.")
        logger.error("%s", " ".join(sentences))


def finished_path(path: Path) -> Path:
    """Return the path of a new database that is complete and only has to take the place of ``path``."""
    return path.with_name(f"{path.name}.repaired")


def _unfinished_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.repairing")


def finish_interrupted(path: Path) -> None:
    """Put a complete new database in the place of ``path``, if there is one, and remove one that isn't complete.

    The caller has locked the store.
    """
    _remove(_unfinished_path(path))
    new = finished_path(path)
    if not new.exists():
        return
    # The log belongs to the damaged database. Its pages must not get into the new one.
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    sync_directory(path.parent)
    new.replace(path)
    sync_directory(path.parent)


def repair_if_damaged(
    path: Path,
    open_reader: Callable[[Path], sqlite3.Connection],
    create: Callable[[Path], sqlite3.Connection],
) -> Repair:
    """Check the database ``path``, and repair it if it is damaged; the caller has locked it.

    ``create`` makes a new, empty store.

    Raises :class:`ServerError` if the file is cut off, or if nothing in it can be read.
    """
    if not path.exists() or path.stat().st_size < _HEADER_BYTES:
        return Repair()
    refuse_truncated(path)
    if path.stat().st_size > _LARGE_BYTES:
        logger.info("Checking the database %s (%d MB).", path, path.stat().st_size // 1_000_000)
    with contextlib.closing(open_reader(path)) as connection:
        problems = find_damage(connection)
    if not problems:
        return Repair()
    logger.info("The database %s is damaged. What can be read is saved now, which may take a while.", path)
    return _repair(path, open_reader, create, problems)


def find_damage(connection: sqlite3.Connection) -> list[str]:
    """Return what is wrong with a database, an empty list if nothing is."""
    try:
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            return []  # an empty file
        found = connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})").fetchall()
    except sqlite3.Error as error:
        return [str(error)]
    return [] if found == [("ok",)] else [str(text).replace("\n", ", ") for (text,) in found]


def refuse_truncated(path: Path) -> None:
    """Raise :class:`ServerError` if the file has fewer pages than its header says, and no log that may have them."""
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        return
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
        size = os.fstat(stream.fileno()).st_size
    page_bytes = int.from_bytes(header[_PAGE_SIZE_AT], "big")
    expected = (65536 if page_bytes == 1 else page_bytes) * int.from_bytes(header[_PAGES_AT], "big")
    if header.startswith(b"SQLite format 3\0") and size < expected:
        raise ServerError(
            f"{path} is cut off: it has {size} of {expected} bytes. Put a copy of it back, or move it away to begin "
            "with an empty store."
        )


def _repair(
    path: Path,
    open_reader: Callable[[Path], sqlite3.Connection],
    create: Callable[[Path], sqlite3.Connection],
    problems: list[str],
) -> Repair:
    repair = Repair(problems=problems)
    unfinished = _unfinished_path(path)
    try:
        with contextlib.closing(create(unfinished)) as new, contextlib.closing(open_reader(path)) as old:
            old.text_factory = any_text
            new.execute("PRAGMA journal_mode=DELETE")
            new.execute("PRAGMA foreign_keys=OFF")
            new.execute("BEGIN IMMEDIATE")
            _copy_all(old, new, repair)
            new.execute("COMMIT")
        repair.kept = keep_aside(path)
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            keep_aside(log)
    except (sqlite3.Error, OSError) as error:
        _remove(unfinished)
        raise ServerError(
            f"{path} is damaged, and what is left can't be saved: {error}. Make space if the disk is full, put a copy "
            "of the file back, or move it away to begin with an empty store."
        ) from error
    unfinished.replace(finished_path(path))
    sync_directory(path.parent)
    finish_interrupted(path)
    return repair


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _copy_all(old: sqlite3.Connection, new: sqlite3.Connection, repair: Repair) -> None:
    # What triggers keep is copied as it is.
    triggers = new.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _sql in triggers:
        new.execute(f"DROP TRIGGER {name}")
    tables = [
        name
        for (name,) in new.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        if name not in _NOT_COPIED
    ]
    for table in tables:
        _copy_table(old, new, table, repair)
    # A row whose other half is lost is no task any more. Finished ones are only history.
    halves = new.execute(
        "SELECT queue, name FROM tasks WHERE id NOT IN (SELECT task_id FROM payloads)"
        f" AND state IN {_UNFINISHED} ORDER BY id"
    ).fetchall()
    lost = dict.fromkeys(halves)
    new.execute("DELETE FROM tasks WHERE id NOT IN (SELECT task_id FROM payloads)")
    for table in ("payloads", "attempts"):
        new.execute(f"DELETE FROM {table} WHERE task_id NOT IN (SELECT id FROM tasks)")
    saved = set(new.execute("SELECT queue, name FROM tasks").fetchall())
    lost |= dict.fromkeys(key for key in _unfinished_names(old) if key not in saved)
    repair.lost_names = [f"{queue}/{name}" for queue, name in lost]
    repair.tasks_before = _number_of_tasks(old)
    for _name, sql in triggers:
        new.execute(sql)
    for row in new.execute("SELECT queue, state, count(*) FROM tasks GROUP BY queue, state").fetchall():
        new.execute("INSERT INTO counts VALUES (?, ?, ?)", row)
    with contextlib.suppress(sqlite3.Error):
        stamp = old.execute("SELECT queue, state, number FROM counts WHERE queue = ''").fetchall()
        new.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?, ?)", stamp)


def _unfinished_names(old: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Yield the names of unfinished tasks that an index shows, even if the tasks themselves can't be read."""
    for state in _UNFINISHED:
        with contextlib.suppress(sqlite3.Error):
            ids = [
                task_id
                for (task_id,) in old.execute(
                    "SELECT id FROM tasks INDEXED BY tasks_states WHERE queue IN"
                    " (SELECT DISTINCT queue FROM counts WHERE queue <> '') AND state = ?",
                    (state,),
                )
            ]
            wanted = set(ids)
            with contextlib.suppress(sqlite3.Error):
                for queue, name, task_id in old.execute("SELECT queue, name, id FROM tasks INDEXED BY tasks_names"):
                    if task_id in wanted:
                        yield queue, name


def _number_of_tasks(old: sqlite3.Connection) -> int | None:
    try:
        found = old.execute("SELECT sum(number) FROM counts WHERE queue <> ''").fetchone()
    except sqlite3.Error:
        return None
    return int(found[0] or 0)


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str, repair: Repair) -> None:
    wanted = [row[1] for row in new.execute(f"PRAGMA table_info({table})")]
    known = {row[1] for row in old.execute(f"PRAGMA table_info({table})")}
    columns = [name for name in wanted if name in known]
    if not columns:
        return  # an earlier version had no such table
    key = _integer_key(new, table)
    insert = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    select = f"SELECT {', '.join(columns)} FROM {table}"
    rows = _all_by_number(old, select, key, repair, table) if key else _all_from_ends(old, select, repair, table)
    for row in rows:
        try:
            new.execute(insert, row)
        except sqlite3.IntegrityError:
            repair.unreadable[table] += 1  # a value that the column can't have


def _integer_key(connection: sqlite3.Connection, table: str) -> str | None:
    """Return the first column of a table's primary key if it is a number, by which one can go on behind damage."""
    for row in connection.execute(f"PRAGMA table_info({table})"):
        if row[5] == 1 and row[2] == "INTEGER":
            return str(row[1])
    return None


def _all_by_number(
    old: sqlite3.Connection, select: str, key: str, repair: Repair, table: str
) -> Iterator[tuple[Any, ...]]:
    """Yield all rows that can be read, by their number; skip the numbers whose pages can't be read."""
    ordered = f"{select} NOT INDEXED WHERE {key} > ? ORDER BY {key}"
    place = [str(part).strip() for part in select.removeprefix("SELECT ").split(" FROM ")[0].split(",")].index(key)
    last = -1
    while True:
        try:
            for row in old.execute(ordered, (last,)):
                if not isinstance(row[place], int) or row[place] < last:
                    raise sqlite3.DatabaseError("the rows are not in order")
                last = row[place]
                yield row
        except (sqlite3.Error, OverflowError):
            repair.unreadable[table] += 1
        else:
            return
        last = _behind_damage(old, ordered, last)
        if last == _LAST_ID:
            return


def _behind_damage(old: sqlite3.Connection, ordered: str, last: int) -> int:
    """Return the smallest number, within a page, from which on rows can be read again; the largest if there is none."""
    step = 1
    while not _can_read(old, ordered, bad := last + step):
        if bad == _LAST_ID:
            return _LAST_ID
        step = min(step * 2, _LAST_ID - last)
    low, high = last + step // 2, last + step
    while high - low > 1:
        middle = (low + high) // 2
        if _can_read(old, ordered, middle):
            high = middle
        else:
            low = middle
    return high


def _can_read(old: sqlite3.Connection, ordered: str, number: int) -> bool:
    try:
        old.execute(f"{ordered} LIMIT 1", (number,)).fetchall()
    except (sqlite3.Error, OverflowError):
        return False
    return True


def _all_from_ends(old: sqlite3.Connection, select: str, repair: Repair, table: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows before the first damage, and those behind the last one, from the end."""
    keys = [row[1] for row in old.execute(f"PRAGMA table_info({table})") if row[5]]
    for direction in ("", " DESC"):
        order = f" ORDER BY {', '.join(f'{key}{direction}' for key in keys)}" if keys else ""
        try:
            yield from old.execute(select + order)
        except sqlite3.Error:
            repair.unreadable[table] += 1
        else:
            return
