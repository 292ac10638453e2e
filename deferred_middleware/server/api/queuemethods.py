"""The taskqueue API's methods about whole queues."""

from __future__ import annotations

import functools
import math
from typing import Any, NoReturn

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb

from deferred_middleware.server.api import taskqueue_messages
from deferred_middleware.server.api.servicecore import PULL_MODE, Code, ServiceCore, application_error, is_pull

_NO_BACKLOG = -1


class QueueMethods(ServiceCore):
    """``FetchQueues``, ``FetchQueueStats``, ``PauseQueue``, ``PurgeQueue``, ``UpdateQueue`` and ``DeleteQueue``."""

    def _Dynamic_FetchQueues(self, request: Any, response: Any) -> None:
        paused = self._store.paused()
        for name in sorted(self._queues)[: max(0, request.max_rows)]:
            queue = self._queues[name]
            message = response.queue.add()
            message.queue_name = name.encode()
            message.paused = name in paused or queue.paused
            message.mode = PULL_MODE if is_pull(queue) else taskqueue_pb.TaskQueueMode.PUSH
            taskqueue_messages.fill_retry(message.retry_parameters, queue.retry)
            # The message can't do without these two, though a pull queue has no rate and another may have no limit.
            message.bucket_refill_per_second = math.inf if queue.rate_per_second is None else queue.rate_per_second
            message.bucket_capacity = queue.bucket_size
            if queue.max_concurrent_requests:
                message.max_concurrent_requests = queue.max_concurrent_requests

    def _Dynamic_FetchQueueStats(self, request: Any, response: Any) -> None:
        queues = [self._queue(name) for name in request.queue_name]
        for queue in queues:
            figures = self._stored(functools.partial(self._store.figures, queue.name))
            stats = response.queuestats.add()
            stats.num_tasks = figures.tasks
            oldest_usec = figures.oldest_eta_usec
            # Tasks that are not due are no backlog (SDK: taskqueue.py, QueueStatistics).
            due = oldest_usec is not None and oldest_usec <= self._now_usec()
            stats.oldest_eta_usec = oldest_usec if due else _NO_BACKLOG
            info = stats.scanner_info
            info.executed_last_minute = figures.executed_last_minute
            info.executed_last_hour = figures.executed_last_hour
            info.sampling_duration_seconds = 60.0
            if not is_pull(queue):
                info.requests_in_flight = figures.in_flight
                if queue.rate_per_second is not None:
                    info.enforced_rate = queue.rate_per_second

    def _Dynamic_PauseQueue(self, request: Any, _response: Any) -> None:
        name = self._queue(request.queue_name).name
        if request.pause:
            self._stored(lambda: self._store.pause(name))
        else:
            self._stored(lambda: self._store.resume(name))
            self._wake_scheduler()

    def _Dynamic_PurgeQueue(self, request: Any, _response: Any) -> None:
        name = self._queue(request.queue_name).name
        self._stored(lambda: self._store.purge(name))

    def _Dynamic_UpdateQueue(self, request: Any, _response: Any) -> None:
        self._refuse_to_configure(request)

    def _Dynamic_DeleteQueue(self, request: Any, _response: Any) -> None:
        self._refuse_to_configure(request)

    def _refuse_to_configure(self, request: Any) -> NoReturn:
        name = self._queue(request.queue_name).name
        raise application_error(Code.PERMISSION_DENIED, f"queue {name!r} is configured in queue.yaml; change it there")
