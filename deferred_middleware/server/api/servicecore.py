"""What all methods of the taskqueue API share: the store, the queues, and how errors are told."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

from google.appengine.api import apiproxy_stub
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.queueregistry import QueueRegistry
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.store.disk_reserve import StoreFullError
from deferred_middleware.server.store.store import TaskStore

_log = logging.getLogger(__name__)

T = TypeVar("T")

Code = taskqueue_pb.TaskQueueServiceError
PULL_MODE = taskqueue_pb.TaskQueueMode.PULL

_MAX_REQUEST_BYTES = 32 << 20  # what the SDK's own stub takes (api/taskqueue/taskqueue_stub.py)


class ServiceCore(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
    """The taskqueue API without its methods.

    ``scheduler_wakeup`` is called when there may be something to run. ``directory`` tells which service a task's
    ``Host`` header means; ``clock`` returns seconds since the epoch.
    """

    THREADSAFE = True

    def __init__(
        self,
        store: TaskStore,
        scheduler_wakeup: Callable[[], None],
        *,
        directory: ServiceDirectory,
        queues: QueueRegistry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__("taskqueue", max_request_size=_MAX_REQUEST_BYTES)
        self._store = store
        self._wake_scheduler = scheduler_wakeup
        self._directory = directory
        self._queues = QueueRegistry() if queues is None else queues
        self._clock = clock

    def _now_usec(self) -> int:
        return int(self._clock() * 1e6)

    def _queue(self, raw_name: bytes) -> QueueConfig:
        """Return a queue. Raises ``UNKNOWN_QUEUE`` when there is none of this name."""
        name = text(raw_name)
        queue = self._queues.get(name)
        if queue is None:
            raise application_error(
                Code.UNKNOWN_QUEUE, f"there is no queue {name!r}; there are: {', '.join(sorted(self._queues))}"
            )
        return queue

    def _pull_queue(self, raw_name: bytes) -> QueueConfig:
        """Return a queue that tasks are leased from. Raises ``INVALID_QUEUE_MODE`` for another one."""
        queue = self._queue(raw_name)
        self._check_mode(queue, pull=True)
        return queue

    def _check_mode(self, queue: QueueConfig, *, pull: bool) -> None:
        if is_pull(queue) != pull:
            mode = "pull" if is_pull(queue) else "push"
            raise application_error(Code.INVALID_QUEUE_MODE, f"{queue.name!r} is a {mode} queue")

    def _stored(self, operation: Callable[[], T]) -> T:
        """Run an operation of the store; when the store fails, answer so that the client sees an error it may retry."""
        try:
            return operation()
        except StoreFullError as error:
            # Said once already, and not by every add.
            raise application_error(Code.TRANSIENT_ERROR, f"the task store failed: {error}") from error
        except (sqlite3.Error, ServerError) as error:
            _log.exception("The task store failed.")
            raise application_error(Code.TRANSIENT_ERROR, f"the task store failed: {error}") from error


def text(value: bytes) -> str:
    """Return a name as text; what isn't ASCII is no legal name, and is refused as such further on."""
    return value.decode("ascii", "backslashreplace")


def is_pull(queue: QueueConfig) -> bool:
    """Tell whether a queue's tasks are leased, not delivered."""
    return queue.mode == "pull"


def application_error(code: int, detail: str) -> Exception:
    """Return the error that the SDK's client turns into one of its own by ``code``."""
    error: Exception = apiproxy_errors.ApplicationError(code, detail)
    return error
