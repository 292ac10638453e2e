"""The taskqueue API's methods, on the task store.

:class:`TaskQueueService` is a stub as the SDK has them, so that the SDK's datastore stub can enqueue through it when a
transaction with tasks commits. It answers as the platform does, in codes of ``TaskQueueServiceError``; the SDK's client
turns them into the exceptions that its users know.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any

from google.appengine.api import api_base_pb2, apiproxy_stub, apiproxy_stub_map
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware import protocol
from deferred_middleware.errors import ServerError
from deferred_middleware.server.queueregistry import QueueRegistry
from deferred_middleware.server.records import AddResult, NewTask
from deferred_middleware.server.retry import RetryPolicy
from deferred_middleware.server.services import ServiceDirectory
from deferred_middleware.server.store import TaskStore

_log = logging.getLogger(__name__)

_Code = taskqueue_pb.TaskQueueServiceError
_MAX_REQUEST_BYTES = 32 << 20  # what the SDK's own stub takes (api/taskqueue/taskqueue_stub.py)
_MAX_ETA_USEC = protocol.MAX_ETA_DAYS * 24 * 3600 * 1_000_000
_URL_PATTERN = re.compile(r"/[!-~]*")
_HEADER_NAME_PATTERN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, "token"
_FORBIDDEN_IN_HEADER_VALUE = re.compile(r"[\r\n\0]")
_RESULT_CODES = {
    "added": _Code.OK,
    "exists": _Code.TASK_ALREADY_EXISTS,
    "tombstoned": _Code.TOMBSTONED_TASK,
}


class _RefusedError(Exception):
    """One task of an add can't be taken. ``code`` is a ``TaskQueueServiceError``."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(_Code.ErrorCode.Name(code))


