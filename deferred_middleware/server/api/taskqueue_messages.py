"""Tasks and retry policies as the messages of the taskqueue API have them."""

from __future__ import annotations

from typing import Any

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb

from deferred_middleware.server.store.records import PULL, AttemptRecord, StoredTask
from deferred_middleware.server.store.retry import RetryPolicy


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
