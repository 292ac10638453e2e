"""What all methods of the taskqueue API share: the store, the queues, and how errors are told.

What a task of an add must be like, and what it becomes in the store.

Limits and codes are the platform's, as the SDK's ``google/appengine/api/taskqueue/taskqueue.py`` and
``taskqueue_stub.py`` have them.

Tasks and retry policies as the messages of the taskqueue API have them.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Callable
from typing import Any, TypeVar

from google.appengine.api import apiproxy_stub
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.store.disk_reserve import StoreFullError
from deferred_middleware.server.store.records import PULL, AttemptRecord, NewTask, RetryPolicy, StoredTask
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.wire import protocol

_log = logging.getLogger(__name__)

T = TypeVar("T")

Code = taskqueue_pb.TaskQueueServiceError
PULL_MODE = taskqueue_pb.TaskQueueMode.PULL

_MAX_REQUEST_BYTES = 32 << 20  # what the SDK's own stub takes (api/taskqueue/taskqueue_stub.py)


class ServiceCore(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
    """The taskqueue API without its methods.

    ``scheduler_wakeup`` is called when there may be something to run. ``directory`` tells which service a task's
    ``Host`` header means; ``clock`` returns seconds since the epoch.
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

    def _now_usec(self) -> int:
        return int(self._clock() * 1e6)

    def _queue(self, raw_name: bytes) -> QueueConfig:
        """Return a queue. Raises ``UNKNOWN_QUEUE`` when there is none of this name."""
        name = text(raw_name)
        queue = self._queues.get(name)
        if queue is None:
            raise application_error(
                Code.UNKNOWN_QUEUE, f"there is no queue {name!r}; there are: {', '.join(sorted(self._queues))}"
            )
        return queue

    def _pull_queue(self, raw_name: bytes) -> QueueConfig:
        """Return a queue that tasks are leased from. Raises ``INVALID_QUEUE_MODE`` for another one."""
        queue = self._queue(raw_name)
        self._check_mode(queue, pull=True)
        return queue

    def _check_mode(self, queue: QueueConfig, *, pull: bool) -> None:
        if is_pull(queue) != pull:
            mode = "pull" if is_pull(queue) else "push"
            raise application_error(Code.INVALID_QUEUE_MODE, f"{queue.name!r} is a {mode} queue")

    def _stored(self, operation: Callable[[], T]) -> T:
        """Run an operation of the store; when the store fails, answer so that the client sees an error it may retry."""
        try:
            return operation()
        except StoreFullError as error:
            # Said once already, and not by every add.
            raise application_error(Code.TRANSIENT_ERROR, f"the task store failed: {error}") from error
        except (sqlite3.Error, ServerError) as error:
            _log.exception("The task store failed.")
            raise application_error(Code.TRANSIENT_ERROR, f"the task store failed: {error}") from error


def text(value: bytes) -> str:
    """Return a name as text; what isn't ASCII is no legal name, and is refused as such further on."""
    return value.decode("ascii", "backslashreplace")


def is_pull(queue: QueueConfig) -> bool:
    """Tell whether a queue's tasks are leased, not delivered."""
    return queue.mode == "pull"


def application_error(code: int, detail: str) -> Exception:
    """Return the error that the SDK's client turns into one of its own by ``code``."""
    error: Exception = apiproxy_errors.ApplicationError(code, detail)
    return error


_MAX_ETA_USEC = protocol.MAX_ETA_DAYS * 24 * 3600 * 1_000_000
_URL_PATTERN = re.compile(r"/[!-~]*")
_HEADER_NAME_PATTERN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, "token"
_FORBIDDEN_IN_HEADER_VALUE = re.compile(r"[\r\n\0]")


