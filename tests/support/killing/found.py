"""What the store of a server that was killed holds."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

STORE = "tasks.sqlite"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Names of tasks by what is known of them."""

    running: frozenset[str]
    waiting: frozenset[str]
    finished: frozenset[str]


def look(data_dir: Path, scratch: Path) -> Found:
    """Return what a copy of the store holds, and see that it is whole."""
    with _copy(data_dir, scratch) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        counted = dict(
            connection.execute("SELECT state, sum(number) FROM counts GROUP BY state HAVING sum(number) <> 0")
        )
        assert counted == dict(connection.execute("SELECT state, count(*) FROM tasks GROUP BY state"))
        states: dict[str, set[str]] = {}
        for name, state in connection.execute("SELECT name, state FROM tasks"):
            states.setdefault(state, set()).add(name)
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
        # Not the file itself: who opens it last would fold its log into it, which the next server has to do.
        for name in (STORE, f"{STORE}-wal"):
            if (data_dir / name).exists():
                shutil.copy(data_dir / name, scratch / name)
        with closing(sqlite3.connect(scratch / STORE)) as connection:
            yield connection
    finally:
        shutil.rmtree(scratch)
