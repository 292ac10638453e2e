"""The taskqueue API's methods of pull queues."""

from __future__ import annotations

from typing import Any

from deferred_middleware.server.api.servicecore import Code, ServiceCore, application_error, text
from deferred_middleware.wire import protocol

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
        if queue.name in self._store.paused():
            return
        tasks = self._stored(
            lambda: self._store.lease(
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
        if queue.name in self._store.paused():
            raise application_error(Code.QUEUE_PAUSED, f"queue {queue.name!r} is paused")
        lease_usec = _lease_usec(request.lease_seconds)
        name = text(request.task_name)
        change = self._stored(
            lambda: self._store.change_lease(queue.name, name, eta_usec=request.eta_usec, lease_usec=lease_usec)
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
