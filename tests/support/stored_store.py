"""A task store with tasks in every state: one version of the package writes it, another version opens it.

``python -m tests.support.stored_store FILE`` writes such a store as SQL. It is the store of a server that crashed: a
task was running, another was leased, and tasks of two transactions were waiting for their commit.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from deferred_middleware import call
from deferred_middleware.calls.payload import dumps
from deferred_middleware.server.store.records import NewTask, RetryPolicy
from deferred_middleware.server.store.store import TaskStore
from tests.support import sample
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, completion, new_task, pull_task, run_all

MINUTE_USEC = 60_000_000
HEADERS = (("Content-Type", "application/octet-stream"), ("X-Own", "caf\xc3\xa9"))
RETRY = RetryPolicy(retry_limit=3, age_limit_seconds=90.0, min_backoff_seconds=1.0)


def _task(name: str, **fields: Any) -> NewTask:
    """Return a task that records its own name."""
    body = dumps(call(sample.note, name), 5)
    return new_task(
        name, **{"url": f"/_cb/deferred/{sample.__name__}/note", "headers": HEADERS, "body": body, **fields}
    )


def fill(store: TaskStore) -> None:
    """Add tasks to an empty store whose clock stands at ``NOW``, and bring each into the state in its name."""
    store.add([_task("finished")])
    run_all(store, "succeeded")
    store.add([_task("dead"), _task("dead, tried again")])
    run_all(store, "failed")
    tried_again = store.queries.get("default", "dead, tried again")
    assert tried_again is not None
    assert store.operations.retry(tried_again.id) == "retried"
    (claimed,) = store.claim({LANE: 1}, NOW)
    store.complete([completion(claimed, "ready", eta_usec=NOW + MINUTE_USEC)])
    store.add([_task("deleted")])
    store.operations.delete_by_name("default", ["deleted"])
    store.add([_task("running")])
    store.claim({LANE: 1}, NOW)
    store.add(
        [
            _task("waiting", retry=RETRY, dispatch_deadline_usec=90_000_000),
            _task("waiting for a service", target="background", method="PUT"),
            _task("scheduled", eta_usec=NOW + DAY_USEC),
            _task("wanted now", eta_usec=NOW + DAY_USEC),
            _task("in a paused queue", queue="other"),
            pull_task("pulled", tag="a tag", body=b"pulled"),
            pull_task("leased", eta_usec=NOW - 1, body=b"leased"),
            new_task(url="/without-a-name", eta_usec=NOW + 1, body=b"no call"),
        ]
    )
    wanted = store.queries.get("default", "wanted now")
    assert wanted is not None
    assert store.force_run(wanted.id)
    store.leases.lease("pull", lease_usec=MINUTE_USEC, limit=1, policy=RetryPolicy(), group_by_tag=False, tag=None)
    store.operations.pause("other")
    store.transactional.stage([_task("of a commit")], "the transaction that was committed")
    store.transactional.stage([_task("of no commit")], "the transaction that was not")


def main(file: str) -> None:
    """Write a filled store to ``file`` as SQL statements that recreate it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tasks.sqlite"
        store = TaskStore(path, clock=Clock())
        fill(store)
        store.close()
        with closing(sqlite3.connect(path)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            statements = [*connection.iterdump(), f"PRAGMA user_version = {version};"]
    Path(file).write_text("\n".join(statements) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
