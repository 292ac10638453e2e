"""The reserve for a full disk; a limit on the file size simulates the full disk."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.store.upkeep import disk_reserve
from deferred_middleware.server.store.upkeep.disk_reserve import (
    RESERVE_BYTES,
    DiskReserve,
    StoreFullError,
    is_disk_full,
)

Limit = Callable[[int], None]


@pytest.fixture
def limit() -> Iterator[Limit]:
    """Return a function that limits the size of files, so that larger ones fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def blocks(path: Path) -> int:
    """Return how many bytes a file occupies on the disk."""
    return os.stat(path).st_blocks * 512


def test_the_space_is_allocated_at_once_and_freed_once(tmp_path: Path) -> None:
    """The file has real blocks, not a hole; they can be freed once."""
    reserve = DiskReserve(tmp_path / "reserve")
    assert reserve.ensure_allocated()
    assert blocks(tmp_path / "reserve") >= RESERVE_BYTES
    assert reserve.free()
    assert blocks(tmp_path / "reserve") == 0
    assert not reserve.free()


def test_the_space_is_allocated_again_when_there_is_some(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full, nothing is allocated; after that, the reserve is allocated again."""
    monkeypatch.setattr(disk_reserve, "_RETRY_SECONDS", 0)
    reserve = DiskReserve(tmp_path / "reserve")
    reserve.free()
    limit(100_000)
    assert not reserve.ensure_allocated()
    assert blocks(tmp_path / "reserve") == 0
    limit(2 * RESERVE_BYTES)
    assert reserve.ensure_allocated()
    assert blocks(tmp_path / "reserve") >= RESERVE_BYTES
    assert reserve.free()


def test_the_allocation_is_not_tried_at_every_add(tmp_path: Path) -> None:
    """The allocation is tried at most once a second, however many callers ask."""
    reserve = DiskReserve(tmp_path / "reserve")
    reserve.free()
    assert reserve.ensure_allocated()
    reserve.free()
    assert not reserve.ensure_allocated()


def test_a_disk_that_is_full_at_the_start(tmp_path: Path, limit: Limit, caplog: pytest.LogCaptureFixture) -> None:
    """If the disk is full, the reserve logs a warning and has an error for adding tasks."""
    limit(100_000)
    reserve = DiskReserve(tmp_path / "reserve")
    assert "full" in caplog.text
    assert not reserve.ensure_allocated()
    assert isinstance(reserve.full_error, StoreFullError)
    assert str(tmp_path) in str(reserve.full_error)


def test_other_errors_are_no_full_disk() -> None:
    """An error that is not from SQLite doesn't count as a full disk."""
    assert not is_disk_full(RuntimeError("disk is full"))
