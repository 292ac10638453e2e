"""The taskqueue API's methods about tasks that are there."""

from __future__ import annotations

from typing import Any

from google.appengine.runtime import apiproxy_errors

from deferred_middleware.server.api import taskqueue_messages
from deferred_middleware.server.api.servicecore import Code, ServiceCore, application_error, text
from deferred_middleware.server.store.records import StoredTask

_MAX_QUERIED_ROWS = 1000


class TaskMethods(ServiceCore):
    """``Delete``, ``QueryTasks``, ``FetchTask`` and ``ForceRun``."""

    def _Dynamic_Delete(self, request: Any, response: Any) -> None:
        queue = text(request.queue_name)
        if queue not in self._queues:
            response.result.extend([Code.UNKNOWN_QUEUE] * len(request.task_name))
            return
        found = self._stored(lambda: self._store.delete(queue, [text(name) for name in request.task_name]))
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
            lambda: self._store.unfinished(
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
        task = self._stored(lambda: self._store.get(queue, name))
        if task is not None and task.state in ("ready", "running"):
            return task
        known = self._stored(lambda: self._store.is_blocked(queue, name))
        raise application_error(
            Code.TOMBSTONED_TASK if known else Code.UNKNOWN_TASK, f"queue {queue!r} has no task {name!r}"
        )

    def _fill_task(self, message: Any, task: StoredTask) -> None:
        attempts = self._stored(lambda: self._store.attempts(task.id)) if task.retry_count else []
        taskqueue_messages.fill(message, task, attempts[-1] if attempts else None)
