"""The taskqueue API's methods about tasks that are there.

The taskqueue API's methods about whole queues.

The taskqueue API's methods of pull queues.

The taskqueue API, on the task store.

:class:`TaskQueueService` is a stub as the SDK has them. It answers as the platform does, in codes of
``TaskQueueServiceError``, which the SDK's client turns into the exceptions that its users know. What each method
answers is in ``docs/taskqueue-api.rst``.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NoReturn

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.server.api import taskqueue_messages
from deferred_middleware.server.api.taskqueue_add import TransactionMethods
from deferred_middleware.server.api.taskqueue_messages import (
    PULL_MODE,
    Code,
    ServiceCore,
    application_error,
    is_pull,
    text,
)
from deferred_middleware.server.store.records import StoredTask
from deferred_middleware.wire import protocol

_MAX_QUERIED_ROWS = 1000


class TaskMethods(ServiceCore):
    """``Delete``, ``QueryTasks``, ``FetchTask`` and ``ForceRun``."""

    def _Dynamic_Delete(self, request: Any, response: Any) -> None:
        queue = text(request.queue_name)
        if queue not in self._queues:
            response.result.extend([Code.UNKNOWN_QUEUE] * len(request.task_name))
            return
        found = self._stored(
            lambda: self._store.operations.delete_by_name(queue, [text(name) for name in request.task_name])
        )
        for result in found:
            if result is None:
                response.result.append(Code.UNKNOWN_TASK)
            else:
                response.result.append(Code.OK if result.outcome == "exists" else Code.TOMBSTONED_TASK)

    def _Dynamic_QueryTasks(self, request: Any, response: Any) -> None:
        queue = self._queue(request.queue_name).name
        if request.HasField("start_tag"):
            raise application_error(Code.INVALID_REQUEST, "tasks can't be queried by tag")
        tasks = self._stored(
            lambda: self._store.queries.unfinished(
                queue,
                from_name=text(request.start_task_name),
                from_eta_usec=request.start_eta_usec if request.HasField("start_eta_usec") else None,
                limit=max(0, min(request.max_rows, _MAX_QUERIED_ROWS)),
            )
        )
        for task in tasks:
            self._fill_task(response.task.add(), task)

    def _Dynamic_FetchTask(self, request: Any, response: Any) -> None:
        queue = self._queue(request.queue_name).name
        task = self._unfinished_task(queue, request.task_name)
        self._fill_task(response.task.task.add(), task)

    def _Dynamic_ForceRun(self, request: Any, response: Any) -> None:
        queue = self._queue(request.queue_name)
        self._check_mode(queue, pull=False)
        try:
            task = self._unfinished_task(queue.name, request.task_name)
        except apiproxy_errors.ApplicationError as error:
            response.result = error.application_error
            return
        # One that is running already needs no force.
        self._stored(lambda: self._store.force_run(task.id))
        response.result = Code.OK
        self._wake_scheduler()

    def _unfinished_task(self, queue: str, raw_name: bytes) -> StoredTask:
        name = text(raw_name)
        task = self._stored(lambda: self._store.queries.get(queue, name))
        if task is not None and task.state in ("ready", "running"):
            return task
        known = self._stored(lambda: self._store.queries.is_blocked(queue, name))
        raise application_error(
            Code.TOMBSTONED_TASK if known else Code.UNKNOWN_TASK, f"queue {queue!r} has no task {name!r}"
        )

    def _fill_task(self, message: Any, task: StoredTask) -> None:
        attempts = self._stored(lambda: self._store.queries.attempts(task.id)) if task.retry_count else []
        taskqueue_messages.fill(message, task, attempts[-1] if attempts else None)


_NO_BACKLOG = -1


class QueueMethods(ServiceCore):
    """``FetchQueues``, ``FetchQueueStats``, ``PauseQueue``, ``PurgeQueue``, ``UpdateQueue`` and ``DeleteQueue``."""

    def _Dynamic_FetchQueues(self, request: Any, response: Any) -> None:
        paused = self._store.operations.paused()
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
            figures = self._stored(functools.partial(self._store.queries.statistics, queue.name))
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
            self._stored(lambda: self._store.operations.pause(name))
        else:
            self._stored(lambda: self._store.operations.resume(name))
            self._wake_scheduler()

    def _Dynamic_PurgeQueue(self, request: Any, _response: Any) -> None:
        name = self._queue(request.queue_name).name
        self._stored(lambda: self._store.operations.purge(name))

    def _Dynamic_UpdateQueue(self, request: Any, _response: Any) -> None:
        self._refuse_to_configure(request)

    def _Dynamic_DeleteQueue(self, request: Any, _response: Any) -> None:
        self._refuse_to_configure(request)

    def _refuse_to_configure(self, request: Any) -> NoReturn:
        name = self._queue(request.queue_name).name
        raise application_error(Code.PERMISSION_DENIED, f"queue {name!r} is configured in queue.yaml; change it there")


_LEASE_ERRORS = {
    "expired": Code.TASK_LEASE_EXPIRED,
    "tombstoned": Code.TOMBSTONED_TASK,
    "unknown": Code.UNKNOWN_TASK,
}


class PullMethods(ServiceCore):
    """``QueryAndOwnTasks`` and ``ModifyTaskLease``."""

    def _Dynamic_QueryAndOwnTasks(self, request: Any, response: Any) -> None:
        queue = self._pull_queue(request.queue_name)
        lease_usec = _lease_usec(request.lease_seconds)
        if not 0 < request.max_tasks <= protocol.MAX_TASKS_PER_LEASE:
            raise application_error(
                Code.INVALID_REQUEST, f"max_tasks is {request.max_tasks}; it takes 1 to {protocol.MAX_TASKS_PER_LEASE}"
            )
        tag: str | None = None
        if request.HasField("tag"):
            if not request.group_by_tag:
                raise application_error(Code.INVALID_REQUEST, "a tag without group_by_tag")
            tag = request.tag.decode("utf-8", "replace")
        if queue.name in self._store.operations.paused():
            return
        tasks = self._stored(
            lambda: self._store.leases.lease(
                queue.name,
                lease_usec=lease_usec,
                limit=request.max_tasks,
                policy=queue.retry,
                group_by_tag=request.group_by_tag,
                tag=tag,
            )
        )
        for task in tasks:
            message = response.task.add()
            message.task_name = task.name.encode()
            message.eta_usec = task.eta_usec
            message.retry_count = task.retry_count
            message.body = task.body
            if task.tag is not None:
                message.tag = task.tag.encode()

    def _Dynamic_ModifyTaskLease(self, request: Any, response: Any) -> None:
        queue = self._pull_queue(request.queue_name)
        if queue.name in self._store.operations.paused():
            raise application_error(Code.QUEUE_PAUSED, f"queue {queue.name!r} is paused")
        lease_usec = _lease_usec(request.lease_seconds)
        name = text(request.task_name)
        change = self._stored(
            lambda: self._store.leases.change(queue.name, name, eta_usec=request.eta_usec, lease_usec=lease_usec)
        )
        if change.outcome != "changed":
            raise application_error(_LEASE_ERRORS[change.outcome], f"task {name!r} of queue {queue.name!r}")
        response.updated_eta_usec = change.eta_usec


def _lease_usec(seconds: float) -> int:
    # Also false for what is no number.
    if not 0 <= seconds <= protocol.MAX_LEASE_SECONDS:
        raise application_error(
            Code.INVALID_REQUEST, f"lease_seconds is {seconds}; it takes 0 to {protocol.MAX_LEASE_SECONDS}"
        )
    return int(seconds * 1e6)


class TaskQueueService(TransactionMethods, TaskMethods, PullMethods, QueueMethods):
    """Answers the taskqueue API, and keeps the tasks of the datastore's transactions."""
