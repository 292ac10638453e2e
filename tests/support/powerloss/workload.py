"""The workload of the recorded process: it adds, claims, finishes, retries and deletes tasks.

``python -m tests.support.powerloss.workload DIRECTORY [--lowered]`` works on the store in DIRECTORY twice, and ends the
second time as a killed process does. After each return of a store method it writes a note, a line of JSON, to the file
``acknowledged`` in DIRECTORY. With ``--lowered``, SQLite's ``synchronous`` is never above ``NORMAL``, whatever the
store sets.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deferred_middleware.server.store.records import AttemptRecord, ClaimedTask, Completion, Lane, NewTask
from deferred_middleware.server.store.store import TaskStore

NOTES = "acknowledged"
STORE = "tasks.sqlite"
LANES = [Lane("default", ""), Lane("second", "local.background")]
ADDERS = 3
ADDS_PER_ADDER = 60
# SQLite checkpoints its log after 1000 pages, so bodies of this size cause several checkpoints.
MAX_BODY_BYTES = 24_000
_WAIT_SECONDS = 120.0


class LoweredConnection(sqlite3.Connection):
    """A connection that never syncs at a commit."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """Execute ``sql``, but replace a higher ``synchronous`` by a lower one."""
        if sql.replace(" ", "").upper() in ("PRAGMASYNCHRONOUS=FULL", "PRAGMASYNCHRONOUS=EXTRA"):
            sql = "PRAGMA synchronous=NORMAL"
        return super().execute(sql, *parameters)


def lower_synchronous() -> None:
    """Make every connection of this process a :class:`LoweredConnection`."""
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def lowered(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        return connect(*args, factory=LoweredConnection, **kwargs)

    sqlite3.connect = lowered  # type: ignore[assignment]


class Workload:
    """The threads that use one opening of the store, and their notes."""

    def __init__(self, directory: Path, opening: int) -> None:
        self.store = TaskStore(directory / STORE)
        self._opening = opening
        self._notes = os.open(directory / NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._adding = threading.Event()
        self._failures: list[BaseException] = []

    def run(self) -> None:
        """Work until every added task is finished or deleted."""
        adders = [threading.Thread(target=self._guard, args=(self._add, number)) for number in range(ADDERS)]
        runner = threading.Thread(target=self._guard, args=(self._run_tasks, 0))
        for thread in [*adders, runner]:
            thread.start()
        for thread in adders:
            thread.join()
        self._adding.set()
        runner.join()
        if self._failures:
            raise self._failures[0]

    def _guard(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            self._failures.append(error)
            raise

    def _note(self, kind: str, names: list[str]) -> None:
        os.write(self._notes, json.dumps([kind, names]).encode() + b"\n")

    def _add(self, number: int) -> None:
        chance = random.Random(f"{self._opening} {number}")
        added = 0
        while added < ADDS_PER_ADDER:
            lane = chance.choice(LANES)
            names = [
                f"{lane.queue}-{self._opening}-{number}-{added + index}" for index in range(chance.choice([1, 1, 1, 5]))
            ]
            added += len(names)
            self.store.add(
                [
                    NewTask(
                        queue=lane.queue,
                        target=lane.target,
                        name=name,
                        url="/work",
                        eta_usec=int(time.time() * 1e6),
                        body=chance.randbytes(chance.randrange(MAX_BODY_BYTES)),
                    )
                    for name in names
                ]
            )
            self._note("added", names)
            if chance.random() < 0.1:
                self._note("deleting", names[:1])
                self.store.operations.delete_by_name(lane.queue, names[:1])
                self._note("deleted", names[:1])

    def _run_tasks(self, _number: int) -> None:
        chance = random.Random(self._opening)
        until = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < until:
            last = self._adding.is_set()
            # A time in the far future, so that tasks that wait for a retry are also due.
            claimed = self.store.claim(dict.fromkeys(LANES, 4), int(time.time() * 2e6))
            if not claimed and last:
                return
            completions = [completion(task, chance) for task in claimed]
            stood = self.store.complete(completions)
            for kind in ("finished", "retried"):
                names = [
                    task.name
                    for task, result, written in zip(claimed, completions, stood, strict=True)
                    if written and (result.state == "ready") == (kind == "retried")
                ]
                if names:
                    self._note(kind, names)
        raise TimeoutError(f"tasks were left after {_WAIT_SECONDS} s")


def completion(task: ClaimedTask, chance: random.Random) -> Completion:
    """Return the result of an attempt: success, a retry or a failure for good."""
    now_usec = int(time.time() * 1e6)
    state = "succeeded" if task.retry_count > 2 else chance.choice(["succeeded", "succeeded", "ready", "failed"])
    return Completion(
        task_id=task.id,
        claim_token=task.claim_token,
        state=state,  # type: ignore[arg-type] # one of the three
        eta_usec=now_usec,
        first_attempt_usec=now_usec,
        finished_usec=None if state == "ready" else now_usec,
        retry_count=task.retry_count + 1,
        execution_count=task.execution_count + 1,
        previous_response=200 if state == "succeeded" else 500,
        retry_reason="App Error",
        attempt=AttemptRecord(
            number=task.retry_count + 1,
            started_usec=now_usec,
            duration_usec=1000,
            status=200 if state == "succeeded" else 500,
            reason=None,
            service="default",
            excerpt=b"an answer",
        ),
        queue=task.queue,
        url=task.url,
    )


def main() -> None:
    """Run the workload twice; the second run ends without a close."""
    directory = Path(sys.argv[1])
    if "--lowered" in sys.argv[2:]:
        lower_synchronous()
    first = Workload(directory, 1)
    first.run()
    first.store.close()
    Workload(directory, 2).run()
    os._exit(0)


if __name__ == "__main__":
    main()
