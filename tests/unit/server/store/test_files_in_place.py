"""The task store's files are deleted, moved or replaced while it is open."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.writer import StoreStoppedError
from tests.support.storing import LANE, NOW, new_task

Accident = Callable[[Path], object]


def _empty(file: Path) -> None:
    file.unlink()
    file.touch()


def _restored(directory: Path) -> None:
    shutil.copytree(directory, directory.with_name("copy"))
    shutil.rmtree(directory)
    directory.with_name("copy").rename(directory)


def _became_a_file(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.touch()


ACCIDENTS: dict[str, Accident] = {
    "directory deleted": shutil.rmtree,
    "directory moved": lambda directory: directory.rename(directory.with_name("elsewhere")),
    "directory replaced by a copy": _restored,
    "directory replaced by a file": _became_a_file,
    "parent moved": lambda directory: directory.parent.rename(directory.parent.with_name("elsewhere")),
    "database deleted": lambda directory: (directory / "tasks.sqlite").unlink(),
    "database moved": lambda directory: (directory / "tasks.sqlite").rename(directory / "other"),
    "database replaced": lambda directory: _empty(directory / "tasks.sqlite"),
    "log deleted": lambda directory: (directory / "tasks.sqlite-wal").unlink(),
    "log replaced": lambda directory: _empty(directory / "tasks.sqlite-wal"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a store, two directories deep."""
    directory = tmp_path / "parent" / "data"
    directory.mkdir(parents=True)
    return directory / "tasks.sqlite"


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_add_to_files_that_are_gone_is_refused(path: Path, accident: str) -> None:
    """Once a file is not at its path, no add is acknowledged; the error names the file, and it is reported once."""
    failures: list[ServerError] = []
    store = TaskStore(path, on_failure=failures.append)
    store.add([new_task("before")])
    ACCIDENTS[accident](path.parent)

    for name in ("one", "two"):
        with pytest.raises(StoreStoppedError, match=r"(deleted|moved|replaced)") as caught:
            store.add([new_task(name)])
        assert str(path) in str(caught.value)
        assert str(caught.value).count(". ") == 0  # one sentence
    with pytest.raises(StoreStoppedError):
        store.claim({LANE: 1}, NOW)
    assert [type(failure) for failure in failures] == [StoreStoppedError]
    store.close()


@pytest.mark.parametrize("accident", ["log deleted", "log replaced", "directory moved", "database moved"])
def test_what_was_acknowledged_before_is_not_lost(path: Path, accident: str) -> None:
    """If the database itself still exists, closing the store leaves it with all acknowledged tasks."""
    store = TaskStore(path)
    for number in range(20):
        store.add([new_task(f"t{number}")])
    moved = {"directory moved": path.parent.with_name("elsewhere") / path.name, "database moved": path.parent / "other"}
    ACCIDENTS[accident](path.parent)
    with pytest.raises(StoreStoppedError):
        store.add([new_task("refused")])
    store.close()

    found = moved.get(accident, path)
    if accident == "database moved":
        # A database and its log belong together.
        (path.parent / "tasks.sqlite-wal").rename(path.parent / "other-wal")
    connection = sqlite3.connect(found)
    names = {name for (name,) in connection.execute("SELECT name FROM tasks")}
    connection.close()
    assert {f"t{number}" for number in range(20)} <= names


def test_the_files_of_another_store_at_the_path_are_left_alone(path: Path) -> None:
    """If another server's directory is at the path, closing the store deletes none of its files."""
    store = TaskStore(path)
    store.add([new_task("mine")])
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.mkdir()
    other = TaskStore(path)
    other.add([new_task("theirs")])

    with pytest.raises(StoreStoppedError):
        store.add([new_task("refused")])
    store.close()

    assert path.with_name("tasks.sqlite-wal").exists()
    other.add([new_task("more")])
    other.close()
    again = TaskStore(path)
    assert {task.name for task in again.queries.find().tasks} == {"theirs", "more"}
    again.close()


def test_nothing_is_said_while_the_files_are_in_place(path: Path) -> None:
    """Copies, other files and a checkpoint of the log don't count as an accident."""
    failures: list[ServerError] = []
    store = TaskStore(path, on_failure=failures.append)
    shutil.copytree(path.parent, path.parent.with_name("copy"))
    (path.parent / "datastore.sqlite").touch()
    for _ in range(30):
        store.add([new_task(body=bytes(200_000))])  # larger than the log grows before it is copied
    store.close()
    assert failures == []
