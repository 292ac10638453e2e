"""The reserve for a full disk, on a file system that takes no larger files."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.store import disk_reserve
from deferred_middleware.server.store.disk_reserve import RESERVE_BYTES, DiskReserve, StoreFullError, is_disk_full

Limit = Callable[[int], None]


@pytest.fixture
def limit() -> Iterator[Limit]:
    """Return a function that limits how large a file may get; to the process it is as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def blocks(path: Path) -> int:
    """Return how many bytes of the disk a file has."""
    return os.stat(path).st_blocks * 512


def test_the_space_is_taken_at_once_and_given_up_once(tmp_path: Path) -> None:
    """The file has real blocks, not a hole; spending frees them, and there is nothing more to spend then."""
    reserve = DiskReserve(tmp_path / "reserve")
    assert reserve.is_whole()
    assert blocks(tmp_path / "reserve") >= RESERVE_BYTES
    assert reserve.spend()
    assert blocks(tmp_path / "reserve") == 0
    assert not reserve.spend()


def test_it_is_whole_again_when_there_is_space(tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full it isn't whole and takes nothing; afterwards it is, by itself."""
    monkeypatch.setattr(disk_reserve, "_TRY_AGAIN_SECONDS", 0)
    reserve = DiskReserve(tmp_path / "reserve")
    reserve.spend()
    limit(100_000)
    assert not reserve.is_whole()
    assert blocks(tmp_path / "reserve") == 0
    limit(2 * RESERVE_BYTES)
    assert reserve.is_whole()
    assert blocks(tmp_path / "reserve") >= RESERVE_BYTES
    assert reserve.spend()


def test_it_is_not_tried_at_every_add(tmp_path: Path) -> None:
    """Whether there is space again is looked at once in a second, however many ask."""
    reserve = DiskReserve(tmp_path / "reserve")
    reserve.spend()
    assert reserve.is_whole()
    reserve.spend()
    assert not reserve.is_whole()


def test_a_disk_that_is_full_at_the_start(tmp_path: Path, limit: Limit, caplog: pytest.LogCaptureFixture) -> None:
    """A store can be opened on a full disk, says so, and takes no tasks."""
    limit(100_000)
    reserve = DiskReserve(tmp_path / "reserve")
    assert "full" in caplog.text
    assert not reserve.is_whole()
    assert isinstance(reserve.full_error, StoreFullError)
    assert str(tmp_path) in str(reserve.full_error)


def test_other_errors_are_no_full_disk() -> None:
    """Only SQLite's own word for it counts."""
    assert not is_disk_full(RuntimeError("disk is full"))
