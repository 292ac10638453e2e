"""The versions of a task store's file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.database import SCHEMA_VERSION
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, new_task

DATA = Path(__file__).parent / "data"


def _version_1(path: Path) -> None:
    """Write a store as version 1 of the schema had it, with a task in each state."""
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


def test_a_store_of_version_1_is_brought_up_to_date(tmp_path: Path, clock: Clock) -> None:
    """Tasks, payloads, attempts, counts and blocked names of version 1 are all there afterwards."""
    path = tmp_path / "tasks.sqlite"
    _version_1(path)
    store = TaskStore(path, clock=clock)
    try:
        assert store.counts() == {"default": {"ready": 2, "succeeded": 1, "failed": 1}}
        for name in ("waits", "runs", "good", "bad"):
            task = store.get("default", name)
            assert task is not None
            assert (task.body, task.headers, task.retry_count) == (b"body", (("X-A", "1"),), 2)
            assert task.retry is not None
            assert task.retry.retry_limit == 3
            assert [attempt.excerpt for attempt in store.attempts(task.id)] == [b"oops"]
        names = ("waits", "runs", "good", "bad", "gone")
        assert [r.outcome for r in store.add([new_task(n) for n in names])] == [
            "exists", "exists", "tombstoned", "tombstoned", "tombstoned",
        ]  # fmt: skip
        assert [task.name for task in store.claim({LANE: 5}, NOW)] == ["waits", "runs"]
        clock.usec += DAY_USEC
        assert store.add([new_task("bad")])[0].outcome == "added"
    finally:
        store.close()


def test_a_store_that_was_brought_up_to_date_has_the_shape_of_a_new_one(tmp_path: Path) -> None:
    """The tables, their constraints and the indexes are those of a new file."""
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


def test_a_failed_upgrade_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """When the upgrade can't be finished the error says so, and the file is still the old one, whole."""
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
