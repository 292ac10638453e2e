"""What all methods of the taskqueue API share: the store, the queues, the services, the clock and the scheduler."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from deferred_middleware.errors import ServerError
from deferred_middleware.server.api.taskqueue_messages import Code, application_error, is_pull, text
from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep.disk_reserve import StoreFullError
from deferred_middleware.server.store.writer import StoreStoppedError

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TaskQueueContext:
    """The parts of the server that the API's methods work on.

    ``wake_scheduler`` is called when there may be a task to run. ``clock`` returns seconds since the epoch.
    """

    store: TaskStore
    queues: QueueRegistry
    directory: ServiceDirectory
    wake_scheduler: Callable[[], None]
    clock: Callable[[], float]

    def now_usec(self) -> int:
        """Return the time in microseconds since the epoch."""
        return int(self.clock() * 1e6)

    def queue(self, raw_name: bytes) -> QueueConfig:
        """Return a queue. Raises ``UNKNOWN_QUEUE`` if there is none of this name."""
        name = text(raw_name)
        queue = self.queues.get(name)
        if queue is None:
            raise application_error(
                Code.UNKNOWN_QUEUE, f"there is no queue {name!r}; the queues are: {', '.join(sorted(self.queues))}"
            )
        return queue

    def queue_of_mode(self, raw_name: bytes, *, pull: bool) -> QueueConfig:
        """Return a pull queue or a push queue. Raises ``INVALID_QUEUE_MODE`` if the queue is of the other mode."""
        queue = self.queue(raw_name)
        if is_pull(queue) != pull:
            mode = "pull" if is_pull(queue) else "push"
            raise application_error(Code.INVALID_QUEUE_MODE, f"{queue.name!r} is a {mode} queue")
        return queue

    def stored(self, operation: Callable[[], T]) -> T:
        """Run an operation of the store. If the store fails, raise an error that the client may retry after."""
        try:
            return operation()
        except (StoreFullError, StoreStoppedError) as error:
            # The store has logged it once; logging it for each add would flood the log.
            raise application_error(Code.TRANSIENT_ERROR, f"the task store failed: {error}") from error
        except (sqlite3.Error, ServerError) as error:
            logger.exception("The task store failed.")
            raise application_error(Code.TRANSIENT_ERROR, f"the task store failed: {error}") from error
