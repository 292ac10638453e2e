"""Logs that are damaged, shortened or gone: what was acknowledged is there, or the server's log says that it isn't.

The store of a killed server is a copy of its files while it is open.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import LANE, NOW, Clock, completion, new_task

TRIALS = 1500 if os.environ.get("DEFERRED_SOAK") else 40
STORE = "tasks.sqlite"
LOG = f"{STORE}-wal"
RECORD = f"{STORE}.committed"


def copy(source: Path, target: Path) -> Path:
    """Copy the files that a killed server leaves."""
    target.mkdir()
    for name in (STORE, LOG, RECORD):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return target


def names_in(directory: Path, clock: Clock) -> set[str]:
    """Open a store as a server does, and return the names of its tasks."""
    with contextlib.closing(TaskStore(directory / STORE, clock=clock)):
        connection = sqlite3.connect(f"{(directory / STORE).as_uri()}?mode=ro", uri=True)
        with contextlib.closing(connection):
            return {name for (name,) in connection.execute("SELECT name FROM tasks")}


@pytest.fixture
def killed(tmp_path: Path, clock: Clock) -> Iterator[Path]:
    """The files of a store with 60 acknowledged tasks in its log and some in the database, killed in the middle."""
    source = tmp_path / "source"
    first = TaskStore(source / STORE, clock=clock)
    first.add([new_task(f"early-{number}") for number in range(20)])
    first.close()
    with contextlib.closing(TaskStore(source / STORE, clock=clock)) as store:
        for number in range(60):
            store.add([new_task(f"task-{number}", body=b"x" * 3000)])
        yield copy(source, tmp_path / "killed")


def test_a_file_with_a_journal_is_rolled_back(tmp_path: Path, clock: Clock) -> None:
    """A kill before the file was in WAL mode leaves a journal, and the store opens with what was there before."""
    source = tmp_path / "source"
    with contextlib.closing(TaskStore(source / STORE, clock=clock)) as store:
        store.add([new_task(f"task-{number}", body=b"x" * 3000) for number in range(50)])
    with contextlib.closing(sqlite3.connect(source / STORE, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA cache_size=1")  # so that changed pages are in the file before the commit
        connection.execute("BEGIN")
        connection.execute("UPDATE tasks SET name = 'changed' || id")
        connection.execute("UPDATE payloads SET body = zeroblob(3000)")
        target = copy(source, tmp_path / "killed")
        shutil.copy(source / f"{STORE}-journal", target / f"{STORE}-journal")
        connection.execute("ROLLBACK")
    assert names_in(target, clock) == {f"task-{number}" for number in range(50)}


ALL = {f"early-{number}" for number in range(20)} | {f"task-{number}" for number in range(60)}


def flip(path: Path, at: int) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def test_a_kill_is_no_damage(killed: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """After a kill, all tasks are there and nothing is reported."""
    assert names_in(killed, clock) == ALL
    assert caplog.text == ""
    assert sorted(path.name for path in killed.iterdir() if "damaged" in path.name) == []


def test_a_clean_stop_leaves_no_log_and_no_report(killed: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """After a clean stop there is no log, and nothing is reported."""
    names_in(killed, clock)
    assert not (killed / LOG).exists()

    assert names_in(killed, clock) == ALL
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip(path, path.stat().st_size // 2), "can be read only up to frame"),
        (lambda path: flip(path, 20), "can be read only up to frame 0"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "can be read only up to frame"),
        (lambda path: os.truncate(path, 0), "is empty"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["a byte in the middle", "a byte of the header", "cut in half", "cut to nothing", "deleted"],
)
def test_a_damaged_log_is_reported_once(
    killed: Path, clock: Clock, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    """The error says what is wrong, since when, and how many tasks there were; the log is kept aside."""
    damage(killed / LOG)
    damaged = (killed / LOG).read_bytes() if (killed / LOG).exists() else b""

    left = names_in(killed, clock)

    assert left < ALL
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert reason in record.getMessage()
    assert f"the number of stored tasks was {len(ALL)}; now it is {len(left)}" in record.getMessage()
    kept = [path.read_bytes() for path in killed.iterdir() if ".damaged-" in path.name]
    assert kept == ([damaged] if damaged else [])
    caplog.clear()
    assert names_in(killed, clock) == left
    assert caplog.text == ""


def test_lost_tasks_are_named(killed: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The error names lost tasks that can still be read behind the damage."""
    flip(killed / LOG, (killed / LOG).stat().st_size // 2)

    left = names_in(killed, clock)

    assert "commits follow after the damage" in caplog.text
    assert f"Lost tasks that the damaged log still shows: {len(ALL - left)} (default/task-" in caplog.text


def test_damage_without_a_record_is_reported(killed: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Many whole commits behind the damage are reported, even if the record of the last commit is gone."""
    with contextlib.closing(TaskStore(killed / STORE, clock=clock)) as store:
        for number in range(60):
            store.add([new_task(f"more-{number}")])
        found = copy(killed, killed.parent / "found")
    (found / RECORD).unlink()
    flip(found / LOG, 5000)

    assert names_in(found, clock) < ALL | {f"more-{number}" for number in range(60)}
    assert "Acknowledged changes of the task store are lost" in caplog.text


@pytest.mark.parametrize("name", [STORE, LOG])
def test_a_store_that_would_begin_anew_is_refused(killed: Path, clock: Clock, name: str) -> None:
    """A database that is empty, or missing while its log is there, is refused with a sentence; its log stays."""
    if name == STORE:
        os.truncate(killed / STORE, 0)
    else:
        (killed / STORE).unlink()
    log = (killed / LOG).read_bytes()

    with pytest.raises(ServerError, match="to begin with an empty store"):
        names_in(killed, clock)

    assert (killed / LOG).read_bytes() == log


def test_a_deleted_store_is_reported_once(killed: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A store that a person has deleted is begun anew, and an error says so once."""
    (killed / STORE).unlink()
    (killed / LOG).unlink()

    assert names_in(killed, clock) == set()
    assert f"{killed / STORE} is missing" in caplog.text
    caplog.clear()
    assert names_in(killed, clock) == set()
    assert caplog.text == ""


def test_a_torn_record_is_ignored(killed: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A record that a power cut has torn reports nothing."""
    (killed / RECORD).write_bytes(random.Random(1).randbytes(1024))

    assert names_in(killed, clock) == ALL
    assert caplog.text == ""


def test_no_damage_of_the_log_loses_tasks_in_silence(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is damaged in the log, every acknowledged task is there, or an error says that changes are lost."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    silent = []
    lossy = 0
    for trial in range(TRIALS):
        directory = tmp_path / str(trial)
        acknowledged: set[str] = set()
        with contextlib.closing(TaskStore(directory / "source" / STORE, clock=clock)) as store:
            # SQLite copies its log into the database after 1000 pages, so some kills come after that.
            for number in range(chance.choice([5, 30, 90])):
                body = b"x" * chance.choice([100, 3000, 60_000])
                acknowledged.update(result.name for result in store.add([new_task(f"task-{number}", body=body)]))
                if chance.random() < 0.3:
                    store.complete([completion(task) for task in store.claim({LANE: 1}, NOW)])
            killed = copy(directory / "source", directory / "killed")
        log = killed / LOG
        size = log.stat().st_size
        kind = chance.choice(["flip", "zero", "cut", "delete", "garbage"])
        if kind == "cut":
            os.truncate(log, chance.randrange(size))
        elif kind == "delete":
            log.unlink()
        else:
            content = bytearray(log.read_bytes())
            at, length = chance.randrange(size), 1 if kind == "flip" else chance.choice([1, 512, 4096])
            length = min(length, size - at)
            content[at : at + length] = (
                bytes([content[at] ^ 1])
                if kind == "flip"
                else bytes(length)
                if kind == "zero"
                else chance.randbytes(length)
            )
            log.write_bytes(content)
        caplog.clear()
        lost = acknowledged - names_in(killed, clock)
        lossy += bool(lost)
        if lost and "Acknowledged changes of the task store are lost" not in caplog.text:
            silent.append(f"seed {seed}, trial {trial}, {kind}: {len(lost)} tasks")
        shutil.rmtree(directory)

    assert silent == []
    assert lossy
