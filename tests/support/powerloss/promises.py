"""The promises that the store has made up to a moment, and the check whether a store keeps them."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deferred_middleware.server.store.records import NewTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.powerloss.workload import LANES

_FAR_FUTURE_USEC = 1 << 60


@dataclass
class Promises:
    """The acknowledged operations: the names of added, finished and deleted tasks, and the number of their retries."""

    added: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    retried: Counter[str] = field(default_factory=Counter)

    def note(self, line: bytes) -> None:
        """Add a line of the workload's notes."""
        kind, names = json.loads(line)
        getattr(self, kind).update(names)

    def broken(self, path: Path) -> Iterator[str]:
        """Open the store at ``path`` as a server does, and yield a sentence for each promise that it breaks."""
        store = TaskStore(path)
        try:
            due = {task.name: task for task in store.claim(dict.fromkeys(LANES, 1_000_000), _FAR_FUTURE_USEC)}
            for name in self.finished & due.keys():
                yield f"{name} was finished, and runs again."
            for name in self.deleted & due.keys():
                yield f"{name} was deleted, and runs."
            for name in self.finished - self.deleting:
                task = store.queries.get(_queue(name), name)
                if task is None or task.state not in ("succeeded", "failed"):
                    yield f"{name} was finished, and is {'gone' if task is None else task.state}."
            for name in self.added - self.finished - self.deleting - due.keys():
                task = store.queries.get(_queue(name), name)
                if task is None:
                    yield f"{name} was added, and is gone."
                elif task.state not in ("succeeded", "failed"):  # a stored result needn't have been acknowledged
                    yield f"{name} is {task.state}, and does not run."
            for name in self.retried.keys() & due.keys():
                if due[name].retry_count < self.retried[name]:
                    yield f"{name} was retried {self.retried[name]} times, and {due[name].retry_count} are known."
            for name in sorted(self.deleted)[-1:]:
                (again,) = store.add([NewTask(queue=_queue(name), name=name, url="/work", eta_usec=0)])
                if again.outcome != "tombstoned":
                    yield f"{name} was deleted, and its name is {again.outcome} again."
        finally:
            store.close()
        connection = sqlite3.connect(path)
        try:
            for pragma in ("integrity_check", "foreign_key_check"):
                found = connection.execute(f"PRAGMA {pragma}").fetchall()
                if found not in ([], [("ok",)]):
                    yield f"{pragma}: {found}"
        finally:
            connection.close()


def _queue(name: str) -> str:
    return name.partition("-")[0]
