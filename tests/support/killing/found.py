"""Reads the store of a killed server."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deferred_middleware.server.store.upkeep.claim_record import read_claims

STORE = "tasks.sqlite"


@dataclass(frozen=True, kw_only=True)
class Found:
    """The names of the tasks in each state; those that were claimed count as running."""

    running: frozenset[str]
    waiting: frozenset[str]
    finished: frozenset[str]


def look(data_dir: Path, scratch: Path) -> Found:
    """Check a copy of the store for damage, and return its tasks."""
    with _copy(data_dir, scratch) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        counted = dict(
            connection.execute(
                "SELECT state, sum(number) FROM counts WHERE queue <> '' GROUP BY state HAVING sum(number) <> 0"
            )
        )
        assert counted == dict(connection.execute("SELECT state, count(*) FROM tasks GROUP BY state"))
        states: dict[str, set[str]] = {}
        claimed = set(read_claims(data_dir / f"{STORE}.claimed"))
        for task_id, retry_count, name, state in connection.execute("SELECT id, retry_count, name, state FROM tasks"):
            running = state == "ready" and (task_id, retry_count) in claimed
            states.setdefault("running" if running else state, set()).add(name)
    assert states.keys() <= {"ready", "running", "succeeded", "failed"}
    return Found(
        running=frozenset(states.get("running", ())),
        waiting=frozenset(states.get("ready", ())),
        finished=frozenset(states.get("succeeded", set()) | states.get("failed", set())),
    )


@contextmanager
def _copy(data_dir: Path, scratch: Path) -> Iterator[sqlite3.Connection]:
    scratch.mkdir()
    try:
        # A copy, because closing the store's last connection would checkpoint its log, which the next server must do.
        for name in (STORE, f"{STORE}-wal"):
            if (data_dir / name).exists():
                shutil.copy(data_dir / name, scratch / name)
        with closing(sqlite3.connect(scratch / STORE)) as connection:
            yield connection
    finally:
        shutil.rmtree(scratch)
