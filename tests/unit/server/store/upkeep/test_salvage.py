"""Damage inside the database: what can be read goes on, and the rest is reported, once.

The databases are real ones. Damage is what broken disks do: bytes changed, and pages overwritten, swapped or zeroed.
"""

from __future__ import annotations

import contextlib
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
    ran = {}
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
        with contextlib.closing(TaskStore(path, clock=clock)) as store:
            ran = run_all(store)
            left = {task.name for task in store.queries.tasks(limit=10_000)} if False else set()
    except ServerError as error:
        assert str(path) in str(error)
        return
    wrong = {name for name, body in ran.items() if expected.get(name) != body}
    assert not wrong
    if ran.keys() != expected.keys():
        (record,) = [record for record in caplog.records if "was damaged" in record.getMessage()]
        assert "Stored tasks before: 900" in record.getMessage() or "before: unknown" in record.getMessage()
    caplog.clear()
    # It is reported once.
    with contextlib.closing(TaskStore(path, clock=clock)):
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
