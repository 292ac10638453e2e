"""The methods of the taskqueue API, except for those that add tasks: about tasks, queues, and leases of pull tasks.

What each method answers is in ``docs/taskqueue-api.rst``.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NoReturn

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.server.api.taskqueue_context import TaskQueueContext
from deferred_middleware.server.api.taskqueue_messages import (
    PULL_MODE,
    Code,
    application_error,
    fill_retry,
    fill_task,
    is_pull,
    text,
)
from deferred_middleware.server.store.records import StoredTask
from deferred_middleware.wire import protocol

_MAX_QUERIED_ROWS = 1000


class TaskMethods:
    """``Delete``, ``QueryTasks``, ``FetchTask`` and ``ForceRun``."""

    def __init__(self, context: TaskQueueContext) -> None:
        self._context = context

    def delete(self, request: Any, response: Any) -> None:
        """Answer ``Delete``."""
        queue = text(request.queue_name)
        if queue not in self._context.queues:
            response.result.extend([Code.UNKNOWN_QUEUE] * len(request.task_name))
            return
        found = self._context.stored(
            lambda: self._context.store.operations.delete_by_name(queue, [text(name) for name in request.task_name])
        )
        for result in found:
            if result is None:
                response.result.append(Code.UNKNOWN_TASK)
            else:
                response.result.append(Code.OK if result.outcome == "exists" else Code.TOMBSTONED_TASK)

    def query_tasks(self, request: Any, response: Any) -> None:
        """Answer ``QueryTasks``."""
        queue = self._context.queue(request.queue_name).name
        if request.HasField("start_tag"):
            raise application_error(Code.INVALID_REQUEST, "tasks can't be queried by tag")
        tasks = self._context.stored(
            lambda: self._context.store.queries.unfinished(
                queue,
                from_name=text(request.start_task_name),
                from_eta_usec=request.start_eta_usec if request.HasField("start_eta_usec") else None,
                limit=max(0, min(request.max_rows, _MAX_QUERIED_ROWS)),
            )
        )
        for task in tasks:
            self._fill_task(response.task.add(), task)

    def fetch_task(self, request: Any, response: Any) -> None:
        """Answer ``FetchTask``."""
        queue = self._context.queue(request.queue_name).name
        task = self._unfinished_task(queue, request.task_name)
        self._fill_task(response.task.task.add(), task)

    def force_run(self, request: Any, response: Any) -> None:
        """Answer ``ForceRun``."""
        queue = self._context.queue_of_mode(request.queue_name, pull=False)
        try:
            task = self._unfinished_task(queue.name, request.task_name)
        except apiproxy_errors.ApplicationError as error:
            response.result = error.application_error
            return
        # A task that is running already needs nothing.
        self._context.stored(lambda: self._context.store.force_run(task.id))
        response.result = Code.OK
        self._context.wake_scheduler()

    def _unfinished_task(self, queue: str, raw_name: bytes) -> StoredTask:
        name = text(raw_name)
        task = self._context.stored(lambda: self._context.store.queries.get(queue, name))
        if task is not None and task.state in ("ready", "running"):
            return task
        known = self._context.stored(lambda: self._context.store.queries.is_blocked(queue, name))
        raise application_error(
            Code.TOMBSTONED_TASK if known else Code.UNKNOWN_TASK, f"queue {queue!r} has no task {name!r}"
        )

    def _fill_task(self, message: Any, task: StoredTask) -> None:
        attempts = (
            self._context.stored(lambda: self._context.store.queries.attempts(task.id)) if task.retry_count else []
        )
        fill_task(message, task, attempts[-1] if attempts else None)


_NO_BACKLOG = -1


class QueueMethods:
    """``FetchQueues``, ``FetchQueueStats``, ``PauseQueue``, ``PurgeQueue``, ``UpdateQueue`` and ``DeleteQueue``."""

    def __init__(self, context: TaskQueueContext) -> None:
        self._context = context

    def fetch_queues(self, request: Any, response: Any) -> None:
        """Answer ``FetchQueues``."""
        paused = self._context.store.operations.paused()
        for name in sorted(self._context.queues)[: max(0, request.max_rows)]:
            queue = self._context.queues[name]
            message = response.queue.add()
            message.queue_name = name.encode()
            message.paused = name in paused or queue.paused
            message.mode = PULL_MODE if is_pull(queue) else taskqueue_pb.TaskQueueMode.PUSH
            fill_retry(message.retry_parameters, queue.retry)
            # The message requires these two fields, also for a pull queue and for a queue without a limit.
            message.bucket_refill_per_second = math.inf if queue.rate_per_second is None else queue.rate_per_second
            message.bucket_capacity = queue.bucket_size
            if queue.max_concurrent_requests:
                message.max_concurrent_requests = queue.max_concurrent_requests

    def fetch_queue_stats(self, request: Any, response: Any) -> None:
        """Answer ``FetchQueueStats``."""
        queues = [self._context.queue(name) for name in request.queue_name]
        for queue in queues:
            statistics = self._context.stored(functools.partial(self._context.store.queries.statistics, queue.name))
            stats = response.queuestats.add()
            stats.num_tasks = statistics.tasks
            oldest_usec = statistics.oldest_eta_usec
            # Tasks that are not due are not part of the backlog (SDK: taskqueue.py, QueueStatistics).
            due = oldest_usec is not None and oldest_usec <= self._context.now_usec()
            stats.oldest_eta_usec = oldest_usec if due else _NO_BACKLOG
            info = stats.scanner_info
            info.executed_last_minute = statistics.executed_last_minute
            info.executed_last_hour = statistics.executed_last_hour
            info.sampling_duration_seconds = 60.0
            if not is_pull(queue):
                info.requests_in_flight = statistics.in_flight
                if queue.rate_per_second is not None:
                    info.enforced_rate = queue.rate_per_second

    def pause_queue(self, request: Any, _response: Any) -> None:
        """Answer ``PauseQueue``."""
        name = self._context.queue(request.queue_name).name
        if request.pause:
            self._context.stored(lambda: self._context.store.operations.pause(name))
        else:
            self._context.stored(lambda: self._context.store.operations.resume(name))
            self._context.wake_scheduler()

    def purge_queue(self, request: Any, _response: Any) -> None:
        """Answer ``PurgeQueue``."""
        name = self._context.queue(request.queue_name).name
        self._context.stored(lambda: self._context.store.operations.purge(name))

    def update_queue(self, request: Any, _response: Any) -> None:
        """Answer ``UpdateQueue``."""
        self._reject_configuration(request)

    def delete_queue(self, request: Any, _response: Any) -> None:
        """Answer ``DeleteQueue``."""
        self._reject_configuration(request)

    def _reject_configuration(self, request: Any) -> NoReturn:
        name = self._context.queue(request.queue_name).name
        raise application_error(Code.PERMISSION_DENIED, f"queue {name!r} is configured in queue.yaml; change it there")


_LEASE_ERRORS = {
    "expired": Code.TASK_LEASE_EXPIRED,
    "tombstoned": Code.TOMBSTONED_TASK,
    "unknown": Code.UNKNOWN_TASK,
}


class LeaseMethods:
    """``QueryAndOwnTasks`` and ``ModifyTaskLease``."""

    def __init__(self, context: TaskQueueContext) -> None:
        self._context = context

    def query_and_own_tasks(self, request: Any, response: Any) -> None:
        """Answer ``QueryAndOwnTasks``."""
        queue = self._context.queue_of_mode(request.queue_name, pull=True)
        lease_usec = _lease_usec(request.lease_seconds)
        if not 0 < request.max_tasks <= protocol.MAX_TASKS_PER_LEASE:
            raise application_error(
                Code.INVALID_REQUEST,
                f"max_tasks is {request.max_tasks}; it must be 1 to {protocol.MAX_TASKS_PER_LEASE}",
            )
        tag: str | None = None
        if request.HasField("tag"):
            if not request.group_by_tag:
                raise application_error(Code.INVALID_REQUEST, "a tag without group_by_tag")
            tag = request.tag.decode("utf-8", "replace")
        if queue.name in self._context.store.operations.paused():
            return
        tasks = self._context.stored(
            lambda: self._context.store.leases.lease(
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

    def modify_task_lease(self, request: Any, response: Any) -> None:
        """Answer ``ModifyTaskLease``."""
        queue = self._context.queue_of_mode(request.queue_name, pull=True)
        if queue.name in self._context.store.operations.paused():
            raise application_error(Code.QUEUE_PAUSED, f"queue {queue.name!r} is paused")
        lease_usec = _lease_usec(request.lease_seconds)
        name = text(request.task_name)
        change = self._context.stored(
            lambda: self._context.store.leases.change(
                queue.name, name, eta_usec=request.eta_usec, lease_usec=lease_usec
            )
        )
        if change.outcome != "changed":
            raise application_error(_LEASE_ERRORS[change.outcome], f"task {name!r} of queue {queue.name!r}")
        response.updated_eta_usec = change.eta_usec


def _lease_usec(seconds: float) -> int:
    # The comparison is also false for NaN.
    if not 0 <= seconds <= protocol.MAX_LEASE_SECONDS:
        raise application_error(
            Code.INVALID_REQUEST, f"lease_seconds={seconds}; it must be 0 to {protocol.MAX_LEASE_SECONDS}"
        )
    return int(seconds * 1e6)
