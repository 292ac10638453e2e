"""Tasks for Cloud Tasks that wait for the commit of a datastore transaction.

Cloud Tasks has no transactions. So the transaction writes the task as an entity, and the task is created in Cloud Tasks
right after the commit. Its name is derived from the entity's key, so that the task is created only once, even if it is
sent several times. If it can't be sent, it stays in the datastore, and a later sweep sends it.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from deferred_middleware.engines.transactions import MONITOR
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.wire import entities
from deferred_middleware.wire.monotonic import monotonic

logger: Final = get_logger("deferred_middleware")

KIND: Final = "_DeferredOutbox"
"""The kind of the entities."""
_PARENT: Final = "parent"
_TASK: Final = "task"
_CREATED: Final = "created"
_SWEEP_AGE_SECONDS: Final = 60.0
"""The minimum age of a swept entity. Until then, the process that wrote it sends its task."""
_SWEEP_INTERVAL_SECONDS: Final = 60.0
_SWEEP_LIMIT: Final = 500

Send = Callable[[str, bytes], None]
"""Creates a serialized task in a queue, given the queue's full name. If the task exists already, that is no error."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SweepReport:
    """The result of a sweep."""

    sent: int
    failed: int


def add(*, parent: str, make_task: Callable[[str], bytes], send: Send) -> None:
    """Write a task in the current transaction, and send it after the commit.

    ``parent`` is the queue's full name. ``make_task`` takes the task's full name and returns the serialized task.
    Raises the datastore's exceptions.
    """
    from google.appengine.api import datastore, datastore_types

    key_name = os.urandom(16).hex()
    serialized = make_task(f"{parent}/tasks/tx-{key_name}")
    entity = datastore.Entity(KIND, name=key_name, namespace="")
    entity[_PARENT] = datastore_types.Blob(parent.encode())
    entity[_TASK] = datastore_types.Blob(serialized)
    entity[_CREATED] = _now()
    with MONITOR.adding(after_commit=lambda: _send_after_commit(entity.key(), parent, serialized, send)):
        entities.put_in_transaction([entity])


def sweep(send: Send, *, min_age_seconds: float = _SWEEP_AGE_SECONDS) -> SweepReport:
    """Send the committed tasks that were not sent. If a task can't be sent, log the error and keep the task."""
    oldest = _now() - datetime.timedelta(seconds=min_age_seconds)
    sent = failed = 0
    for entity in entities.query(KIND, {f"{_CREATED} <=": oldest}, limit=_SWEEP_LIMIT):
        if _send(entity.key(), bytes(entity[_PARENT]).decode(), bytes(entity[_TASK]), send):
            sent += 1
        else:
            failed += 1
    return SweepReport(sent=sent, failed=failed)


def _send_after_commit(key: Any, parent: str, serialized: bytes, send: Send) -> None:
    if _send(key, parent, serialized, send):
        _SWEEPS.run_if_due(send)


def _send(key: Any, parent: str, serialized: bytes, send: Send) -> bool:
    """Send a task, and delete its entity. Failures are logged and not raised, because the transaction has committed."""
    try:
        send(parent, serialized)
    except Exception:
        logger.exception("a transactional task was not sent to %s; it stays in the datastore (%s)", parent, KIND)
        return False
    try:
        entities.outside_transaction().delete([key])
    except Exception:
        logger.exception("a transactional task was sent to %s, but its entity (%s) can't be deleted", parent, KIND)
    return True


class _Sweeps:
    """Sweeps from time to time after a task was sent, because Cloud Tasks is available then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0.0  # monotonic seconds; guarded by the lock

    def run_if_due(self, send: Send) -> None:
        """Sweep if the last sweep of this process was at least a minute ago. Failures are logged."""
        with self._lock:
            if monotonic() < self._next:
                return
            self._next = monotonic() + _SWEEP_INTERVAL_SECONDS
        try:
            sweep(send)
        except Exception:
            logger.exception("the transactional tasks that were not sent could not be looked for")


_SWEEPS: Final = _Sweeps()


def _now() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)
