"""The errors of the API: their codes, and the messages of the real service.

Where a message comes from is said in a comment by a letter:

[G] recorded from the service, in ``test/conformance/golden/errors.json`` of
    https://github.com/aertje/cloud-tasks-emulator (branch v2);
[I] seen by users, in the issue that is named;
[D] in the reference, https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2 ;
[O] our own words, because no record of the service's was found. The code is the one that the reference gives.
"""

from __future__ import annotations

import datetime
import enum
import zoneinfo
from typing import Final


class RpcCode(enum.IntEnum):
    """The codes of gRPC (https://grpc.io/docs/guides/status-codes/) that the API answers with."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


HTTP_STATUS: Final = {
    RpcCode.CANCELLED: 499,
    RpcCode.UNKNOWN: 500,
    RpcCode.INVALID_ARGUMENT: 400,
    RpcCode.DEADLINE_EXCEEDED: 504,
    RpcCode.NOT_FOUND: 404,
    RpcCode.ALREADY_EXISTS: 409,
    RpcCode.PERMISSION_DENIED: 403,
    RpcCode.RESOURCE_EXHAUSTED: 429,
    RpcCode.FAILED_PRECONDITION: 400,
    RpcCode.ABORTED: 409,
    RpcCode.UNIMPLEMENTED: 501,
    RpcCode.INTERNAL: 500,
    RpcCode.UNAVAILABLE: 503,
    RpcCode.UNAUTHENTICATED: 401,
}
"""https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto"""

_REFERENCE: Final = "https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues"
_PACIFIC: Final = "America/Los_Angeles"


class ApiCallError(Exception):
    """A call fails with ``code`` and ``message``. ``help_link`` is a description and a URL for people."""

    def __init__(self, code: RpcCode, message: str, help_link: tuple[str, str] | None = None) -> None:
        self.code = code
        self.message = message
        self.help_link = help_link
        super().__init__(message)


def invalid(message: str, help_link: tuple[str, str] | None = None) -> ApiCallError:
    """Return the error for a wrong argument."""
    return ApiCallError(RpcCode.INVALID_ARGUMENT, message, help_link)


# Names.


def malformed_resource() -> ApiCallError:
    """Return the error for a parent that names nothing. [I] googleapis/nodejs-tasks#394."""
    return invalid("Invalid resource field value in the request.")


def malformed_queue_name() -> ApiCallError:
    """[G] queue/create/invalid-name."""
    return invalid(
        'Queue name must be formatted: "projects/<PROJECT_ID>/locations/<LOCATION_ID>/queues/<QUEUE_ID>".',
        ("Definition of queue name", f"{_REFERENCE}#Queue.FIELDS.name"),
    )


def illegal_queue_id(queue_id: str) -> ApiCallError:
    """[I] googleapis/repo-automation-bots#459."""
    return invalid(
        f'Queue ID "{queue_id}" can contain only letters ([A-Za-z]), numbers ([0-9]), or hyphens (-). '
        "Queue ID must be between 1 and 100 characters."
    )


def malformed_task_name() -> ApiCallError:
    """[I] aertje/cloud-tasks-emulator#19, which gives the service's answer."""
    return invalid(
        'Task name must be formatted: "projects/<PROJECT_ID>/locations/<LOCATION_ID>/queues/<QUEUE_ID>/tasks/<TASK_ID>"'
    )


def illegal_task_id(task_id: str) -> ApiCallError:
    """[G] task/create/invalid-name."""
    return invalid(
        f'Task ID "{task_id}" can contain only letters ([A-Za-z]), numbers ([0-9]), hyphens (-), or underscores (_). '
        "Task ID must between 1 and 500 characters.",
        ("Definition of task ID", f"{_REFERENCE}.tasks#Task.FIELDS.name"),
    )


def illegal_location(location: str) -> ApiCallError:
    """[I] googleapis/nodejs-tasks#509."""
    return invalid(f"Location '{location}' is not a valid location. Use ListLocations to list valid locations.")


