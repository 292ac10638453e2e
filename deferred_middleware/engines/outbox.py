"""Tasks for Cloud Tasks that wait for the commit of a datastore transaction.

Cloud Tasks has no transactions. So the transaction writes the task as an entity, and the task is created in Cloud Tasks
right after the commit. Its name is derived from the entity's key, so that the task is created only once, even if it is
sent several times. If it can't be sent, or if the process dies, it stays in the datastore, and a later sweep sends it.
No entity is ever deleted before Cloud Tasks has its task.

A sweep also sends the tasks that the SDK's own transactional adds have left (SDK:
``api/taskqueue/cloudtask_transactional.py``). The SDK gives them up after five tries.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from deferred_middleware.engines import sdk_outbox, transactions
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.wire import entities
from deferred_middleware.wire.entities import Datastore, StoredEntity
from deferred_middleware.wire.monotonic import monotonic

logger: Final = get_logger("deferred_middleware")

KIND: Final = "_DeferredOutbox"
"""The kind of the entities."""
OVERDUE_SECONDS: Final = 3600.0
"""The age from which on a task that can't be sent is reported as a dead letter. It is tried again all the same."""
_PARENT: Final = "parent"
_TASK: Final = "task"
_CREATED: Final = "created"
_REPORTED: Final = "reported"
_BATCH: Final = 500

Send = Callable[[str, bytes], None]
"""Creates a serialized task in a queue, given the queue's full name. If the task exists already, that is no error."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UnsentTask:
    """A task of a committed transaction that could not be sent for a long time."""

    parent: str
    """The full name of its queue."""
    serialized: bytes
    """The ``google.cloud.tasks.v2.Task``."""
    error: Exception
    """Why it could not be sent the last time."""
    age_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SweepReport:
    """The result of a sweep."""

    sent: int
    failed: int
    younger: bool = False
    """Whether the outbox has tasks that are too young to be swept, or more than the sweep had time for."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left in the outbox."""
        return not (self.failed or self.younger)


def add(*, parent: str, make_task: Callable[[str], bytes], send: Send) -> None:
    """Write a task in the current transaction, and send it after the commit.

    ``parent`` is the queue's full name. ``make_task`` takes the task's full name and returns the serialized task.
    Raises the datastore's exceptions.
    """
    key_name = os.urandom(16).hex()
    serialized = make_task(f"{parent}/tasks/tx-{key_name}")
    entity = StoredEntity(
        path=(KIND, key_name), properties={_PARENT: parent.encode(), _TASK: serialized, _CREATED: _now()}
    )
    datastore = entities.datastore()
    with transactions.adding(after_commit=lambda: _send(datastore, _WaitingTask(entity, parent, serialized), send)):
        datastore.put([entity], in_transaction=True)


def sweep(
    send: Send,
    *,
    min_age_seconds: float,
    max_seconds: float = 300.0,
    max_tasks: int = 10_000,
    on_overdue: Callable[[UnsentTask], object] | None = None,
) -> SweepReport:
    """Send the committed tasks that were not sent, the oldest first. Keep each task that can't be sent.

    Entities that are younger than ``min_age_seconds`` are left alone: the process that wrote one sends its task.
    The sweep stops after ``max_seconds`` or ``max_tasks``, and leaves the rest to the next one. ``on_overdue`` is
    called once for a task that could not be sent for an hour. Raises the datastore's exceptions.
    """
    datastore = entities.datastore()
    ends_at = monotonic() + max_seconds
    sent = failed = 0
    for waiting in _waiting(datastore, min_age_seconds):
        if monotonic() >= ends_at or sent + failed >= max_tasks:
            return SweepReport(sent=sent, failed=failed, younger=True)
        error = _send(datastore, waiting, send)
        if error is None:
            sent += 1
            continue
        failed += 1
        age_seconds = _age_seconds(waiting.entity)
        if age_seconds >= OVERDUE_SECONDS and on_overdue is not None and _is_first_report(datastore, waiting):
            on_overdue(
                UnsentTask(parent=waiting.parent, serialized=waiting.serialized, error=error, age_seconds=age_seconds)
            )
    soon = _now() + datetime.timedelta(days=1)
    younger = min_age_seconds > 0 and any(
        entity for entity in datastore.older_than(KIND, _CREATED, soon, limit=failed + 1, keys_only=True)[failed:]
    )
    return SweepReport(sent=sent, failed=failed, younger=younger)


