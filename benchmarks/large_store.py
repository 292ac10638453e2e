"""Measure adds, claims, counts and lists in a store of 1,000,000 tasks, compared with a store of 1,000.

    python benchmarks/large_store.py

All stores are on the same disk and are measured in turn, in another order in each round. A commit that changes one row
shows how much of the other times is the disk's.

There are two large stores. In the first, the tasks are due in the order in which they were added, as in a backlog. In
the second, their ETAs are scattered, so that tasks that are due one after the other are on different pages, which
nobody has read for long. This is the worst case for a store. The goal applies to the first store: at most 1.5 times the
time of the small one.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from recording import Arguments, Recording

from deferred_middleware.server.store.records import AttemptRecord, ClaimedTask, Completion, Lane, NewTask
from deferred_middleware.server.store.store import TaskStore

LANE = Lane("default", "")
SMALL, GOAL = 1_000, 1.5
COMMIT = "a commit of one row"


def fill(path: Path, number: int, *, scattered: bool) -> TaskStore:
    """Fill a store with ``number`` waiting tasks, directly in SQLite, because adding them one by one takes too long.

    Half of them are due.
    """
    step = 7919 if scattered else 1
    TaskStore(path).close()
    now = int(time.time() * 1e6)
    connection = sqlite3.connect(path)
    connection.executemany(
        "INSERT INTO tasks (id, queue, name, user_named, state, eta_usec, created_usec, method, url, target)"
        " VALUES (?, 'default', ?, 1, 'ready', ?, ?, 'POST', '/_cb/deferred/mail/send', '')",
        # Names in random order.
        (
            (n + 1, f"{n * 2654435761 % 2**32:08x}-{n}", now + (n * step % number - number // 2) * 1000, now)
            for n in range(number)
        ),
    )
    connection.execute("INSERT INTO payloads (task_id, headers, body) SELECT id, '[]', randomblob(300) FROM tasks")
    connection.execute("INSERT INTO counts VALUES ('default', 'ready', ?)", (number,))
    connection.commit()
    connection.close()
    return TaskStore(path)


def result_of(task: ClaimedTask) -> Completion:
    """Return the result of a successful attempt."""
    attempt = AttemptRecord(
        number=1, started_usec=1, duration_usec=1, status=200, reason=None, service="s", excerpt=b""
    )
    return Completion(
        task_id=task.id, claim_token=task.claim_token, state="succeeded", eta_usec=task.eta_usec, first_attempt_usec=1,
        finished_usec=int(time.time() * 1e6), retry_count=1, execution_count=1, previous_response=200,
        retry_reason=None, attempt=attempt, queue=task.queue, url=task.url,
    )  # fmt: skip


def change_one_row(connection: sqlite3.Connection, _tally: object) -> None:
    """Write the least that a commit has to sync."""
    connection.execute("UPDATE counts SET number = number WHERE queue = 'default' AND state = 'ready'")


def operations(store: TaskStore) -> dict[str, Callable[[], object]]:
    """Return the operations to measure."""
    claimed: list[ClaimedTask] = []

    def add(number: int) -> object:
        now = int(time.time() * 1e6)
        return store.add(
            [NewTask(queue="default", url="/_cb/deferred/mail/send", eta_usec=now, body=b"x" * 300)] * number
        )

    def claim() -> None:
        claimed[:] = store.claim({LANE: 10}, int(time.time() * 1e6))

    return {
        COMMIT: lambda: store._writer.submit(change_one_row).result(),
        "add 1 task": lambda: add(1),
        "add 100 tasks": lambda: add(100),
        "claim 10 tasks": claim,
        "write 10 results": lambda: store.complete([result_of(task) for task in claimed]),
        "lanes with their ETAs": store.queries.lanes,
        "counts": store.queries.counts,
        "statistics of a queue": lambda: store.queries.statistics("default"),
        "a page of 100 tasks": lambda: store.queries.find(queue="default", state="ready"),
    }


def main() -> int:
    """Measure, print the medians, and return 1 if the goal is missed."""
    options = Arguments(__doc__, tasks=(1_000_000, 50_000), rounds=(200, 30)).parse()
    recording, large = Recording(), options.tasks
    titles = (f"{SMALL:,} tasks", f"{large:,} tasks", f"{large:,} tasks, scattered ETAs")
    with tempfile.TemporaryDirectory() as directory:
        stores = [
            fill(Path(directory) / "small.sqlite", SMALL, scattered=False),
            fill(Path(directory) / "large.sqlite", large, scattered=False),
            fill(Path(directory) / "scattered.sqlite", large, scattered=True),
        ]
        tables = [operations(store) for store in stores]
        times: dict[str, list[list[float]]] = {name: [[] for _ in stores] for name in tables[0]}
        for number in range(options.rounds):
            for name in times:
                turns = list(zip(tables, times[name], strict=True))
                shift = number % len(turns)
                for table, measured in turns[shift:] + turns[:shift]:
                    began = time.perf_counter()
                    table[name]()
                    measured.append((time.perf_counter() - began) * 1e6)
        for store in stores:
            store.close()
    medians = [
        recording.table(title, "µs", {name: measured[place] for name, measured in times.items()}, ours=list(times))
        for place, title in enumerate(titles)
    ]
    small, big, _scattered = medians
    growth = {name: big[name] / small[name] for name in times if name != COMMIT}
    worst = max(growth, key=growth.__getitem__)
    recording.goal(f"growth from {SMALL:,} to {large:,} tasks ({worst})", growth[worst], at_most=GOAL, unit="times")
    return recording.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
