"""The messages of the taskqueue API, and the records of the store that they become or are made from.

Limits and codes are the platform's, as in the SDK's ``google/appengine/api/taskqueue/taskqueue.py`` and
``taskqueue_stub.py``.
"""

from __future__ import annotations

import re
from typing import Any

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.store.records import PULL, AttemptRecord, NewTask, RetryPolicy, StoredTask
from deferred_middleware.wire import protocol

Code: Any = taskqueue_pb.TaskQueueServiceError
PULL_MODE: Any = taskqueue_pb.TaskQueueMode.PULL

_MAX_ETA_USEC = protocol.MAX_ETA_DAYS * 24 * 3600 * 1_000_000
_URL_PATTERN = re.compile(r"/[!-~]*")
_HEADER_NAME_PATTERN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, "token"
_FORBIDDEN_IN_HEADER_VALUE = re.compile(r"[\r\n\0]")


def text(value: bytes) -> str:
    """Return a name as text. Bytes that aren't ASCII become escapes, which later checks reject as illegal."""
    return value.decode("ascii", "backslashreplace")


def is_pull(queue: QueueConfig) -> bool:
    """Tell whether a queue's tasks are leased instead of delivered."""
    return queue.mode == "pull"


def application_error(code: int, detail: str) -> Exception:
    """Return the error that the SDK's client turns into the exception for ``code``."""
    error: Exception = apiproxy_errors.ApplicationError(code, detail)
    return error


