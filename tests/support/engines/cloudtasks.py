"""A small Google Cloud Tasks: a gRPC server with the real messages, which dispatches tasks to an app over HTTP.

It implements what the SDK calls: CreateTask, BatchCreateTasks, BatchDeleteTasks and PurgeQueue of
google.cloud.tasks.v2, and GetQueue of v2beta3. It has the service's limits:

* It refuses unknown queues, used names, tasks over 100 KB, times more than 30 days ahead and deadlines of more than 30
  seconds (https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2, and the SDK's remark on
  _DEFAULT_RPC_TIMEOUT_SECONDS).
* It drops the task's Host, X-Google-* and X-AppEngine-* headers, and adds its own
  (https://cloud.google.com/tasks/docs/creating-appengine-handlers#reading-request-headers).

A task with an HTTP target has 1 MB and the headers X-CloudTasks-*. ``hosts`` says where the URLs of the test lead.
"""

from __future__ import annotations

import dataclasses
import http.client
import itertools
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection
from concurrent import futures
from typing import Any, Final

import grpc
from google.cloud import tasks_v2, tasks_v2beta3
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2
from google.rpc import code_pb2, status_pb2

_MAX_TASK_BYTES = 100 * 1024
_MAX_HTTP_TASK_BYTES = 1_000_000
_MAX_AHEAD_SECONDS = 30 * 24 * 3600
_MAX_DEADLINE_SECONDS = 30
_V2 = "google.cloud.tasks.v2.CloudTasks"
_V2BETA3 = "google.cloud.tasks.v2beta3.CloudTasks"


class _RefusedError(Exception):
    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        self.code = code
        super().__init__(detail)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """How a call fails."""

    code: grpc.StatusCode | None
    """The status of the answer; None means no answer at all."""
    done: bool = False
    """Whether the server carries out the request anyway."""
    cuts: bool = False
    """Whether the connection is cut, if ``cut`` of the server does that."""
    half: bool = False
    """Whether a batch fails for every second task only, and with a normal answer."""


FLAKY: Final = (
    Fault(code=grpc.StatusCode.UNAVAILABLE),
    Fault(code=grpc.StatusCode.UNAVAILABLE, done=True),
    Fault(code=grpc.StatusCode.UNAVAILABLE, half=True),
    Fault(code=None, cuts=True, done=True),
    Fault(code=grpc.StatusCode.DEADLINE_EXCEEDED, done=True),
    Fault(code=None, done=True),
    Fault(code=grpc.StatusCode.INTERNAL),
    Fault(code=grpc.StatusCode.RESOURCE_EXHAUSTED),
    Fault(code=None, cuts=True),
    Fault(code=grpc.StatusCode.ABORTED),
    Fault(code=grpc.StatusCode.UNKNOWN, done=True),
    Fault(code=grpc.StatusCode.CANCELLED, half=True),
    Fault(code=grpc.StatusCode.UNAVAILABLE),
    Fault(code=None, cuts=True, done=True),
    Fault(code=grpc.StatusCode.INTERNAL, done=True),
    Fault(code=grpc.StatusCode.RESOURCE_EXHAUSTED, half=True),
)
"""The faults of a flaky server, one after the other."""


@dataclasses.dataclass(kw_only=True)
class Held:
    """A task in a queue."""

    queue: str
    task: Any
    due: float
    dispatches: int = 0
    responses: int = 0
    previous_response: int | None = None
    first_dispatch: float | None = None


