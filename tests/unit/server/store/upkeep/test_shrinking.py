"""The store's file gets smaller when many tasks were deleted."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep.shrinking import KEPT_PAGES
from tests.support.running import WAIT_SECONDS
from tests.support.storing import Clock, new_task

PAGE = 4096
SMALL_BYTES = (KEPT_PAGES + 600) * PAGE


def fill(store: TaskStore, tasks: int = 300) -> None:
    """Add tasks of about 100 KB each."""
    for _ in range(tasks // 50):
        store.add([new_task(body=b"x" * 100_000) for _ in range(50)])


def await_small(path: Path) -> None:
    """Wait until the file is small."""
    until = time.monotonic() + WAIT_SECONDS
    while path.stat().st_size > SMALL_BYTES:
        assert time.monotonic() < until, path.stat().st_size
        # No portable event announces that a file has shrunk.
        time.sleep(0.01)


def test_a_purge_shrinks_the_file(tmp_path: Path, clock: Clock) -> None:
    """After a purge, the file is small without a restart, and the tasks of other queues are whole."""
    path = tmp_path / "tasks.sqlite"
    with closing(TaskStore(path, clock=clock)) as store:
        fill(store)
        store.add([new_task("kept", queue="other", body=b"y" * 50_000)])
        store.operations.purge("default")
        await_small(path)
        kept = store.queries.get("other", "kept")
        assert kept is not None
        assert kept.body == b"y" * 50_000
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_an_older_file_is_converted(tmp_path: Path, clock: Clock) -> None:
    """A file of an earlier version keeps its tasks, and shrinks from then on."""
    path = tmp_path / "tasks.sqlite"
    with closing(TaskStore(path, clock=clock)) as store:
        fill(store)
        store.add([new_task("kept", queue="other")])
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA journal_mode=DELETE", "PRAGMA auto_vacuum=NONE", "VACUUM", "PRAGMA journal_mode=WAL"):
        connection.execute(statement)
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    connection.close()

    with closing(TaskStore(path, clock=clock)) as store:
        assert store.queries.counts() == {"default": {"ready": 300}, "other": {"ready": 1}}
        store.operations.purge("default")
        await_small(path)
        assert store.queries.get("other", "kept") is not None
