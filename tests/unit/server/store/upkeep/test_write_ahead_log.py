"""SQLite's log, read behind a damaged frame."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep.write_ahead_log import Log, TaskRow, read_log
from tests.support.storing import Clock, new_task

HEADER = 32
FRAME = 24 + 4096


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> Path:
    """The log of a store with four commits, one of them with the task "last"."""
    with contextlib.closing(TaskStore(tmp_path / "tasks.sqlite", clock=clock)) as store:
        for name in ("first", "second", "last"):
            store.add([new_task(name)])
        shutil.copy(tmp_path / "tasks.sqlite-wal", tmp_path / "log")
    return tmp_path / "log"


def frames(path: Path) -> int:
    """Return the number of frames in a log."""
    return (path.stat().st_size - HEADER) // FRAME


def test_a_whole_log_has_nothing_behind_it(log: Path) -> None:
    """All frames of an undamaged log are whole."""
    found = read_log(log)
    assert (found.whole_frames, found.later_commits, found.later_tasks()) == (frames(log), 0, {})


def test_commits_behind_a_damaged_frame_are_found(log: Path) -> None:
    """Behind a frame with a wrong byte, whole commits are counted, and their tasks are read."""
    content = bytearray(log.read_bytes())
    content[HEADER + 24 + 5] ^= 1
    log.write_bytes(content)
    found = read_log(log)
    assert found.whole_frames == 0
    assert found.later_commits >= 3
    assert found.later_tasks()[3] == TaskRow(queue="default", name="last", state="ready")


def test_a_cut_log_ends_at_its_last_commit(log: Path) -> None:
    """Frames of a commit that isn't whole don't count."""
    whole = frames(log)
    log.write_bytes(log.read_bytes()[:-1])
    found = read_log(log)
    assert 0 < found.whole_frames < whole
    assert found.later_commits == 0


@pytest.mark.parametrize("content", [b"", b"x", bytes(32), b"\xff" * 5000])
def test_what_is_no_log_is_empty(tmp_path: Path, content: bytes) -> None:
    """Files without a valid header have no frames."""
    (tmp_path / "log").write_bytes(content)
    assert read_log(tmp_path / "log") == Log() == read_log(tmp_path / "missing")