class CloudTasks:
    """The server and its dispatcher, as a context manager.

    The app listens on ``app_port``. ``extra_headers`` make the app's front end trust a request.
    """

    def __init__(self, parent: str, queues: Collection[str]) -> None:
        self._parent = parent
        self._queues = set(queues)
        self._tasks: dict[str, Held] = {}
        self._used: set[str] = set()
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._closed = False
        self.app_port: int | None = None
        self.extra_headers: dict[str, str] = {}
        self.hosts: dict[str, str] = {}
        """For the start of a URL of an HTTP target, such as https://shop.example.com, the host and port it leads to."""
        self.token_for: Callable[[str, str], str] | None = None
        """Returns the token of a service account for an audience."""
        self.is_flaky = False
        """Whether every other call that creates tasks fails."""
        self.cut: Callable[[], object] | None = None
        """Cuts the connections of the clients."""
        self._flaky_calls = itertools.count()
        self.calls: list[tuple[str, Any]] = []
        """Each call's method and request, in order."""
        self.faults: list[Fault | None] = []
        """The faults of the next calls; None is a call without a fault."""
        self.lasting = False
        """Whether the last fault also applies to all later calls."""
        self.refuse: Callable[[Any], grpc.StatusCode | None] = lambda task: None
        """Returns the status with which to refuse a new task, or None to accept it."""
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    _V2,
                    {
                        "CreateTask": self._method(tasks_v2.CreateTaskRequest, self._create_task),
                        "BatchCreateTasks": self._method(tasks_v2.BatchCreateTasksRequest, self._batch_create),
                        "BatchDeleteTasks": self._method(tasks_v2.BatchDeleteTasksRequest, self._batch_delete),
                        "PurgeQueue": self._method(tasks_v2.PurgeQueueRequest, self._purge),
                    },
                ),
                grpc.method_handlers_generic_handler(
                    _V2BETA3, {"GetQueue": self._method(tasks_v2beta3.GetQueueRequest, self._get_queue)}
                ),
            )
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._dispatcher = threading.Thread(target=self._dispatch_all, name="Cloud Tasks", daemon=True)

    def __enter__(self) -> CloudTasks:
        """Start the server."""
        self._server.start()
        self._dispatcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._dispatcher.join(60)
        self._server.stop(None).wait(60)

    def held(self, queue: str | None = None) -> list[Held]:
        """Return the waiting tasks, or those of one queue."""
        with self._changed:
            return [held for held in self._tasks.values() if queue in (None, held.queue)]

    def reset(self) -> None:
        """Delete all tasks, names and faults."""
        with self._changed:
            self._tasks.clear()
            self._used.clear()
            self.calls.clear()
            self.faults, self.lasting = [], False
            self.refuse = lambda task: None

    def hurry(self) -> None:
        """Make every waiting task due now."""
        with self._changed:
            for held in self._tasks.values():
                held.due = 0
            self._changed.notify_all()

    # RPCs.

    def _method(self, request_type: Any, answer: Callable[[Any], Any]) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            wrapped = request_type.wrap(request)
            self.calls.append((answer.__name__.removeprefix("_"), wrapped))
            try:
                remaining = context.time_remaining()
                if remaining is None or remaining > _MAX_DEADLINE_SECONDS:
                    raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "The request deadline is too far ahead.")
                with self._changed:
                    fault = self._next_fault() or self._flaky_fault(answer, wrapped)
                    if fault is not None and fault.half:
                        answered, fault = self._half(wrapped, fault), None
                        self._changed.notify_all()
                    elif fault is None or fault.done:
                        answered = self._done(answer, wrapped, fails_anyway=fault is not None)
                if fault is not None:
                    if fault.cuts and self.cut is not None:
                        self.cut()
                    if fault.code is not None:
                        raise _RefusedError(fault.code, "as told")
                    over = threading.Event()
                    context.add_callback(over.set)
                    over.wait(60)
                    raise _RefusedError(grpc.StatusCode.CANCELLED, "nobody waits any more")
            except _RefusedError as error:
                context.abort(error.code, str(error))
            return type(answered).pb(answered) if hasattr(type(answered), "pb") else answered

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=request_type.pb().FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _done(self, answer: Callable[[Any], Any], request: Any, *, fails_anyway: bool) -> Any:
        try:
            answered = answer(request)
        except _RefusedError:
            if fails_anyway:
                return None
            raise
        self._changed.notify_all()
        return answered

    def _next_fault(self) -> Fault | None:
        if not self.faults:
            return None
        return self.faults[0] if self.lasting and len(self.faults) == 1 else self.faults.pop(0)

    def _flaky_fault(self, answer: Callable[[Any], Any], request: Any) -> Fault | None:
        """Return the fault of a call of a flaky server.

        It spares transactional tasks, which only a sweep repeats. It doesn't create a task of a name that the app chose
        before it fails: the repetition would find the name taken, and can't know by whom.
        """
        is_batch = answer == self._batch_create
        if not self.is_flaky or not (is_batch or answer == self._create_task):
            return None
        names = _names_in(request)
        if names[0].startswith("tx-"):
            return None
        number = next(self._flaky_calls)
        if number % 2:
            return None
        fault = FLAKY[number // 2 % len(FLAKY)]
        if fault.half and not is_batch:
            return dataclasses.replace(fault, half=False)
        are_generated = all(re.fullmatch("[0-9a-f]{32}", name) for name in names)
        return fault if are_generated or not (fault.done or fault.half) else FLAKY[0]

    def take_adds(self) -> list[list[str]]:
        """Return the task names of each call that created tasks since the last one of this."""
        calls = list(self.calls)
        del self.calls[: len(calls)]
        return [_names_in(request) for kind, request in calls if kind in ("batch_create", "create_task")]

    def _create_task(self, request: Any) -> Any:
        return self._create(request)

    def _create(self, request: Any) -> Any:
        queue = self._queue(request.parent)
        task: Any = tasks_v2.Task(request.task)
        is_by_url = bool(task.http_request.url)
        if tasks_v2.Task.pb(task).ByteSize() > (_MAX_HTTP_TASK_BYTES if is_by_url else _MAX_TASK_BYTES):
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "Task size too large")
        refused = self.refuse(task)
        if refused is not None:
            raise _RefusedError(refused, "as told")
        now = time.time()
        due = task.schedule_time.timestamp() if task.schedule_time else now
        if due > now + _MAX_AHEAD_SECONDS + 60:
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "The time must be within 30 days.")
        prefix = f"{request.parent}/tasks/"
        if not task.name:
            task.name = f"{prefix}{next(self._numbers):020}"
        elif not task.name.startswith(prefix):
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "The task's name is not in its queue.")
        if task.name in self._used:
            raise _RefusedError(grpc.StatusCode.ALREADY_EXISTS, "Requested entity already exists")
        headers = task.http_request.headers if is_by_url else task.app_engine_http_request.headers
        for name in list(headers):
            if name.lower() == "host" or name.lower().startswith(("x-google-", "x-appengine-", "x-cloudtasks-")):
                del headers[name]
        self._used.add(task.name)
        self._tasks[task.name] = Held(queue=queue, task=task, due=due)
        return task

    def _batch_create(self, request: Any) -> Any:
        return self._create_all(request, lambda index: None)

    def _half(self, request: Any, fault: Fault) -> Any:
        """Create every second task."""
        assert fault.code is not None
        refusal = _RefusedError(fault.code, "as told")
        return self._create_all(request, lambda index: None if index % 2 else refusal)

    def _create_all(self, request: Any, refusal: Callable[[int], _RefusedError | None]) -> Any:
        self._queue(request.parent)
        if len(request.requests) > 100:
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "More than 100 requests.")
        created, failed = [], {}
        for index, each in enumerate(request.requests):
            try:
                refused = refusal(index)
                if refused is not None:
                    raise refused
                created.append(self._create(each))
            except _RefusedError as error:
                failed[index] = _status(error)
        metadata = tasks_v2.BatchCreateTasksMetadata(failed_requests=failed)
        return _operation(metadata, tasks_v2.BatchCreateTasksResponse(tasks=created), none_of_them=not created)

    def _batch_delete(self, request: Any) -> Any:
        self._queue(request.parent)
        failed = {}
        for index, name in enumerate(request.names):
            if self._tasks.pop(name, None) is None:
                failed[index] = status_pb2.Status(code=code_pb2.NOT_FOUND, message="Requested entity was not found.")
        metadata = tasks_v2.BatchDeleteTasksMetadata(failed_requests=failed)
        return _operation(metadata, empty_pb2.Empty(), none_of_them=len(failed) == len(request.names))

    def _purge(self, request: Any) -> Any:
        queue = self._queue(request.name)
        self._tasks = {name: held for name, held in self._tasks.items() if held.queue != queue}
        return tasks_v2.Queue(name=request.name)

    def _get_queue(self, request: Any) -> Any:
        queue = self._queue(request.name)
        held = [each for each in self._tasks.values() if each.queue == queue]
        stats = tasks_v2beta3.QueueStats(tasks_count=len(held))
        return tasks_v2beta3.Queue(name=request.name, stats=stats)

    def _queue(self, path: str) -> str:
        parent, _, queue = path.rpartition("/queues/")
        if parent != self._parent:
            raise _RefusedError(grpc.StatusCode.PERMISSION_DENIED, f"There is no project or location {parent}.")
        if queue not in self._queues:
            raise _RefusedError(grpc.StatusCode.NOT_FOUND, "Queue does not exist. If you just created the queue, wait.")
        return queue

    # Dispatches.

    def _dispatch_all(self) -> None:
        while True:
            with self._changed:
                now = time.time()
                ready = self.app_port or self.hosts
                due = [held for held in self._tasks.values() if held.due <= now] if ready else []
                if self._closed:
                    return
                if not due:
                    waiting = [held.due - now for held in self._tasks.values()] if ready else []
                    self._changed.wait(max(0.0, min(waiting, default=60.0)))
                    continue
                held = min(due, key=lambda each: each.due)
                held.due = float("inf")  # during the dispatch
            status = self._dispatch(held)
            with self._changed:
                held.dispatches += 1
                held.responses += not (held.task.http_request.url and status in (500, 503))
                held.previous_response = status
                if 200 <= status < 300 or self._is_over(held):
                    self._tasks.pop(held.task.name, None)
                else:
                    held.due = time.time() + _backoff_seconds(held)

    def _dispatch(self, held: Held) -> int:
        if held.task.http_request.url:
            return self._dispatch_to_url(held)
        request = held.task.app_engine_http_request
        held.first_dispatch = held.first_dispatch or time.time()
        routing = request.app_engine_routing
        host = "-dot-".join(part for part in (routing.version, routing.service, "engines.ew.r.appspot.com") if part)
        headers = {
            "User-Agent": "AppEngine-Google; (+http://code.google.com/appengine)",
            "Content-Type": "application/octet-stream",
            **dict(request.headers),
            "Host": host,
            "X-AppEngine-QueueName": held.queue,
            "X-AppEngine-TaskName": held.task.name.rpartition("/")[2],
            "X-AppEngine-TaskRetryCount": str(held.dispatches),
            "X-AppEngine-TaskExecutionCount": str(held.responses),
            "X-AppEngine-TaskETA": f"{held.task.schedule_time.timestamp() if held.task.schedule_time else 0:.6f}",
            "X-AppEngine-User-IP": "0.1.0.2",
            **self.extra_headers,
        }
        if held.previous_response is not None:
            headers["X-AppEngine-TaskPreviousResponse"] = str(held.previous_response)
        assert self.app_port is not None
        return _sent(f"127.0.0.1:{self.app_port}", request, request.relative_uri, headers)

    def _dispatch_to_url(self, held: Held) -> int:
        request = held.task.http_request
        held.first_dispatch = held.first_dispatch or time.time()
        parts = urllib.parse.urlsplit(request.url)
        headers = {
            "User-Agent": "Google-Cloud-Tasks",
            **dict(request.headers),
            "Host": parts.netloc,
            "X-CloudTasks-QueueName": held.queue,
            "X-CloudTasks-TaskName": held.task.name.rpartition("/")[2],
            "X-CloudTasks-TaskRetryCount": str(held.dispatches),
            "X-CloudTasks-TaskExecutionCount": str(held.responses),
            "X-CloudTasks-TaskETA": f"{held.task.schedule_time.timestamp() if held.task.schedule_time else 0:.6f}",
        }
        if held.previous_response is not None:
            headers["X-CloudTasks-TaskPreviousResponse"] = str(held.previous_response)
        token = request.oidc_token
        if self.token_for is not None and token.service_account_email:
            headers["Authorization"] = f"Bearer {self.token_for(token.service_account_email, token.audience)}"
        return _sent(self.hosts[f"{parts.scheme}://{parts.netloc}"], request, parts.path, headers)

    def _is_over(self, held: Held) -> bool:
        retry = held.task.retry_config
        age = time.time() - (held.first_dispatch or 0)
        attempts_over: bool = 0 < retry.max_attempts <= held.dispatches
        too_old: bool = not retry.max_retry_duration or age > retry.max_retry_duration.total_seconds()
        return attempts_over and too_old


