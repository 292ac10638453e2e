"""Failures in stores of earlier versions."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from deferred_middleware.server.store.store import TaskStore
from tests.unit.server.store.statistics.test_failures import traceback
from tests.unit.server.store.test_database import _version_1


def test_a_migration_groups_the_failures_it_finds(tmp_path: Path) -> None:
    """Dead letters and failing tasks of an earlier version are grouped by their last attempts."""
    path = tmp_path / "tasks.sqlite"
    _version_1(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO attempts VALUES (4, 2, 7, 5, 500, 'status 500', 's', ?)", (traceback(),))
        connection.commit()
    with contextlib.closing(TaskStore(path)) as store:
        found = {group.exception: (group.dead, group.failing) for group in store.failures.groups().groups}
        assert found == {"ValueError": (1, 0), "status 500": (0, 2)}
        dead = store.queries.get("default", "bad")
        assert dead is not None
        group = store.failures.group_of(dead.id)
        assert group is not None
        assert [task.id for task in store.failures.tasks(group).tasks] == [dead.id]
