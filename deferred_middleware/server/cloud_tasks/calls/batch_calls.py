"""The calls about many tasks: BatchCreateTasks, BatchDeleteTasks, and the operations that they answer with.

Both are done when they are answered, so their operations are done too. The tasks of a batch are added in one commit.
If a client repeats BatchCreateTasks with the same ``request_id`` within a day, no task is added twice.
"""

from __future__ import annotations

import collections
import hashlib
import threading
import uuid
from typing import Any, Final

from google.cloud import tasks_v2
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2
from google.rpc import status_pb2

from deferred_middleware.server.cloud_tasks import call_errors
from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError, RpcCode, invalid
from deferred_middleware.server.cloud_tasks.calls.task_calls import TaskCalls, refused
from deferred_middleware.server.cloud_tasks.names import QueuePath, parse_task_name
from deferred_middleware.server.cloud_tasks.queues import CloudQueues
from deferred_middleware.server.store.records import NewTask

MAX_CREATED: Final = 100
"""[D] "The maximum number of requests is 100." """
MAX_DELETED: Final = 1000
"""[D] "A maximum of 1000 tasks can be deleted in a batch." """
_MAX_OPERATIONS: Final = 1000

_CreateMetadata: Final[Any] = tasks_v2.BatchCreateTasksMetadata.pb()
_CreateResponse: Final[Any] = tasks_v2.BatchCreateTasksResponse.pb()
_DeleteMetadata: Final[Any] = tasks_v2.BatchDeleteTasksMetadata.pb()


class BatchCalls:
    """Answers the calls about many tasks, by ``tasks``. Its latest operations are kept for GetOperation."""

    def __init__(self, tasks: TaskCalls, queues: CloudQueues) -> None:
        self._tasks = tasks
        self._queues = queues
        # Guards the operations.
        self._lock = threading.Lock()
        self._operations: collections.OrderedDict[str, Any] = collections.OrderedDict()

    def create(self, request: Any) -> Any:
        """Answer BatchCreateTasks."""
        queue = self._queues.find(QueuePath.parse(request.parent))
        if not 1 <= len(request.requests) <= MAX_CREATED:
            raise invalid(f"BatchCreateTasksRequest.requests must have between 1 and {MAX_CREATED} requests.")
        for each in request.requests:
            if each.parent not in ("", request.parent):
                raise call_errors.not_in_queue(request.parent, each.parent)
        metadata = _CreateMetadata()
        metadata.start_time.GetCurrentTime()
        made: dict[int, NewTask] = {}
        failed: dict[int, ApiCallError] = {}
        for index, each in enumerate(request.requests):
            try:
                made[index] = self._tasks.checked(each.task, queue)
            except ApiCallError as error:
                failed[index] = error
        key = _key(request, len(made))
        results = self._tasks.add(list(made.values()), key=key) if made else []
        response = _CreateResponse()
        for index, result in zip(made, results, strict=True):
            if result.outcome == "added":
                view = request.requests[index].response_view
                response.tasks.append(self._tasks.created(made[index], result.name, queue, view))
            else:
                failed[index] = refused(result)
        return self._operation(metadata, response, failed, len(request.requests), queue.path, request.request_id)

    def delete(self, request: Any) -> Any:
        """Answer BatchDeleteTasks."""
        queue = self._queues.find(QueuePath.parse(request.parent))
        if not 1 <= len(request.names) <= MAX_DELETED:
            raise invalid(f"BatchDeleteTasksRequest.names must have between 1 and {MAX_DELETED} names.")
        metadata = _DeleteMetadata()
        metadata.start_time.GetCurrentTime()
        failed: dict[int, ApiCallError] = {}
        found: dict[int, str] = {}
        for index, name in enumerate(request.names):
            try:
                path, task_id = parse_task_name(name)
                if path != queue.path:
                    raise call_errors.not_in_queue(queue.path.name, path.name)
                found[index] = task_id
            except ApiCallError as error:
                failed[index] = error
        errors = self._tasks.delete_all(queue, list(found.values()))
        failed |= {index: error for index, error in zip(found, errors, strict=True) if error is not None}
        return self._operation(metadata, empty_pb2.Empty(), failed, len(request.names), queue.path, request.request_id)

    def get_operation(self, request: Any) -> Any:
        """Answer GetOperation."""
        with self._lock:
            operation = self._operations.get(request.name)
        if operation is None:
            raise call_errors.no_entity()
        return operation

    def _operation(
        self,
        metadata: Any,
        response: Any,
        failed: dict[int, ApiCallError],
        number: int,
        path: QueuePath,
        request_id: str,
    ) -> Any:
        for index, error in sorted(failed.items()):
            metadata.failed_requests[index].CopyFrom(status_of(error))
        metadata.end_time.GetCurrentTime()
        metadata.state = type(metadata).State.Value("PARTIALLY_SUCCEEDED" if failed else "SUCCEEDED")
        name = f"{path.parent}/operations/{request_id or uuid.uuid4()}"
        operation = operations_pb2.Operation(name=name, done=True)
        operation.metadata.Pack(metadata)
        if len(failed) == number:
            # [D] BatchDeleteTasksMetadata.State
            kind = type(metadata).DESCRIPTOR.name
            message = f"None of the requests succeeded, refer to {kind}.failed_requests for individual error details"
            operation.error.CopyFrom(status_pb2.Status(code=RpcCode.ABORTED, message=message))
        else:
            operation.response.Pack(response)
        with self._lock:
            self._operations[name] = operation
            while len(self._operations) > _MAX_OPERATIONS:
                self._operations.popitem(last=False)
        return operation


def status_of(error: ApiCallError) -> Any:
    """Return an error as a ``google.rpc.Status``."""
    return status_pb2.Status(code=error.code, message=error.message)


def _key(request: Any, number: int) -> str | None:
    """Return the key under which the results of a batch are kept; None if the client names none."""
    if not request.request_id:
        return None
    # The number of tasks: another request under the same ID must not be answered with results that don't fit it.
    content = f"{request.parent}\0{number}\0{request.request_id}"
    return hashlib.sha256(content.encode()).hexdigest()