@dataclasses.dataclass(frozen=True, slots=True)
class _WaitingTask:
    """A task in the datastore."""

    entity: StoredEntity
    parent: str
    serialized: bytes


def _waiting(datastore: Datastore, min_age_seconds: float) -> Iterator[_WaitingTask]:
    """Go through the tasks that are old enough: ours, and then those of the SDK."""
    for kind, age_seconds, read in (
        (KIND, min_age_seconds, _read),
        (sdk_outbox.KIND, min_age_seconds and sdk_outbox.MIN_AGE_SECONDS, _read_of_sdk),
    ):
        oldest = _now() - datetime.timedelta(seconds=age_seconds)
        seen: set[entities.Path] = set()
        while True:
            # Tasks that can't be sent stay where they are, in front of the others.
            found = datastore.older_than(kind, _CREATED, oldest, limit=_BATCH + len(seen))
            new = [entity for entity in found if entity.path not in seen]
            for entity in new:
                seen.add(entity.path)
                waiting = read(entity)
                if waiting is not None:
                    yield waiting
            if len(new) < _BATCH:
                break


def _read(entity: StoredEntity) -> _WaitingTask | None:
    parent, serialized = entity.properties.get(_PARENT), entity.properties.get(_TASK)
    if not isinstance(parent, bytes) or not isinstance(serialized, bytes):
        logger.error("an entity of the kind %s can't be read, and stays in the datastore: %r", KIND, entity.path)
        return None
    return _WaitingTask(entity, parent.decode(), serialized)


def _read_of_sdk(entity: StoredEntity) -> _WaitingTask | None:
    try:
        found = sdk_outbox.read(entity)
    except Exception:
        logger.exception(
            "an entity of the kind %s can't be read, and stays in the datastore: %r", sdk_outbox.KIND, entity.path
        )
        return None
    return None if found is None else _WaitingTask(entity, *found)


def _send(datastore: Datastore, waiting: _WaitingTask, send: Send) -> Exception | None:
    """Send a task, and delete its entity. Return why it could not be sent.

    Failures are logged and not raised, because the transaction has committed.
    """
    try:
        send(waiting.parent, waiting.serialized)
    except Exception as error:
        logger.exception(
            "a transactional task was not sent to %s; it stays in the datastore (%s), and is tried again",
            waiting.parent,
            waiting.entity.path[0],
        )
        return error
    try:
        datastore.delete([waiting.entity.path])
    except Exception:
        logger.exception(
            "a transactional task was sent to %s, but its entity can't be deleted yet: %r",
            waiting.parent,
            waiting.entity.path,
        )
    return None


def _is_first_report(datastore: Datastore, waiting: _WaitingTask) -> bool:
    """Tell whether nobody has reported the task yet, and note that it is reported now."""
    entity = waiting.entity
    if entity.path[0] != KIND:
        return True
    if _REPORTED in entity.properties:
        return False
    try:
        datastore.put([dataclasses.replace(entity, properties={**entity.properties, _REPORTED: _now()})])
    except Exception:
        logger.exception("it could not be noted that a transactional task is overdue: %r", entity.path)
    return True


def _age_seconds(entity: StoredEntity) -> float:
    created = entity.properties.get(_CREATED)
    return (_now() - created).total_seconds() if isinstance(created, datetime.datetime) else 0.0


def _now() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)
