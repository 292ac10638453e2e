"""The record of the last commit."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep.commit_record import CommitStamps, Recorded, read_record, read_stamp
from tests.support.storing import LANE, NOW, Clock, completion, new_task


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A database with the table of counts."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE counts (queue, state, number, PRIMARY KEY (queue, state))")
        yield connection


def test_stamps_only_grow(tmp_path: Path, connection: sqlite3.Connection) -> None:
    """A stamp is later than the one before, even if the clock stands still or is set back."""
    times = iter([100, 100, 50, 200])
    stamps = CommitStamps(tmp_path / "record", last_usec=99, now_usec=lambda: next(times), wall_usec=lambda: 3)
    found = []
    for _ in range(4):
        stamps.write(connection)
        stamps.committed(7)
        found.append(read_stamp(connection))
        assert read_record(tmp_path / "record") == Recorded(stamp_usec=found[-1], wall_usec=3, tasks=7)
    stamps.close()
    assert found == [100, 101, 102, 200]


def test_the_duration_of_commits_is_known(tmp_path: Path, connection: sqlite3.Connection) -> None:
    """It is that of the last commit, or of the current one if that takes longer already; without any, infinity."""
    now = 5.0
    stamps = CommitStamps(
        tmp_path / "record", last_usec=0, now_usec=lambda: 1, wall_usec=lambda: 3, elapsed=lambda: now
    )
    assert stamps.seconds == math.inf
    stamps.write(connection)
    now = 5.5
    stamps.committed(7)
    now = 6.0
    assert stamps.seconds == 0.5
    stamps.write(connection)
    now = 6.25
    assert stamps.seconds == 0.5
    now = 7.0
    assert stamps.seconds == 1.0
    stamps.write(connection)
    now = 7.25
    stamps.committed(7)
    assert stamps.seconds == 0.25
    stamps.close()


@pytest.mark.parametrize("slot", [0, 1])
def test_a_torn_record_leaves_the_other_one(tmp_path: Path, connection: sqlite3.Connection, slot: int) -> None:
    """If one of the two records is torn, the other one counts."""
    path = tmp_path / "record"
    stamps = CommitStamps(path, last_usec=0, now_usec=lambda: 5, wall_usec=lambda: 3)
    for _ in range(2):
        stamps.write(connection)
        stamps.committed(1)
    stamps.close()
    content = bytearray(path.read_bytes())
    content[slot * 512 + 10] ^= 1
    path.write_bytes(content)
    found = read_record(path)
    assert found is not None
    assert found.stamp_usec in (5, 6)


@pytest.mark.parametrize("content", [b"", b"\0" * 1024, b"short"])
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes) -> None:
    """An empty file, or one that a power cut has left without content, is no record."""
    (tmp_path / "record").write_bytes(content)
    assert read_record(tmp_path / "record") is None
    assert read_record(tmp_path / "missing") is None


def test_a_record_that_cannot_be_written_is_reported_once(
    tmp_path: Path, connection: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """If the file can't be written, one error says so, and commits go on."""
    stamps = CommitStamps(tmp_path / "missing" / "record", last_usec=0, now_usec=lambda: 5, wall_usec=lambda: 3)
    for _ in range(3):
        stamps.write(connection)
        stamps.committed(1)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_durable_changes_are_recorded_before_they_are_acknowledged(tmp_path: Path, clock: Clock) -> None:
    """After each acknowledged change the record and the store have the same new stamp; a claim needs none."""
    path = tmp_path / "tasks.sqlite"
    record = tmp_path / "tasks.sqlite.committed"
    with contextlib.closing(TaskStore(path, clock=clock)) as store:

        def check(*, changed: bool, before: list[Recorded | None] = [None]) -> None:  # noqa: B006 - the last record
            found = read_record(record)
            assert found is not None
            assert (found != before[0]) == changed
            assert store._database.reader.use(read_stamp) == found.stamp_usec
            before[0] = found

        store.add([new_task("a"), new_task("b")])
        check(changed=True)
        store.add([new_task("a")])
        check(changed=False)
        (claimed,) = store.claim({LANE: 1}, NOW)
        check(changed=False)
        store.complete([completion(claimed)])
        check(changed=True)
        store.operations.pause("default")
        check(changed=True)
        assert store.queries.counts() == {"default": {"ready": 1, "succeeded": 1}}
    assert os.stat(record).st_mode & 0o077 == 0


def _set_tags(tag: str, connection: sqlite3.Connection, _tally: object) -> None:
    connection.execute("UPDATE tasks SET tag = ?", (tag,))


def test_unsynced_commits_are_few(tmp_path: Path, clock: Clock) -> None:
    """Of commits that need not be durable, at least each ninth is."""
    with contextlib.closing(TaskStore(tmp_path / "tasks.sqlite", clock=clock)) as store:
        store.add([new_task() for _ in range(40)])
        stamps = set()
        for number in range(36):
            change = functools.partial(_set_tags, str(number))
            store._writer.submit(change, durable=False).result()
            stamps.add(store._database.reader.use(read_stamp))
        assert len(stamps) == 5
