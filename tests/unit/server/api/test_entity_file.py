"""The file of the datastore's entities."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.api.entity_file import EntityFile, StoredEntities

EMPTY = StoredEntities({}, 0, frozenset())


def opened(path: Path, initial: StoredEntities = EMPTY) -> EntityFile:
    """Open the file, which is created with ``initial`` if it doesn't exist."""
    return EntityFile(path, lambda: initial)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Puts, deletes, the commit time and the staged transactions are there after the file was opened again."""
    file = opened(tmp_path / "file", StoredEntities({b"a": b"1", b"b": b"2"}, 5, {"x"}))
    file.write({b"a": b"3", b"b": None, b"c": b"4"}, 6, {"x", "y"})
    file.write({}, 7, {"y"})
    file.close()
    again = opened(tmp_path / "file", StoredEntities({b"other": b""}, 1, ()))
    assert again.read() == StoredEntities({b"a": b"3", b"c": b"4"}, 7, {"y"})
    again.close()


def test_a_creation_that_was_interrupted_leaves_no_file(tmp_path: Path) -> None:
    """If the initial content can't be had, there is no file, and the next try begins anew."""

    def fail() -> StoredEntities:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        EntityFile(tmp_path / "file", fail)
    (tmp_path / "file.new").write_bytes(b"left behind")
    file = opened(tmp_path / "file")
    assert file.read() == EMPTY
    file.close()


def test_a_failing_write_changes_nothing(tmp_path: Path) -> None:
    """A write is whole or nothing."""
    file = opened(tmp_path / "file")
    file.write({b"a": b"1"}, 1, ())
    with pytest.raises(sqlite3.Error):
        file.write({b"b": b"2", b"c": object()}, 2, ())  # type: ignore[dict-item] # a value that SQLite can't store
    assert file.read() == StoredEntities({b"a": b"1"}, 1, frozenset())
    file.close()


def test_a_file_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    """A write to a file that is no longer at its path is an error."""
    file = opened(tmp_path / "file")
    (tmp_path / "file").rename(tmp_path / "moved")
    with pytest.raises(ServerError, match="is gone"):
        file.write({b"a": b"1"}, 1, ())
    file.close()


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """A file that this version doesn't know is an error."""
    opened(tmp_path / "file").close()
    with sqlite3.connect(tmp_path / "file") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(ServerError, match="version 9"):
        opened(tmp_path / "file")


def test_the_log_of_a_file_that_was_moved_away_is_not_replayed(tmp_path: Path) -> None:
    """If only the file was moved away after a crash, a new file begins empty; the old log is kept beside it."""
    path, log = tmp_path / "entities", tmp_path / "entities-wal"
    first = EntityFile(path, lambda: StoredEntities({}, 0, ()))
    for number in range(50):
        first.write({b"key %d" % number: bytes(3000)}, number, [])
    written = log.read_bytes()
    first.close()
    path.unlink()
    log.write_bytes(written)

    second = EntityFile(path, lambda: StoredEntities({b"new": b"entity"}, 7, ()))

    assert second.read() == StoredEntities({b"new": b"entity"}, 7, frozenset())
    second.close()
    assert (tmp_path / "entities-wal.old").read_bytes() == written
