"""What a task of an add must be like, and what it becomes in the store.

Limits and codes are the platform's, as the SDK's ``google/appengine/api/taskqueue/taskqueue.py`` and
``taskqueue_stub.py`` have them.
"""

from __future__ import annotations

import re
from typing import Any

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb

from deferred_middleware.server.api.servicecore import PULL_MODE, Code, text
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.store.records import PULL, NewTask
from deferred_middleware.server.store.retry import RetryPolicy
from deferred_middleware.wire import protocol

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
