"""The calls about tasks: CreateTask, GetTask, ListTasks, DeleteTask and RunTask.

CreateTask answers after the commit is on disk. Each method takes the request's message and returns the response's.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from google.cloud import tasks_v2
from google.protobuf import empty_pb2

from deferred_middleware.server.cloud_tasks import call_errors
from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError, invalid
from deferred_middleware.server.cloud_tasks.calls.task_messages import FULL, check_size, new_task, task_message
from deferred_middleware.server.cloud_tasks.names import QueuePath, parse_task_name
from deferred_middleware.server.cloud_tasks.queues import CloudQueues, FoundQueue
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.store.records import AddResult, AttemptRecord, NewTask, StoredTask
from deferred_middleware.server.store.store import TaskStore

MAX_PAGE_SIZE: Final = 1000
"""[D] "Requested page size. Fewer tasks than requested might be returned. The maximum page size is 1000." """
_MAX_PAGE_BYTES: Final = 3 << 20
"""A gRPC client takes 4 MiB by default."""
_ROWS_AT_ONCE: Final = 50
_LONGEST_NAME: Final = "0" * 20

_ListTasksResponse: Final[Any] = tasks_v2.ListTasksResponse.pb()


class TaskCalls:
    """Answers the calls about tasks of ``store`` in ``queues``.

    ``directory`` knows the hosts of App Engine targets. ``now`` returns the wall clock's seconds since the epoch, and
    ``wake_scheduler`` is called when tasks were added.
    """

    def __init__(
        self,
        store: TaskStore,
        queues: CloudQueues,
        directory: ServiceDirectory,
        wake_scheduler: Callable[[], None],
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._queues = queues
        self._directory = directory
        self._wake_scheduler = wake_scheduler
        self._now = now

    def create(self, request: Any) -> Any:
        """Answer CreateTask."""
        queue = self._queues.find(QueuePath.parse(request.parent))
        task = self.checked(request.task, queue)
        (result,) = self.add([task])
        if result.outcome != "added":
            raise refused(result)
        return self.created(task, result.name, queue, request.response_view)

    def get(self, request: Any) -> Any:
        """Answer GetTask."""
        queue, task = self._unfinished(request.name)
        return self._shown(task, queue, request.response_view)

    def list_tasks(self, request: Any) -> Any:
        """Answer ListTasks."""
        queue = self._queues.find(QueuePath.parse(request.parent))
        if request.page_size < 0:
            raise invalid("ListTasksRequest.pageSize cannot be negative.")
        wanted = min(request.page_size or MAX_PAGE_SIZE, MAX_PAGE_SIZE)
        after_id = _token_position(request.page_token, queue.path)
        response = _ListTasksResponse()
        size = 0
        for task in self._listed(queue, after_id):
            shown = self._shown(task, queue, request.response_view)
            size += shown.ByteSize()
            if len(response.tasks) == wanted or (size > _MAX_PAGE_BYTES and response.tasks):
                response.next_page_token = _page_token(after_id, queue.path)
                break
            response.tasks.append(shown)
            after_id = task.id
        return response

    def _listed(self, queue: FoundQueue, after_id: int) -> Iterator[StoredTask]:
        """Go through the tasks of a queue; few are in memory at a time, because they may be large."""
        while found := self._store.queries.listed(queue.name, after_id=after_id, limit=_ROWS_AT_ONCE):
            yield from found
            after_id = found[-1].id

    def delete(self, request: Any) -> Any:
        """Answer DeleteTask."""
        path, task_id = parse_task_name(request.name)
        (error,) = self.delete_all(self._queues.find(path), [task_id])
        if error is not None:
            raise error
        return empty_pb2.Empty()

    def run(self, request: Any) -> Any:
        """Answer RunTask: the task is dispatched now, whatever the pause and the rate of its queue."""
        queue, task = self._unfinished(request.name)
        forced = self._store.force_run(task.id)
        self._wake_scheduler()
        shown = self._shown(task, queue, request.response_view)
        if forced:
            # [D] "contains the status after the task is dispatched but before the task is received by its target"
            now_usec = int(self._now() * 1e6)
            shown.dispatch_count += 1
            shown.last_attempt.Clear()
            shown.last_attempt.schedule_time.FromMicroseconds(now_usec)
            shown.last_attempt.dispatch_time.FromMicroseconds(now_usec)
            if not shown.HasField("first_attempt"):
                shown.first_attempt.dispatch_time.FromMicroseconds(now_usec)
        return shown

    def checked(self, task: Any, queue: FoundQueue) -> NewTask:
        """Return the task to add. Raises :class:`~.call_errors.ApiCallError` if it is not legal."""
        made = new_task(task, queue, int(self._now() * 1e6))
        check_size(self.created(made, made.name or _LONGEST_NAME, queue, FULL))
        return made

    def add(self, tasks: Sequence[NewTask], *, key: str | None = None) -> Sequence[AddResult]:
        """Add tasks, and have them run; see :meth:`TaskStore.add`."""
        results = self._store.add(tasks, key=key)
        if any(result.outcome == "added" for result in results):
            self._wake_scheduler()
        return results

    def created(self, task: NewTask, name: str, queue: FoundQueue, view: int) -> Any:
        """Return a task that was added just now as the API shows it."""
        stored = StoredTask(
            id=0,
            queue=task.queue,
            name=name,
            state="ready",
            eta_usec=task.eta_usec,
            created_usec=int(self._now() * 1e6),
            first_attempt_usec=None,
            finished_usec=None,
            method=task.method,
            url=task.url,
            target=task.target,
            retry=task.retry,
            dispatch_deadline_usec=task.dispatch_deadline_usec,
            retry_count=0,
            execution_count=0,
            previous_response=None,
            retry_reason=None,
            headers=task.headers,
            body=task.body,
            origin=task.origin,
        )
        return task_message(stored, queue.path, self._host(stored, queue), view, [])

    def delete_all(self, queue: FoundQueue, task_ids: Sequence[str]) -> list[ApiCallError | None]:
        """Delete tasks; return for each the error, or None."""
        errors: list[ApiCallError | None] = []
        for result in self._store.operations.delete_by_name(queue.name, task_ids):
            if result is None:
                errors.append(call_errors.no_entity())
            else:
                errors.append(None if result.outcome == "exists" else call_errors.task_is_over())
        return errors

    def _unfinished(self, name: str) -> tuple[FoundQueue, StoredTask]:
        path, task_id = parse_task_name(name)
        try:
            queue = self._queues.find(path)
        except ApiCallError:
            raise call_errors.no_entity() from None
        task = self._store.queries.get(queue.name, task_id)
        if task is not None and task.state in ("ready", "running"):
            return queue, task
        if task is not None or self._store.queries.is_blocked(queue.name, task_id):
            raise call_errors.task_is_over()
        raise call_errors.no_entity()

    def _shown(self, task: StoredTask, queue: FoundQueue, view: int) -> Any:
        attempts: list[AttemptRecord] = []
        if task.retry_count:
            attempts = self._store.queries.attempts(task.id)
        return task_message(task, queue.path, self._host(task, queue), view, attempts)

    def _host(self, task: StoredTask, queue: FoundQueue) -> str:
        return "" if task.is_http else self._directory.host(queue.config.target or task.target)


def refused(result: AddResult) -> ApiCallError:
    """Return the error for a task that was not added."""
    return call_errors.task_exists() if result.outcome == "exists" else call_errors.task_name_is_blocked()


def _page_token(after_id: int, path: QueuePath) -> str:
    return base64.urlsafe_b64encode(f"{_digest(path)}:{after_id}".encode()).decode()


def _token_position(token: str, path: QueuePath) -> int:
    """Return where a page begins. A token is good for the queue that it was made for, [D] ListTasksRequest."""
    if not token:
        return 0
    with contextlib.suppress(ValueError, binascii.Error):
        digest, _, number = base64.b64decode(token.encode(), b"-_", validate=True).decode().partition(":")
        if digest == _digest(path) and number.isdecimal() and len(number) < 19:
            return int(number)
    raise invalid("The page token is not valid.")


def _digest(path: QueuePath) -> str:
    return hashlib.sha256(path.name.encode()).hexdigest()[:16]
