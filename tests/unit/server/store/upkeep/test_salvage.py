"""Damage inside the database: what can be read goes on, and the rest is reported, once.

The databases are real ones. Damage is what broken disks do: bytes changed, and pages overwritten, swapped or zeroed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.records import Lane
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep import salvage
from tests.support.storing import NOW, Clock, completion, new_task

TRIALS = 1500 if os.environ.get("DEFERRED_SOAK") else 40
STORE = "tasks.sqlite"
QUEUES = ("one", "two", "three")
TASKS = 300
PAGE_BYTES = 4096


def make_store(directory: Path, clock: Clock) -> Path:
    """Make a closed store with tasks of three queues in all states, some with large payloads and some named."""
    directory.mkdir()
    path = directory / STORE
    with contextlib.closing(TaskStore(path, clock=clock)) as store:
        for queue in QUEUES:
            store.add(
                [
                    new_task(f"{queue}-{number}", queue=queue, body=os.urandom(20 if number % 50 else 20_000))
                    for number in range(TASKS)
                ]
            )
            done = store.claim({Lane(queue, ""): 40}, NOW)
            store.complete([completion(task, "succeeded" if task.id % 2 else "failed") for task in done])
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that is whole. Tests damage copies of it."""
    return make_store(tmp_path_factory.mktemp("whole") / "store", Clock())


def damaged_copy(whole: Path, target: Path, damage: Callable[[bytearray], None]) -> Path:
    """Copy a closed store, and damage the copy's database."""
    target.mkdir()
    for name in (STORE, f"{STORE}.committed"):
        shutil.copy(whole.parent / name, target / name)
    content = bytearray((target / STORE).read_bytes())
    damage(content)
    (target / STORE).write_bytes(content)
    return target / STORE


def unfinished(path: Path) -> dict[str, bytes]:
    """Return the payloads of the unfinished tasks in a store that is whole, by their names."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT name, body FROM tasks JOIN payloads ON task_id = id WHERE state IN ('ready', 'running')"
        )
        return dict(rows.fetchall())


def run_all(store: TaskStore) -> dict[str, bytes]:
    """Claim and complete every task that can be claimed, as the scheduler does; return their payloads by name."""
    ran: dict[str, bytes] = {}
    for lane, _eta_usec in store.queries.lanes():
        while tasks := store.claim({lane: 100}, NOW):
            ran |= {task.name: task.body for task in tasks}
            assert all(store.complete([completion(task) for task in tasks]))
    return ran


def number_of_pages(path: Path) -> int:
    """Return how many pages a database has."""
    return path.stat().st_size // PAGE_BYTES


def root_pages(path: Path) -> dict[str, int]:
    """Return the first page of each table and index."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE rootpage > 0").fetchall())