def _names_in(request: Any) -> list[str]:
    """Return the names of the tasks that a call creates, without their queue."""
    requests = request.requests if isinstance(request, tasks_v2.BatchCreateTasksRequest) else [request]
    return [each.task.name.rpartition("/")[2] for each in requests]


def _sent(address: str, request: Any, path: str, headers: dict[str, str]) -> int:
    """Send the request of a task, and return the status of the response."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(tasks_v2.HttpMethod(request.http_method).name, path, bytes(request.body), headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 500
    finally:
        connection.close()


def _backoff_seconds(held: Held) -> float:
    least = held.task.retry_config.min_backoff
    return min(3600.0, (least.total_seconds() if least else 0.1) * 2.0 ** min(held.dispatches - 1, 16))


def _status(error: _RefusedError) -> Any:
    return status_pb2.Status(code=error.code.value[0], message=str(error))


def _operation(metadata: Any, response: Any, *, none_of_them: bool) -> Any:
    operation = operations_pb2.Operation(name="done", done=True)
    operation.metadata.Pack(type(metadata).pb(metadata))
    if none_of_them:
        operation.error.CopyFrom(status_pb2.Status(code=code_pb2.ABORTED, message="None of the requests succeeded"))
    else:
        operation.response.Pack(type(response).pb(response) if hasattr(type(response), "pb") else response)
    return operation
