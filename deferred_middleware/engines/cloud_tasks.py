"""Google Cloud Tasks as the engine. It uses the ``google-cloud-tasks`` client.

The differences between Cloud Tasks and the taskqueue API are in ``docs/cloud-tasks.rst``. Importing this module imports
the client.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
from google.api_core import exceptions as api_exceptions
from google.auth import exceptions as auth_exceptions
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks import transports
from google.protobuf import duration_pb2

from deferred_middleware.engines import advice, answers, location, outbox
from deferred_middleware.engines.engine import AddFailure, FailedStart, StartedAdd, TaskMessage, TaskTemplate
from deferred_middleware.engines.location import Location, emulator_address
from deferred_middleware.errors import sdk
from deferred_middleware.wire import namespace, protocol

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.calls.options import Options
    from deferred_middleware.engines.targets import Targets

MAX_CALL_SECONDS: Final = 20.0
"""The maximum duration of one call. Cloud Tasks rejects deadlines of more than 30 seconds.

The client's default is 20 seconds (SDK: ``api/taskqueue/cloudtask.py``, ``_DEFAULT_RPC_TIMEOUT_SECONDS``).
"""

_MAX_CALLS_AT_ONCE: Final = 100  # as in the SDK
_ERROR_NAME: Final = re.compile(r"ExecutorServiceError::([A-Z_]+)")
"""Finds App Engine's own name of an error in the details of a status."""
_CODES: Final = {answer.what: code for code, answer in answers.BY_CODE.items()}
_DEADLINE_EXCEEDED: Final = 4
_NOT_FOUND: Final = 5
_UNKNOWN: Final = 2

_Task: Final = tasks_v2.Task.pb()


class CloudTasksEngine:
    """Adds tasks through the API of Cloud Tasks."""

    name = "cloud-tasks"
    has_outbox = True

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self.max_task_bytes: int = targets.max_task_bytes
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Start without clients and threads. Also called in a forked process, because neither survives a fork."""
        self._lock = threading.Lock()
        self._clients: dict[str | None, tasks_v2.CloudTasksClient] = {}  # by emulator; guarded by the lock
        self._threads: futures.ThreadPoolExecutor | None = None  # made under the lock

    def is_available(self) -> bool:
        """Return True: any process can call Cloud Tasks."""
        return True

    def context(self) -> Hashable:
        """Return the location, the namespace, and what the targets depend on."""
        return location.find(), namespace.header_value(), self._targets.context()

    def encode(self, template: TaskTemplate) -> TaskTemplate:
        """Return the template with the part of the ``google.cloud.tasks.v2.Task`` that the tasks share."""
        task = _Task()
        self._targets.fill(task, template)
        if template.retry_options is not None:
            _fill_retry_config(task.retry_config, template.retry_options)
        if template.deadline_seconds is not None:
            if template.deadline_seconds > self._targets.max_deadline_seconds:
                raise sdk.InvalidDispatchDeadlineError(
                    "_deadline",
                    template.deadline_seconds,
                    f"Cloud Tasks allows up to {self._targets.max_deadline_seconds:,.0f} seconds for a URL.",
                )
            task.dispatch_deadline.CopyFrom(_duration(template.deadline_seconds))
        encoded = _EncodedTask(task, location.find(), self._targets)
        return dataclasses.replace(template, encoded=encoded, overhead_bytes=task.ByteSize())

    def unsupported(self, options: Options) -> Sequence[str]:
        """Return a sentence for each header that Cloud Tasks drops or replaces."""
        return [
            f"Cloud Tasks drops the header {name} in _headers." for name in options.headers if self._targets.drops(name)
        ]

    def start(self, messages: Sequence[TaskMessage], timeout_seconds: float | None) -> StartedAdd:
        """Start CreateTask in another thread, or BatchCreateTasks if there are several messages."""
        timeout = min(timeout_seconds or MAX_CALL_SECONDS, MAX_CALL_SECONDS)
        try:
            client = self._client()
            create = _create_one if len(messages) == 1 else _create_batch
            return _StartedCall(self._pool().submit(create, client, messages, timeout), messages)
        except auth_exceptions.GoogleAuthError as error:
            failure = _without_credentials(error)
        except Exception as error:  # noqa: BLE001 - any error at the start is a failure of the tasks
            answer = answers.NO_THREAD if answers.lacks_thread(error) else answers.NOT_SENT
            failure = AddFailure(error=error, answer=answer, of_whole_add=True)
        return FailedStart(len(messages), failure)

    def add(self, messages: Sequence[TaskMessage], timeout_seconds: float | None) -> Sequence[str | AddFailure]:
        """Make the call, and wait for its answer."""
        return self.start(messages, timeout_seconds).results()

    def add_in_transaction(self, message: TaskMessage) -> None:
        """Store the task in the current transaction. It is sent to Cloud Tasks after the commit."""
        outbox.add(
            parent=_queue_path(message),
            make_task=lambda name: _task_of(message, name).SerializeToString(deterministic=True),
            send=self.send,
        )

    def send(self, parent: str, serialized: bytes) -> None:
        """Create a serialized task, unless its name is taken. Raises the client's exceptions."""
        request = tasks_v2.CreateTaskRequest(parent=parent, task=tasks_v2.Task.deserialize(serialized))
        try:
            self._client().create_task(request=request, timeout=MAX_CALL_SECONDS)
        except api_exceptions.AlreadyExists:
            return

    def _client(self) -> tasks_v2.CloudTasksClient:
        """Return the process's client. The first call looks up the credentials and opens a channel."""
        address = emulator_address()
        client = self._clients.get(address)
        if client is None:
            with self._lock:
                client = self._clients.get(address)
                if client is None:
                    client = self._clients[address] = _new_client(address)
        return client

    def _pool(self) -> futures.ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = futures.ThreadPoolExecutor(_MAX_CALLS_AT_ONCE, "deferred_middleware Cloud Tasks")
            return self._threads