class TaskRejectedError(Exception):
    """One task of an add is not legal. ``code`` is a ``TaskQueueServiceError``."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(Code.ErrorCode.Name(code))


def is_transactional(add: Any) -> bool:
    """Tell whether a task is added in a transaction, which is not committed yet."""
    return bool(add.HasField("transaction") or add.HasField("datastore_transaction"))


def new_task(add: Any, *, now_usec: int, directory: ServiceDirectory) -> NewTask:
    """Return the task that an add asks for. Raises :class:`TaskRejectedError` if the task is not legal."""
    name = text(add.task_name) or None
    if name is not None and (not protocol.TASK_NAME_PATTERN.fullmatch(name) or is_transactional(add)):
        raise TaskRejectedError(Code.INVALID_TASK_NAME)
    if not 0 <= add.eta_usec <= now_usec + _MAX_ETA_USEC:
        raise TaskRejectedError(Code.INVALID_ETA)
    retry = _retry_policy(add.retry_parameters) if add.HasField("retry_parameters") else None
    eta_usec = add.eta_usec or now_usec
    queue = text(add.queue_name)
    if add.mode == PULL_MODE:
        return _pull_task(add, queue=queue, name=name, eta_usec=eta_usec, retry=retry)
    if add.HasField("tag"):
        # Only tasks of pull queues have tags, as in the SDK's client.
        raise TaskRejectedError(Code.INVALID_TAG)
    url = add.url.decode("latin-1")
    if not _URL_PATTERN.fullmatch(url) or len(url) > protocol.MAX_URL_LENGTH:
        raise TaskRejectedError(Code.INVALID_URL)
    method = taskqueue_pb.TaskQueueAddRequest.RequestMethod.Name(add.method)
    headers = tuple((h.key.decode("latin-1"), h.value.decode("latin-1")) for h in add.header)
    size = len(method) + len(url) + len(add.body) + sum(len(key) + len(value) for key, value in headers)
    if size > protocol.MAX_PUSH_TASK_BYTES:
        raise TaskRejectedError(Code.TASK_TOO_LARGE)
    for key, value in headers:
        if not _HEADER_NAME_PATTERN.fullmatch(key) or _FORBIDDEN_IN_HEADER_VALUE.search(value):
            raise TaskRejectedError(Code.INVALID_REQUEST)
    host = next((value for key, value in headers if key.lower() == "host"), None)
    return NewTask(
        queue=queue,
        name=name,
        eta_usec=eta_usec,
        method=method,
        url=url,
        target=directory.target(host) or "",
        headers=tuple((key, value) for key, value in headers if key.lower() != "host"),
        body=add.body,
        retry=retry,
        dispatch_deadline_usec=_dispatch_deadline_usec(add),
    )


def _pull_task(add: Any, *, queue: str, name: str | None, eta_usec: int, retry: RetryPolicy | None) -> NewTask:
    tag: str | None = None
    if add.HasField("tag"):
        try:
            tag = add.tag.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TaskRejectedError(Code.INVALID_TAG) from error
        if not 0 < len(add.tag) <= protocol.MAX_TAG_LENGTH:
            raise TaskRejectedError(Code.INVALID_TAG)
    # The SDK's client measures the same (taskqueue.py: Task.size and __init__).
    if len(add.body) + len(add.tag) > protocol.MAX_PULL_TASK_BYTES:
        raise TaskRejectedError(Code.TASK_TOO_LARGE)
    return NewTask(queue=queue, name=name, eta_usec=eta_usec, method=PULL, url="", body=add.body, retry=retry, tag=tag)


def _retry_policy(parameters: Any) -> RetryPolicy:
    """Return a task's own policy. Parameters that the task does not set have the platform's defaults."""
    try:
        return RetryPolicy(
            retry_limit=parameters.retry_limit if parameters.HasField("retry_limit") else None,
            age_limit_seconds=parameters.age_limit_sec if parameters.HasField("age_limit_sec") else None,
            min_backoff_seconds=parameters.min_backoff_sec,
            max_backoff_seconds=parameters.max_backoff_sec,
            max_doublings=parameters.max_doublings,
        )
    except ValueError as error:
        raise TaskRejectedError(Code.INVALID_RETRY_PARAMETERS) from error


def _dispatch_deadline_usec(add: Any) -> int | None:
    if not add.HasField("dispatch_deadline_usec"):
        return None
    deadline: int = add.dispatch_deadline_usec
    if not (
        protocol.MIN_DISPATCH_DEADLINE_SECONDS * 1_000_000
        <= deadline
        <= protocol.MAX_DISPATCH_DEADLINE_SECONDS * 1_000_000
    ):
        raise TaskRejectedError(Code.INVALID_DISPATCH_DEADLINE)
    return deadline


_QUERIED_METHODS = frozenset(taskqueue_pb.TaskQueueQueryTasksResponse.Task.RequestMethod.keys())


def fill_task(message: Any, task: StoredTask, last_attempt: AttemptRecord | None) -> None:
    """Fill a ``TaskQueueQueryTasksResponse.Task``. ``last_attempt`` is None if no attempt has ended yet."""
    message.task_name = task.name.encode()
    message.eta_usec = task.eta_usec
    message.creation_time_usec = task.created_usec
    message.retry_count = task.retry_count
    message.execution_count = task.execution_count
    message.body = task.body
    message.body_size = len(task.body)
    if task.method != PULL:
        # A task of the Cloud Tasks API may have a method that this API does not know.
        if task.method in _QUERIED_METHODS:
            message.method = taskqueue_pb.TaskQueueQueryTasksResponse.Task.RequestMethod.Value(task.method)
        message.url = task.url.encode()
    for name, value in task.headers:
        message.header.add(key=name.encode("latin-1"), value=value.encode("latin-1"))
    if task.first_attempt_usec is not None:
        message.first_try_usec = task.first_attempt_usec
    if task.retry is not None:
        fill_retry(message.retry_parameters, task.retry)
    if task.tag is not None:
        message.tag = task.tag.encode()
    if task.dispatch_deadline_usec is not None:
        message.dispatch_deadline_usec = task.dispatch_deadline_usec
    if last_attempt is not None:
        message.runlog.dispatched_usec = last_attempt.started_usec
        message.runlog.lag_usec = max(0, last_attempt.started_usec - task.eta_usec)
        message.runlog.elapsed_usec = last_attempt.duration_usec
        if last_attempt.status is not None:
            message.runlog.response_code = last_attempt.status
        if last_attempt.reason is not None:
            message.runlog.retry_reason = last_attempt.reason


def fill_retry(message: Any, policy: RetryPolicy) -> None:
    """Fill a ``TaskQueueRetryParameters``."""
    if policy.retry_limit is not None:
        message.retry_limit = policy.retry_limit
    if policy.age_limit_seconds is not None:
        message.age_limit_sec = int(policy.age_limit_seconds)
    message.min_backoff_sec = policy.min_backoff_seconds
    message.max_backoff_sec = policy.max_backoff_seconds
    message.max_doublings = policy.max_doublings