def not_in_parent(name: str, parent: str) -> ApiCallError:
    """Return the error for a new queue that is not in its parent. [I] aertje/cloud-tasks-emulator, branch v2."""
    return invalid(f"{name} must begin with {parent}.")


def not_in_queue(parent: str, queue: str) -> ApiCallError:
    """[G] task/create/queue-mismatch."""
    return invalid(
        f"The queue name from request ('{parent}') must be the same as the queue name in the named task ('{queue}')."
    )


# Queues and tasks that are or are not there.


def no_queue() -> ApiCallError:
    """[G] queue/get/not-found, task/create/queue-not-found and others; for a deleted queue too."""
    return ApiCallError(
        RpcCode.NOT_FOUND,
        "Queue does not exist. If you just created the queue, wait at least a minute for the queue to initialize.",
    )


def no_entity() -> ApiCallError:
    """[G] queue/delete/not-found, task/get/not-found, task/delete/not-found, task/run/not-found."""
    return ApiCallError(RpcCode.NOT_FOUND, "Requested entity was not found.")


def queue_exists() -> ApiCallError:
    """[G] queue/create/already-exists."""
    return ApiCallError(RpcCode.ALREADY_EXISTS, "Queue already exists")


def queue_was_deleted() -> ApiCallError:
    """[G] queue/create/recently-deleted."""
    return ApiCallError(
        RpcCode.FAILED_PRECONDITION,
        "The queue cannot be created because a queue with this name existed too recently.",
    )


def task_exists() -> ApiCallError:
    """[G] task/create/already-exists."""
    return ApiCallError(RpcCode.ALREADY_EXISTS, "Requested entity already exists")


def task_name_is_blocked() -> ApiCallError:
    """[I] stackkit/laravel-google-cloud-tasks-queue#104."""
    return ApiCallError(
        RpcCode.ALREADY_EXISTS,
        "The task cannot be created because a task with this name existed too recently. For more information about "
        f"task de-duplication see {_REFERENCE}.tasks/create#body.request_body.FIELDS.task.",
    )


def task_is_over() -> ApiCallError:
    """[G] task/get/recently-deleted."""
    return ApiCallError(
        RpcCode.NOT_FOUND,
        "The task no longer exists, though a task with this name existed recently. The task either successfully "
        "completed or was deleted.",
    )


# Times.


def too_far_ahead(scheduled: datetime.datetime) -> ApiCallError:
    """[G] task/create/schedule-too-far. The time is that of the service's home."""
    return invalid(
        f"The Task.scheduleTime, {pacific(scheduled)}, is too far in the future. "
        "Schedule time must be no more than 720h in the future."
    )


def deadline_too_late(deadline: datetime.datetime) -> ApiCallError:
    """[I] googleapis/google-cloud-go#1577, googleapis/google-cloud-ruby#3941."""
    return invalid(f"The request deadline is {pacific(deadline)}. The deadline cannot be more than 30s in the future.")


def pacific(moment: datetime.datetime) -> str:
    """Return a time in RFC 3339, in the time zone that the service uses in its messages."""
    try:
        zone: datetime.tzinfo = zoneinfo.ZoneInfo(_PACIFIC)
    except zoneinfo.ZoneInfoNotFoundError:  # a slim container has no time zones
        zone = datetime.timezone(datetime.timedelta(hours=-8))
    try:
        return moment.astimezone(zone).isoformat()
    except OverflowError:
        return moment.isoformat()


# Everything else.


def too_large() -> ApiCallError:
    """[I] googleapis/repo-automation-bots#893."""
    return invalid("Task size too large")


def internal() -> ApiCallError:
    """Return the error for a defect. [O], the words of other services of Google."""
    return ApiCallError(RpcCode.INTERNAL, "Internal error encountered.")


def unimplemented(what: str) -> ApiCallError:
    """[O]."""
    return ApiCallError(RpcCode.UNIMPLEMENTED, f"{what} is not implemented by this emulator.")