class _EncodedTask(NamedTuple):
    """The form of a template for Cloud Tasks."""

    task: Any
    """A ``Task`` message that has everything but the name, the body, the time and the signature."""
    location: Location
    targets: Targets


class _StartedCall:
    """A call of the client that runs in another thread."""

    def __init__(self, future: futures.Future[Sequence[str | AddFailure]], messages: Sequence[TaskMessage]) -> None:
        self.future = future
        self._messages = messages

    def results(self) -> Sequence[str | AddFailure]:
        """Wait for the call, and return its results or the reason for its failure."""
        try:
            return self.future.result()
        except Exception as error:  # noqa: BLE001 - the client raises its own, gRPC's and the credentials' errors
            return [_failure_of_call(error, _queue_path(self._messages[0]))] * len(self._messages)


def _new_client(emulator: str | None) -> tasks_v2.CloudTasksClient:
    if emulator is None:
        return tasks_v2.CloudTasksClient()
    transport = transports.CloudTasksGrpcTransport(channel=grpc.insecure_channel(emulator), host=emulator)
    return tasks_v2.CloudTasksClient(transport=transport)


def _create_one(client: tasks_v2.CloudTasksClient, messages: Sequence[TaskMessage], timeout: float) -> list[str]:
    (message,) = messages
    created = client.create_task(request=_create_request(message), timeout=timeout)
    return [created.name.rpartition("/")[2]]


def _create_batch(
    client: tasks_v2.CloudTasksClient, messages: Sequence[TaskMessage], timeout: float
) -> list[str | AddFailure]:
    queue_path = _queue_path(messages[0])
    request = tasks_v2.BatchCreateTasksRequest(
        parent=queue_path, requests=[_create_request(message) for message in messages]
    )
    operation = client.batch_create_tasks(request=request, timeout=timeout)
    if not operation.operation.done:
        raise answers.exception_for(answers.UNFINISHED, "the answer to BatchCreateTasks is an unfinished operation")
    failed = dict(operation.metadata.failed_requests) if operation.metadata is not None else {}
    created: Iterator[Any] = iter(())
    if not operation.operation.HasField("error"):
        response: Any = operation.result(timeout=0)  # type: ignore[no-untyped-call] # of Google
        created = iter(response.tasks)
    elif not failed:
        status = operation.operation.error
        return [_failure_of_status(status.code, status.message, queue_path, of_whole_add=True)] * len(messages)
    results: list[str | AddFailure] = []
    for place in range(len(messages)):
        status = failed.get(place)
        if status is not None:
            results.append(_failure_of_status(status.code, status.message, queue_path, of_whole_add=False))
            continue
        task = next(created, None)
        if task is None:
            error = answers.sdk_error("the answer to BatchCreateTasks lacks some of the tasks")
            results.append(AddFailure(error=error, answer=answers.EMPTY, of_whole_add=False))
        else:
            results.append(task.name.rpartition("/")[2])
    return results


