"""App Engine's taskqueue API as the engine. It uses the SDK's public wire messages.

A task becomes a ``TaskQueueAddRequest``. Up to 100 of them are sent through ``apiproxy`` as one ``BulkAdd``. The fields
are set as in the SDK's own ``Queue.add`` (SDK: ``api/taskqueue/taskqueue.py``); a test compares the two.

Importing this module imports the SDK.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from google.appengine.api import namespace_manager, taskqueue
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.engines import answers, current
from deferred_middleware.engines.engine import (
    AddFailure,
    FailedStart,
    StartedAdd,
    TaskMessage,
    TaskTemplate,
)
from deferred_middleware.engines.transactions import MONITOR
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.calls.options import Options

_OK: Final = taskqueue_pb.TaskQueueServiceError.OK
_DEFAULT_NAMESPACE_HEADER: Final = "X-AppEngine-Default-Namespace"
_HEADER_SEPARATORS_BYTES: Final = len(": \r\n")
_METHOD: Final = "POST"


class AppEngineEngine:
    """Adds tasks through the SDK's taskqueue API."""

    name = "app-engine"
    has_outbox = False
    max_task_bytes = protocol.MAX_PUSH_TASK_BYTES
    is_available: Final = staticmethod(current.has_api)
    context: Final = staticmethod(current.request_facts)

    def encode(self, template: TaskTemplate) -> TaskTemplate:
        """Return the template with the part of the API's message that the tasks share."""
        sent = dict(template.headers)
        if template.signed:
            sent[protocol.SIGNATURE_HEADER] = ""
        apps_namespace = namespace_manager.google_apps_namespace()
        if apps_namespace is not None:
            sent[_DEFAULT_NAMESPACE_HEADER] = apps_namespace
        sent[protocol.CURRENT_NAMESPACE_HEADER] = namespace_manager.get_namespace()
        host = current.own_host() if template.target is None else current.host_of(template.target)
        if host:
            sent["Host"] = host
        request = taskqueue_pb.TaskQueueAddRequest()
        request.mode = taskqueue_pb.TaskQueueMode.PUSH
        request.method = taskqueue_pb.TaskQueueQueryTasksResponse.Task.POST
        request.queue_name = template.queue.encode()
        request.url = template.path.encode()
        for name, value in sent.items():
            request.header.add(key=name.encode(), value=value.encode())
        if template.retry_options is not None:
            _fill_retry_parameters(request.retry_parameters, template.retry_options)
        if template.deadline_seconds is not None:
            request.dispatch_deadline_usec = round(template.deadline_seconds * 1e6)
        header_bytes = sum(len(name) + len(value) + _HEADER_SEPARATORS_BYTES for name, value in sent.items())
        signature_place = list(sent).index(protocol.SIGNATURE_HEADER) if template.signed else -1
        return dataclasses.replace(
            template,
            encoded=(request, signature_place),
            overhead_bytes=len(_METHOD) + len(template.path) + header_bytes,
        )

    def unsupported(self, _options: Options) -> Sequence[str]:
        """Return nothing: the API supports all options."""
        return ()

    def start(self, messages: Sequence[TaskMessage], timeout_seconds: float | None) -> StartedAdd:
        """Start a ``BulkAdd``."""
        request = taskqueue_pb.TaskQueueBulkAddRequest()
        for message in messages:
            _fill(request.add_request.add(), message)
        try:
            rpc = taskqueue.create_rpc(deadline=timeout_seconds)
            rpc.make_call("BulkAdd", request, taskqueue_pb.TaskQueueBulkAddResponse())
        except Exception as error:  # noqa: BLE001 - any error at the start is a failure of the tasks
            answer = answers.NO_THREAD if answers.lacks_thread(error) else answers.NOT_SENT
            return FailedStart(len(messages), AddFailure(error=error, answer=answer, of_whole_add=True))
        return _BulkAdd(rpc, messages)

    def add(self, messages: Sequence[TaskMessage], timeout_seconds: float | None) -> Sequence[str | AddFailure]:
        """Send a ``BulkAdd``, and wait for its answer."""
        return self.start(messages, timeout_seconds).results()

    def add_in_transaction(self, message: TaskMessage) -> None:
        """Add the task through the SDK, which adds it to the calling thread's transaction."""
        template = message.template
        headers = dict(template.headers)
        if message.signature is not None:
            headers[protocol.SIGNATURE_HEADER] = message.signature
        seconds = template.deadline_seconds
        task = taskqueue.Task(
            payload=message.body,
            method=_METHOD,
            url=template.path,
            headers=headers,
            eta=datetime.datetime.fromtimestamp(message.eta_posix, datetime.timezone.utc),
            target=template.target,
            retry_options=template.retry_options,
            dispatch_deadline_usec=None if seconds is None else round(seconds * 1e6),
        )
        with MONITOR.adding():
            task.add(template.queue, transactional=True)


class _BulkAdd:
    """A ``BulkAdd`` that was sent."""

    def __init__(self, rpc: Any, messages: Sequence[TaskMessage]) -> None:
        self._rpc = rpc
        self._messages = messages

    @property
    def future(self) -> Future[Any] | None:
        """The future of the RPC. None if a test's stub makes the RPC."""
        future: Future[Any] | None = self._rpc.future
        return future

    def results(self) -> Sequence[str | AddFailure]:
        """Wait for the answer, and read it."""
        count = len(self._messages)
        try:
            self._rpc.check_success()
        except apiproxy_errors.ApplicationError as error:
            return [_failure(error.application_error, error.error_detail, of_whole_add=True)] * count
        except Exception as error:  # noqa: BLE001 - the SDK raises transport errors of several kinds
            answer = answers.for_exception(error)
            return [AddFailure(error=error, answer=answer, of_whole_add=True)] * count
        results = self._rpc.response.taskresult
        if len(results) != count:
            problem = answers.sdk_error(f"the queue's answer makes no sense: {len(results)} results for {count} tasks")
            return [AddFailure(error=problem, answer=answers.EMPTY, of_whole_add=True)] * count
        return [
            (message.name or result.chosen_task_name.decode())
            if result.result == _OK
            else _failure(result.result, "", of_whole_add=False)
            for message, result in zip(self._messages, results, strict=True)
        ]


def _fill(request: Any, message: TaskMessage) -> None:
    """Fill in a ``TaskQueueAddRequest``."""
    shared, place = message.template.encoded
    request.CopyFrom(shared)
    request.task_name = message.name.encode() if message.name else b""
    request.eta_usec = round(message.eta_posix * 1e6)
    if message.body:
        request.body = message.body
    if message.signature is not None:
        request.header[place].value = message.signature.encode()


def _fill_retry_parameters(parameters: Any, options: taskqueue.TaskRetryOptions) -> None:
    for field, value in (
        ("min_backoff_sec", options.min_backoff_seconds),
        ("max_backoff_sec", options.max_backoff_seconds),
        ("retry_limit", options.task_retry_limit),
        ("age_limit_sec", options.task_age_limit),
        ("max_doublings", options.max_doublings),
    ):
        if value is not None:
            setattr(parameters, field, value)


def _failure(code: int, detail: str, *, of_whole_add: bool) -> AddFailure:
    answer = answers.BY_CODE.get(code, answers.UNKNOWN)
    return AddFailure(error=answers.exception_for_code(code, detail), answer=answer, of_whole_add=of_whole_add)