def damages(seed: int, pages: int) -> Callable[[bytearray], None]:
    """Return a random damage to some pages; the first page is left, because without it there is no database."""
    chance = random.Random(seed)

    def damage(content: bytearray) -> None:
        for _ in range(chance.choice((1, 1, 2, 5))):
            start = chance.randrange(1, pages) * PAGE_BYTES
            kind = chance.choice(("zero", "random", "swap", "bytes", "half"))
            if kind == "zero":
                content[start : start + PAGE_BYTES] = bytes(PAGE_BYTES)
            elif kind == "random":
                content[start : start + PAGE_BYTES] = chance.randbytes(PAGE_BYTES)
            elif kind == "swap":
                other = chance.randrange(1, pages) * PAGE_BYTES
                one, two = content[start : start + PAGE_BYTES], content[other : other + PAGE_BYTES]
                content[start : start + PAGE_BYTES], content[other : other + PAGE_BYTES] = two, one
            elif kind == "half":
                content[start + PAGE_BYTES // 2 : start + PAGE_BYTES] = bytes(PAGE_BYTES // 2)
            else:
                for _ in range(chance.randrange(1, 40)):
                    content[start + chance.randrange(PAGE_BYTES)] = chance.randrange(256)

    return damage


@pytest.mark.parametrize("seed", range(TRIALS))
def test_nothing_is_lost_in_silence(
    whole: Path, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """After any damage, each task runs with its own payload, or the log says that tasks are lost or damaged."""
    path = damaged_copy(whole, tmp_path / "damaged", damages(seed, number_of_pages(whole)))
    expected = unfinished(whole)
    try:
        store = TaskStore(path, clock=clock)
    except ServerError as refused:
        sentence = str(refused)
        assert str(path) in sentence
        return
    with contextlib.closing(store):
        ran = run_all(store)
    wrong = {name for name, body in ran.items() if expected.get(name) != body}
    assert not wrong
    if ran.keys() != expected.keys():
        told = [record.getMessage() for record in caplog.records if "was damaged" in record.getMessage()]
        single = [text for text in told if "was damaged on the disk. It is not run" in text]
        whole_file = [text for text in told if text.startswith("The database ")]
        assert len(whole_file) <= 1
        if whole_file:
            assert "Stored tasks before: 900" in whole_file[0] or "before: unknown" in whole_file[0]
        else:
            assert len(single) == len(expected.keys() - ran.keys())
    caplog.clear()
    # It is reported once.
    with contextlib.closing(TaskStore(path, clock=clock)):
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_text_that_is_not_utf_8_stops_nobody_else(whole: Path, tmp_path: Path, clock: Clock) -> None:
    """A task whose URL has become bytes that are no text is a dead letter, and the other tasks of its queue run."""
    path = damaged_copy(whole, tmp_path / "damaged", lambda content: None)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE tasks SET url = CAST(x'2fff' AS TEXT) WHERE name = 'one-200'")
        connection.commit()
    with contextlib.closing(TaskStore(path, clock=clock)) as store:
        assert unfinished(whole).keys() - run_all(store).keys() == {"one-200"}
        failed = store.queries.get("one", "one-200")
        assert failed is not None
        (attempt,) = store.queries.attempts(failed.id)
        assert "damaged on the disk" in (attempt.reason or "")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE payloads SET body = x'00' WHERE task_id = {}",
        "UPDATE payloads SET body = 'text' WHERE task_id = {}",
        "UPDATE payloads SET headers = '[[' WHERE task_id = {}",
        'UPDATE payloads SET headers = \'[["X-Other", "1"]]\' WHERE task_id = {}',
        "UPDATE tasks SET url = '/other' WHERE id = {}",
        "UPDATE payloads SET headers = '[[', checksum = NULL WHERE task_id = {}",
    ],
)
def test_a_task_that_has_changed_on_the_disk_is_not_run(
    whole: Path, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """It is a dead letter, one error names it, the counts are right, and all other tasks run."""
    path = damaged_copy(whole, tmp_path / "damaged", lambda content: None)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (task_id,) = connection.execute("SELECT id FROM tasks WHERE name = 'two-100'").fetchone()
        connection.execute(change.format(task_id))
        connection.commit()
    with contextlib.closing(TaskStore(path, clock=clock)) as store:
        assert unfinished(whole).keys() - run_all(store).keys() == {"two-100"}
        task = store.queries.get_by_id(task_id)
        assert task is not None
        assert task.state == "failed"
        assert store.queries.counts()["two"]["failed"] == 21
        assert not store.queries.counts()["two"].get("ready")
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert ["two-100" in record.getMessage() for record in told] == [True]


@pytest.mark.parametrize("with_log", [False, True])
def test_a_repair_that_was_interrupted_is_finished(whole: Path, tmp_path: Path, clock: Clock, with_log: bool) -> None:
    """If the server is killed before the new database takes the old one's place, the next start puts it there."""
    path = damaged_copy(whole, tmp_path / "damaged", lambda content: None)
    path.rename(salvage.finished_path(path))
    # What is left of the damaged one.
    path.write_bytes(b"damaged")
    log = path.with_name(f"{STORE}-wal")
    if with_log:
        log.write_bytes(b"a log of the damaged one")
    with contextlib.closing(TaskStore(path, clock=clock)) as store:
        assert run_all(store).keys() == unfinished(whole).keys()


def test_what_a_kill_left_of_a_repair_is_made_again(whole: Path, tmp_path: Path, clock: Clock) -> None:
    """A new database that is not complete is thrown away; the old one is still there."""
    path = damaged_copy(whole, tmp_path / "damaged", damages(3, number_of_pages(whole)))
    path.with_name(f"{STORE}.repairing").write_bytes(b"half of a database")
    with contextlib.closing(TaskStore(path, clock=clock)) as store:
        assert len(run_all(store)) > 700
    assert not list(path.parent.glob("*.repairing*"))


def test_a_disk_without_space_for_the_copy(
    whole: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the damaged file can't be kept, the server doesn't start, says why, and the file stays as it was."""
    root = root_pages(whole)["payloads"]

    def zero_root(content: bytearray) -> None:
        content[(root - 1) * PAGE_BYTES : root * PAGE_BYTES] = bytes(PAGE_BYTES)

    path = damaged_copy(whole, tmp_path / "damaged", zero_root)
    before = path.read_bytes()

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(ServerError, match=r"No space left on device\. Make space"):
        TaskStore(path, clock=clock)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*damaged-*")) + list(path.parent.glob("*.repair*"))