def _create_request(message: TaskMessage) -> tasks_v2.CreateTaskRequest:
    parent = _queue_path(message)
    name = f"{parent}/tasks/{message.name}" if message.name else ""
    request = tasks_v2.CreateTaskRequest.pb()(parent=parent)
    request.task.CopyFrom(_task_of(message, name))
    wrapped: tasks_v2.CreateTaskRequest = tasks_v2.CreateTaskRequest.wrap(request)
    return wrapped


def _task_of(message: TaskMessage, full_name: str) -> Any:
    """Return the ``Task`` message."""
    encoded: _EncodedTask = message.template.encoded
    task = _Task()
    task.CopyFrom(encoded.task)
    task.name = full_name
    request = encoded.targets.request_of(task)
    request.body = message.body
    if message.signature is not None:
        request.headers[protocol.SIGNATURE_HEADER] = message.signature
    if message.eta_posix > time.time():
        eta = datetime.datetime.fromtimestamp(message.eta_posix, datetime.timezone.utc)
        task.schedule_time.FromDatetime(eta)
    return task


def _queue_path(message: TaskMessage) -> str:
    """Return the full name of the message's queue."""
    encoded: _EncodedTask = message.template.encoded
    return encoded.location.queue_path(message.queue)


def _fill_retry_config(config: Any, options: taskqueue.TaskRetryOptions) -> None:
    if options.task_retry_limit is not None:
        config.max_attempts = options.task_retry_limit + 1
    if options.max_doublings is not None:
        config.max_doublings = options.max_doublings
    for field, seconds in (
        ("max_retry_duration", options.task_age_limit),
        ("min_backoff", options.min_backoff_seconds),
        ("max_backoff", options.max_backoff_seconds),
    ):
        if seconds is not None:
            getattr(config, field).CopyFrom(_duration(seconds))


def _duration(seconds: float) -> duration_pb2.Duration:
    """Return a duration in whole microseconds. A float would turn 2.3 s into 2,299,999,999 ns."""
    duration = duration_pb2.Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration


def _failure_of_call(error: Exception, queue_path: str) -> AddFailure:
    """Return the failure for an exception of the client."""
    if isinstance(error, auth_exceptions.GoogleAuthError):
        return _without_credentials(error)
    if isinstance(error, api_exceptions.RetryError):
        return _failure_of_status(_DEADLINE_EXCEEDED, str(error), queue_path, of_whole_add=True, cause=error)
    if isinstance(error, api_exceptions.GoogleAPICallError):
        status = error.grpc_status_code
        number = _UNKNOWN if status is None else status.value[0]
        return _failure_of_status(number, str(error), queue_path, of_whole_add=True, cause=error)
    return AddFailure(error=error, answer=answers.for_exception(error), of_whole_add=True)


def _without_credentials(error: Exception) -> AddFailure:
    error.way_out = advice.NO_CREDENTIALS  # type: ignore[attr-defined] # sdk.explain() reads it
    return AddFailure(error=error, answer=answers.NO_CREDENTIALS, of_whole_add=True)


def _failure_of_status(
    status: int, message: str, queue_path: str, *, of_whole_add: bool, cause: Exception | None = None
) -> AddFailure:
    """Return the failure for a gRPC status, or for the App Engine error that its message names."""
    found = _ERROR_NAME.search(message)
    code = _CODES.get(found[1]) if found else None
    if code is not None:
        answer, error = answers.BY_CODE[code], answers.exception_for_code(code, message)
    else:
        if "queue does not exist" in message.lower():
            status = _NOT_FOUND
        answer = answers.BY_STATUS.get(status, answers.UNKNOWN)
        error = answers.exception_for(answer, message)
        error.way_out = advice.for_status(status, message, queue_path)  # type: ignore[attr-defined] # see above
    error.__cause__ = cause
    return AddFailure(error=error, answer=answer, of_whole_add=of_whole_add)