class TaskQueueService(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
    """Answers the taskqueue API from ``store``, calling ``scheduler_wakeup`` when tasks were added.

    ``directory`` tells which service a task's ``Host`` header means; ``clock`` returns seconds since the epoch.
    """

    THREADSAFE = True

    def __init__(
        self,
        store: TaskStore,
        scheduler_wakeup: Callable[[], None],
        *,
        directory: ServiceDirectory,
        queues: QueueRegistry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__("taskqueue", max_request_size=_MAX_REQUEST_BYTES)
        self._store = store
        self._wake_scheduler = scheduler_wakeup
        self._directory = directory
        self._queues = QueueRegistry() if queues is None else queues
        self._clock = clock

    def _Dynamic_BulkAdd(self, request: Any, response: Any) -> None:
        self._add(request, response, transient=True)

    def _Dynamic_Add(self, request: Any, response: Any) -> None:
        bulk_request = taskqueue_pb.TaskQueueBulkAddRequest()
        bulk_request.add_request.add().CopyFrom(request)
        bulk_response = taskqueue_pb.TaskQueueBulkAddResponse()
        # The datastore stub drops the task, with a warning, when it gets an ApplicationError at commit. Of a store that
        # fails the committing app has to hear.
        self._add(bulk_request, bulk_response, transient=False)
        (result,) = bulk_response.taskresult
        if result.result != _Code.OK:
            raise apiproxy_errors.ApplicationError(
                result.result, f"task {_text(request.task_name)!r} of queue {_text(request.queue_name)!r}"
            )
        # At commit the response is a VoidProto, which has no fields.
        if result.HasField("chosen_task_name") and hasattr(response, "chosen_task_name"):
            response.chosen_task_name = result.chosen_task_name

    def _Dynamic_Delete(self, request: Any, response: Any) -> None:
        queue = _text(request.queue_name)
        if queue not in self._queues:
            response.result.extend([_Code.UNKNOWN_QUEUE] * len(request.task_name))
            return
        found = self._stored(lambda: self._store.delete(queue, [_text(name) for name in request.task_name]))
        for result in found:
            if result is None:
                response.result.append(_Code.UNKNOWN_TASK)
            else:
                response.result.append(_Code.OK if result.outcome == "exists" else _Code.TOMBSTONED_TASK)

    def _Dynamic_PurgeQueue(self, request: Any, response: Any) -> None:
        queue = self._known_queue(request.queue_name)
        self._stored(lambda: self._store.purge(queue))

    def _add(self, request: Any, response: Any, *, transient: bool) -> None:
        adds = request.add_request
        self._check_whole(adds)
        refusals: dict[int, int] = {}
        tasks: dict[int, NewTask] = {}
        names: set[tuple[str, str]] = set()
        repeated: set[int] = set()
        for index, add in enumerate(adds):
            try:
                task = self._new_task(add)
            except _RefusedError as refused:
                refusals[index] = refused.code
                continue
            if task.name is not None:
                if (task.queue, task.name) in names:
                    repeated.add(index)
                    continue
                names.add((task.queue, task.name))
            tasks[index] = task
        if refusals:
            # As on the platform: one task that can't be taken keeps out the others.
            for index in range(len(adds)):
                response.taskresult.add().result = refusals.get(index, _Code.SKIPPED)
            return

        results: Mapping[int, AddResult]
        if any(_is_transactional(add) for add in adds):
            results = self._add_at_commit(request, tasks)
        else:
            stored = self._stored(lambda: self._store.add(list(tasks.values())), transient=transient)
            results = dict(zip(tasks, stored, strict=True))
            if any(result.outcome == "added" for result in stored):
                self._wake_scheduler()
        for index in range(len(adds)):
            task_result = response.taskresult.add()
            if index in repeated:
                task_result.result = _Code.DUPLICATE_TASK_NAME
                continue
            task_result.result = _RESULT_CODES[results[index].outcome]
            if tasks[index].name is None:
                task_result.chosen_task_name = results[index].name.encode()

    def _add_at_commit(self, request: Any, tasks: Mapping[int, NewTask]) -> dict[int, AddResult]:
        """Hand the tasks to the datastore, which adds them when their transaction commits."""
        results = {}
        for index in tasks:
            # Chosen now, because the client is told now.
            name = self._store.choose_name()
            request.add_request[index].task_name = name.encode()
            results[index] = AddResult(name=name, outcome="added")
        try:
            apiproxy_stub_map.MakeSyncCall("datastore_v3", "AddActions", request, api_base_pb2.VoidProto())
        except apiproxy_errors.ApplicationError as error:
            raise apiproxy_errors.ApplicationError(
                error.application_error + _Code.DATASTORE_ERROR, error.error_detail
            ) from error
        return results

    def _check_whole(self, adds: Any) -> None:
        """Raise what fails a whole request."""
        if not adds:
            raise apiproxy_errors.ApplicationError(_Code.INVALID_REQUEST, "no tasks were given")
        if len(adds) > protocol.MAX_TASKS_PER_ADD:
            raise apiproxy_errors.ApplicationError(
                _Code.TOO_MANY_TASKS, f"{len(adds)} tasks, and one add takes {protocol.MAX_TASKS_PER_ADD}"
            )
        if len({_is_transactional(add) for add in adds}) > 1:
            raise apiproxy_errors.ApplicationError(
                _Code.INVALID_REQUEST, "some of the tasks belong to a transaction and some don't"
            )
        for add in adds:
            queue = self._known_queue(add.queue_name)
            if add.mode != taskqueue_pb.TaskQueueMode.PUSH:
                raise apiproxy_errors.ApplicationError(_Code.INVALID_QUEUE_MODE, f"{queue!r} is a push queue")

    def _known_queue(self, name: bytes) -> str:
        queue = _text(name)
        if queue not in self._queues:
            raise apiproxy_errors.ApplicationError(
                _Code.UNKNOWN_QUEUE, f"there is no queue {queue!r}; there are: {', '.join(sorted(self._queues))}"
            )
        return queue

    def _new_task(self, add: Any) -> NewTask:
        """Return the task that an add asks for, or raise :class:`_RefusedError`."""
        name = _text(add.task_name) or None
        if name is not None and (not protocol.TASK_NAME_PATTERN.fullmatch(name) or _is_transactional(add)):
            raise _RefusedError(_Code.INVALID_TASK_NAME)
        url = add.url.decode("latin-1")
        if not _URL_PATTERN.fullmatch(url) or len(url) > protocol.MAX_URL_LENGTH:
            raise _RefusedError(_Code.INVALID_URL)
        now_usec = int(self._clock() * 1e6)
        if not 0 <= add.eta_usec <= now_usec + _MAX_ETA_USEC:
            raise _RefusedError(_Code.INVALID_ETA)
        method = taskqueue_pb.TaskQueueAddRequest.RequestMethod.Name(add.method)
        headers = tuple((h.key.decode("latin-1"), h.value.decode("latin-1")) for h in add.header)
        size = len(method) + len(url) + len(add.body) + sum(len(key) + len(value) for key, value in headers)
        if size > protocol.MAX_PUSH_TASK_BYTES:
            raise _RefusedError(_Code.TASK_TOO_LARGE)
        for key, value in headers:
            if not _HEADER_NAME_PATTERN.fullmatch(key) or _FORBIDDEN_IN_HEADER_VALUE.search(value):
                raise _RefusedError(_Code.INVALID_REQUEST)
        host = next((value for key, value in headers if key.lower() == "host"), None)
        return NewTask(
            queue=_text(add.queue_name),
            name=name,
            eta_usec=add.eta_usec or now_usec,
            method=method,
            url=url,
            target=self._directory.target(host) or "",
            headers=tuple((key, value) for key, value in headers if key.lower() != "host"),
            body=add.body,
            retry=_retry_policy(add.retry_parameters) if add.HasField("retry_parameters") else None,
            dispatch_deadline_usec=_dispatch_deadline_usec(add),
        )

    def _stored(self, operation: Callable[[], Any], *, transient: bool = True) -> Any:
        """Run an operation of the store; when the store fails, answer so that the client sees an error it may retry."""
        try:
            return operation()
        except (sqlite3.Error, ServerError) as error:
            _log.exception("The task store failed.")
            message = f"the task store failed: {error}"
            if transient:
                raise apiproxy_errors.ApplicationError(_Code.TRANSIENT_ERROR, message) from error
            raise apiproxy_errors.RPCFailedError(message) from error


def _text(value: bytes) -> str:
    # What isn't ASCII is no legal name, and is refused as such further on.
    return value.decode("ascii", "backslashreplace")


def _is_transactional(add: Any) -> bool:
    return bool(add.HasField("transaction") or add.HasField("datastore_transaction"))


def _retry_policy(parameters: Any) -> RetryPolicy:
    """Return the policy of a task that brings its own; what that leaves out is the platform's default."""
    try:
        return RetryPolicy(
            retry_limit=parameters.retry_limit if parameters.HasField("retry_limit") else None,
            age_limit_seconds=parameters.age_limit_sec if parameters.HasField("age_limit_sec") else None,
            min_backoff_seconds=parameters.min_backoff_sec,
            max_backoff_seconds=parameters.max_backoff_sec,
            max_doublings=parameters.max_doublings,
        )
    except ValueError as error:
        raise _RefusedError(_Code.INVALID_RETRY_PARAMETERS) from error


def _dispatch_deadline_usec(add: Any) -> int | None:
    if not add.HasField("dispatch_deadline_usec"):
        return None
    deadline: int = add.dispatch_deadline_usec
    if not (
        protocol.MIN_DISPATCH_DEADLINE_SECONDS * 1_000_000
        <= deadline
        <= protocol.MAX_DISPATCH_DEADLINE_SECONDS * 1_000_000
    ):
        raise _RefusedError(_Code.INVALID_DISPATCH_DEADLINE)
    return deadline
