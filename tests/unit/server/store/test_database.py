"""Files of earlier versions of the task store."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.database import SCHEMA_VERSION
from deferred_middleware.server.store.records import RetryPolicy
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, new_task

DATA = Path(__file__).parent / "data"


def _version_1(path: Path) -> None:
    """Write a file of version 1 of the schema, with a task in each state."""
    connection = sqlite3.connect(path)
    connection.executescript((DATA / "schema-1.sql").read_text())
    for number, (name, state, finished) in enumerate(
        (
            ("waits", "ready", None),
            ("runs", "running", None),
            ("good", "succeeded", NOW - DAY_USEC),
            ("bad", "failed", NOW - 8 * DAY_USEC),
        ),
        start=1,
    ):
        connection.execute(
            "INSERT INTO tasks (id, queue, name, user_named, state, eta_usec, created_usec, finished_usec, method, url,"
            " target, retry, retry_count, claim_token)"
            " VALUES (?, 'default', ?, 1, ?, ?, ?, ?, 'POST', '/work', '', '{\"retry_limit\": 3}', 2, 5)",
            (number, name, state, NOW, NOW - 1, finished),
        )
        connection.execute('INSERT INTO payloads VALUES (?, \'[["X-A", "1"]]\', ?)', (number, b"body"))
        connection.execute("INSERT INTO attempts VALUES (?, 1, ?, 5, 500, 'r', 's', ?)", (number, NOW, b"oops"))
    connection.execute("INSERT INTO tombstones VALUES ('default', 'gone', ?)", (NOW + DAY_USEC,))
    connection.commit()
    connection.close()


def test_a_store_of_version_1_is_migrated(tmp_path: Path, clock: Clock) -> None:
    """The migration keeps tasks, payloads, attempts and blocked names, and fills the table of counts."""
    path = tmp_path / "tasks.sqlite"
    _version_1(path)
    store = TaskStore(path, clock=clock, elapsed=clock)
    try:
        assert store.queries.counts() == {"default": {"ready": 2, "succeeded": 1, "failed": 1}}
        for name in ("waits", "runs", "good", "bad"):
            task = store.queries.get("default", name)
            assert task is not None
            assert (task.body, task.headers, task.retry_count) == (b"body", (("X-A", "1"),), 2)
            assert task.retry is not None
            assert task.retry.retry_limit == 3
            assert [attempt.excerpt for attempt in store.queries.attempts(task.id)] == [b"oops"]
        names = ("waits", "runs", "good", "bad", "gone")
        assert [r.outcome for r in store.add([new_task(n) for n in names])] == [
            "exists", "exists", "tombstoned", "tombstoned", "tombstoned",
        ]  # fmt: skip
        assert [task.name for task in store.claim({LANE: 5}, NOW)] == ["waits", "runs"]
        clock.usec += DAY_USEC
        assert store.add([new_task("bad")])[0].outcome == "added"
    finally:
        store.close()


def test_a_migrated_store_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    """A migrated file has the same tables, constraints and indexes as a new file."""
    shapes = []
    for name in ("old", "new"):
        path = tmp_path / name
        if name == "old":
            _version_1(path)
        TaskStore(path).close()
        connection = sqlite3.connect(path)
        shape = {
            "version": connection.execute("PRAGMA user_version").fetchone(),
            "broken": connection.execute("PRAGMA foreign_key_check").fetchall(),
            "sound": connection.execute("PRAGMA integrity_check").fetchall(),
            "indexes": connection.execute(
                "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
            ).fetchall(),
        }
        for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            shape[table] = [
                connection.execute(f"PRAGMA table_xinfo({table})").fetchall(),
                connection.execute(f"PRAGMA foreign_key_list({table})").fetchall(),
            ]
        connection.close()
        shapes.append(shape)
    assert shapes[0]["version"] == (SCHEMA_VERSION,)
    assert shapes[0] == shapes[1]


def test_a_failed_migration_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """If the migration fails, the error says why, and the file keeps its old version and content."""
    path = tmp_path / "tasks.sqlite"
    _version_1(path)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE paused_queues (in_the_way)")
    connection.commit()
    connection.close()
    with pytest.raises(ServerError, match="paused_queues"):
        TaskStore(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (4,)
    connection.close()


def test_a_store_of_version_2_opens(tmp_path: Path, clock: Clock) -> None:
    """A file that an earlier version wrote keeps its tasks, payloads, attempts, names and pauses."""
    path = tmp_path / "tasks.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript((DATA / "store-2.sql").read_text())
    connection.close()
    with contextlib.closing(TaskStore(path, clock=clock, elapsed=clock)) as store:
        store.transactional.recover({"committed"})
        assert store.queries.counts() == {
            "default": {"ready": 4, "succeeded": 1, "failed": 1},
            "pull": {"ready": 1},
        }
        assert store.operations.paused() == {"default"}
        for name in ("done", "bad", "runs", "waits", "later"):
            task = store.queries.get("default", name)
            assert task is not None
            assert (task.body, task.headers, task.retry) == (
                b"\x00body",
                (("X-A", "café"),),
                RetryPolicy(retry_limit=3),
            )
            assert [attempt.excerpt for attempt in store.queries.attempts(task.id)] == (
                [b"oops"] if task.state in ("succeeded", "failed") else []
            )
        names = ("done", "bad", "runs", "gone")
        assert [result.outcome for result in store.add([new_task(name) for name in names])] == [
            "tombstoned",
            "tombstoned",
            "exists",
            "tombstoned",
        ]
        assert [task.name for task in store.claim_forced(5)] == ["later"]
        assert [task.name for task in store.claim({LANE: 5}, NOW)] == ["runs", "waits"]
        leased = store.leases.lease("pull", lease_usec=1, limit=5, policy=RetryPolicy(), group_by_tag=True, tag="t")
        assert [task.name for task in leased] == ["pulled"]
