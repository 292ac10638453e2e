"""Tasks that have failed, for the tests of reports and pages."""

from __future__ import annotations

import dataclasses
import time

from deferred_middleware.server.store.records import Lane
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import completion, new_task

TRACEBACK = (
    b"Traceback (most recent call last):\n"
    b'  File "/app/mail.py", line 12, in send\n    look_up(user)\n'
    b'  File "/usr/lib/python3.11/json/decoder.py", line 3, in decode\n    raise error\n'
    b"ValueError: no such user <b>5</b>\n"
)


def fail(
    store: TaskStore, name: str, state: str = "failed", response: bytes = TRACEBACK, *, queue: str = "default"
) -> int:
    """Add a task, and make it fail; return its ID."""
    now = time.time_ns() // 1000
    store.add([new_task(name, queue=queue, url="/_cb/deferred/mail/send", eta_usec=now)])
    return end(store, state, response, queue=queue)


def end(store: TaskStore, state: str, response: bytes = b"done\n", *, queue: str = "default") -> int:
    """Run the due task of a queue, which ends in ``state``; return its ID."""
    now = time.time_ns() // 1000
    (claimed,) = store.claim({Lane(queue, ""): 1}, now)
    done = completion(claimed, state, eta_usec=now + 60_000_000, finished_usec=now, excerpt=response)
    done = dataclasses.replace(done, attempt=dataclasses.replace(done.attempt, started_usec=now))
    assert store.complete([done]) == [True]
    return claimed.id