class RefusedError(Exception):
    """One task of an add can't be taken. ``code`` is a ``TaskQueueServiceError``."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(Code.ErrorCode.Name(code))


def is_transactional(add: Any) -> bool:
    """Tell whether a task belongs to a transaction that has not been committed yet."""
    return bool(add.HasField("transaction") or add.HasField("datastore_transaction"))


def new_task(add: Any, *, now_usec: int, directory: ServiceDirectory) -> NewTask:
    """Return the task that an add asks for, or raise :class:`RefusedError`."""
    name = text(add.task_name) or None
    if name is not None and (not protocol.TASK_NAME_PATTERN.fullmatch(name) or is_transactional(add)):
        raise RefusedError(Code.INVALID_TASK_NAME)
    if not 0 <= add.eta_usec <= now_usec + _MAX_ETA_USEC:
        raise RefusedError(Code.INVALID_ETA)
    retry = _retry_policy(add.retry_parameters) if add.HasField("retry_parameters") else None
    eta_usec = add.eta_usec or now_usec
    queue = text(add.queue_name)
    if add.mode == PULL_MODE:
        return _pull_task(add, queue=queue, name=name, eta_usec=eta_usec, retry=retry)
    if add.HasField("tag"):
        # As the SDK's client says it: tags are for pull queues.
        raise RefusedError(Code.INVALID_TAG)
    url = add.url.decode("latin-1")
    if not _URL_PATTERN.fullmatch(url) or len(url) > protocol.MAX_URL_LENGTH:
        raise RefusedError(Code.INVALID_URL)
    method = taskqueue_pb.TaskQueueAddRequest.RequestMethod.Name(add.method)
    headers = tuple((h.key.decode("latin-1"), h.value.decode("latin-1")) for h in add.header)
    size = len(method) + len(url) + len(add.body) + sum(len(key) + len(value) for key, value in headers)
    if size > protocol.MAX_PUSH_TASK_BYTES:
        raise RefusedError(Code.TASK_TOO_LARGE)
    for key, value in headers:
        if not _HEADER_NAME_PATTERN.fullmatch(key) or _FORBIDDEN_IN_HEADER_VALUE.search(value):
            raise RefusedError(Code.INVALID_REQUEST)
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
            raise RefusedError(Code.INVALID_TAG) from error
        if not 0 < len(add.tag) <= protocol.MAX_TAG_LENGTH:
            raise RefusedError(Code.INVALID_TAG)
    # What the SDK's client measures (taskqueue.py: Task.size and __init__).
    if len(add.body) + len(add.tag) > protocol.MAX_PULL_TASK_BYTES:
        raise RefusedError(Code.TASK_TOO_LARGE)
    return NewTask(queue=queue, name=name, eta_usec=eta_usec, method=PULL, url="", body=add.body, retry=retry, tag=tag)


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
        raise RefusedError(Code.INVALID_RETRY_PARAMETERS) from error


def _dispatch_deadline_usec(add: Any) -> int | None:
    if not add.HasField("dispatch_deadline_usec"):
        return None
    deadline: int = add.dispatch_deadline_usec
    if not (
        protocol.MIN_DISPATCH_DEADLINE_SECONDS * 1_000_000
        <= deadline
        <= protocol.MAX_DISPATCH_DEADLINE_SECONDS * 1_000_000
    ):
        raise RefusedError(Code.INVALID_DISPATCH_DEADLINE)
    return deadline


def fill(message: Any, task: StoredTask, last_attempt: AttemptRecord | None) -> None:
    """Fill a ``TaskQueueQueryTasksResponse.Task``; ``last_attempt`` is None before the first one has ended."""
    message.task_name = task.name.encode()
    message.eta_usec = task.eta_usec
    message.creation_time_usec = task.created_usec
    message.retry_count = task.retry_count
    message.execution_count = task.execution_count
    message.body = task.body
    message.body_size = len(task.body)
    if task.method != PULL:
        message.method = taskqueue_pb.TaskQueueQueryTasksResponse.Task.RequestMethod.Value(task.method)
        message.url = task.url.encode("latin-1")
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
