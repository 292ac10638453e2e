"""The constants of the wire: header names, the URL prefix, and the platform's limits, each with its source.

Sources: [push] https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers ;
[quota] https://cloud.google.com/appengine/docs/standard/quotas#Task_Queue ;
[sdk] ``google/appengine/api/taskqueue/taskqueue.py`` in appengine-python-standard 3.1.0 ;
[ct] https://cloud.google.com/tasks/docs/creating-appengine-handlers .
"""

from __future__ import annotations

import re
from typing import Final

URL_PREFIX: Final = "/_cb/deferred"
"""The default path under which tasks are delivered; ``/<module>/<qualname>`` follows it."""

WARMUP_PATH: Final = "/_ah/warmup"
"""The path of the warm-up request that App Engine sends to a new instance
(https://cloud.google.com/appengine/docs/standard/configuring-warmup-requests)."""

CONTENT_TYPE: Final = "application/octet-stream"
"""The content type of a payload, as in the older library."""

# Headers that the platform sets on a push task's request [push].
QUEUE_NAME_HEADER: Final = "X-AppEngine-QueueName"
TASK_NAME_HEADER: Final = "X-AppEngine-TaskName"
RETRY_COUNT_HEADER: Final = "X-AppEngine-TaskRetryCount"
EXECUTION_COUNT_HEADER: Final = "X-AppEngine-TaskExecutionCount"
ETA_HEADER: Final = "X-AppEngine-TaskETA"
PREVIOUS_RESPONSE_HEADER: Final = "X-AppEngine-TaskPreviousResponse"
RETRY_REASON_HEADER: Final = "X-AppEngine-TaskRetryReason"
CURRENT_NAMESPACE_HEADER: Final = "X-AppEngine-Current-Namespace"
"""The namespace of an SDK's task [sdk: Task.__init__]; Cloud Tasks drops it."""
USER_IP_HEADER: Final = "X-Appengine-User-IP"

# The same headers of a task with an HTTP target (https://cloud.google.com/tasks/docs/creating-http-target-tasks).
CLOUD_TASKS_HEADER_PREFIX: Final = "X-CloudTasks-"
CLOUD_TASKS_QUEUE_NAME_HEADER: Final = "X-CloudTasks-QueueName"
CLOUD_TASKS_TASK_NAME_HEADER: Final = "X-CloudTasks-TaskName"
CLOUD_TASKS_RETRY_COUNT_HEADER: Final = "X-CloudTasks-TaskRetryCount"
CLOUD_TASKS_EXECUTION_COUNT_HEADER: Final = "X-CloudTasks-TaskExecutionCount"
"""The number of earlier attempts that got a response other than 500 and 503."""
CLOUD_TASKS_ETA_HEADER: Final = "X-CloudTasks-TaskETA"
CLOUD_TASKS_PREVIOUS_RESPONSE_HEADER: Final = "X-CloudTasks-TaskPreviousResponse"
CLOUD_TASKS_RETRY_REASON_HEADER: Final = "X-CloudTasks-TaskRetryReason"

SWEEP_LABEL: Final = "_sweep"
"""What follows the URL prefix in the path of the task that sweeps the outbox. No call has this label: it lacks a slash.
"""

# Headers that the platform sets on every request (SDK: runtime/middlewares.py, runtime/context/gae_headers.py).
API_TICKET_HEADER: Final = "X-Appengine-Api-Ticket"
DEFAULT_VERSION_HOSTNAME_HEADER: Final = "X-Appengine-Default-Version-Hostname"
REQUEST_LOG_ID_HEADER: Final = "X-Appengine-Request-Log-Id"
HTTPS_HEADER: Final = "X-Appengine-Https"

TRACE_HEADERS: Final = ("traceparent", "tracestate")
"""The request headers of the W3C's trace context; a task has those of the place where it was enqueued."""

# Our own headers.
OUR_HEADER_PREFIX: Final = "X-Deferred-"
SIGNATURE_HEADER: Final = "X-Deferred-Signature"
"""Request header: proves that the app enqueued the task, and covers the other headers of this kind
(:mod:`deferred_middleware.wire.signature`)."""
OUTCOME_HEADER: Final = "X-Deferred-Outcome"
"""Response header: the outcome of a task if the status does not show it, such as ``permanent-failure`` with 200."""
PERMANENT_FAILURE: Final = "permanent-failure"
ATTEMPTS_EXHAUSTED: Final = "attempts-exhausted"
"""Like :data:`PERMANENT_FAILURE`, if the function allows no more attempts."""
POSTPONED: Final = "postponed"
"""The task is done, and its call was enqueued again as another task."""
DEAD_LETTERS: Final = frozenset({PERMANENT_FAILURE, ATTEMPTS_EXHAUSTED})
"""The outcomes of tasks that did not succeed and are not retried."""
RETRY_LIMIT_HEADER: Final = "X-Deferred-Retry-Limit"
"""Request header: the task's own ``task_retry_limit``, which the platform does not pass on to the handler."""
NAMESPACE_HEADER: Final = "X-Deferred-Namespace"
"""Request header: the datastore namespace in which the call was deferred, :data:`DEFAULT_NAMESPACE` for the default."""
DEFAULT_NAMESPACE: Final = "(default)"
"""The value for the default namespace, whose name is empty; no namespace can have this name."""
MAX_ATTEMPTS_HEADER: Final = "X-Deferred-Max-Attempts"
"""Request header: the total number of attempts of the call, whatever the queue allows."""
EARLIER_ATTEMPTS_HEADER: Final = "X-Deferred-Earlier-Attempts"
"""Request header: the number of attempts of the call in the earlier tasks that this task follows."""
DEADLINE_HEADER: Final = "X-Deferred-Deadline"
"""Request header: the task's own dispatch deadline in seconds, which the platform does not pass on to the handler."""
RETRY_OPTIONS_HEADER: Final = "X-Deferred-Retry-Options"
"""Request header: the task's own retry options as a JSON object, for a task that follows this one."""
OWN_HEADERS_HEADER: Final = "X-Deferred-Own-Headers"
"""Request header: the names of the caller's own headers, separated by spaces, for a task that follows this one."""
ENQUEUED_HEADER: Final = "X-Deferred-Enqueued"
"""Request header: the time at which a task was enqueued whose caller chose its name. It distinguishes the task from
others with the same name."""
REDACTED_HEADER: Final = "X-Deferred-Redacted"
"""Request header: ``1`` on a task whose function redacts arguments. Its payload must not be logged, even by a version
that can't read it."""
SERVER_TOKEN_HEADER: Final = "X-Deferred-Server-Token"
"""Request header: proves to an app process that the local server's queue process sent the request, such as that of a
cron job; the app process removes it."""
LOGIN_PATH: Final = "/_ah/login"
"""The path of the local server's login page, as in dev_appserver."""

LOCAL_SERVER_ENVIRON_KEY: Final = "deferred_middleware.local_server"
"""The WSGI environ key that is true on requests from the local server's queue process."""
ADMIN_TOKEN_HEADER: Final = "X-Deferred-Admin-Token"
"""Request header: proves to the local server that a command or a page may read and change tasks."""

TASK_QUEUE_IP: Final = "0.1.0.2"
"""The value that the platform sets for the user's IP in the request of a task [push]."""
TASK_QUEUE_USER_AGENT: Final = "AppEngine-Google; (+http://code.google.com/appengine)"

OVERFLOW_MAGIC: Final = b"\xf0deferred-overflow-1\n"
"""The start of a body that refers to a payload in the datastore; a JSON object follows. No pickle starts with it."""

MAX_PUSH_TASK_BYTES: Final = 102_400
"""A push task's method, URL, headers and body together [sdk: MAX_PUSH_TASK_SIZE_BYTES]."""
MAX_PULL_TASK_BYTES: Final = 1 << 20  # [sdk: MAX_PULL_TASK_SIZE_BYTES]
MAX_TRANSACTIONAL_REQUEST_BYTES: Final = 1 << 20  # [sdk: MAX_TRANSACTIONAL_REQUEST_SIZE_BYTES]
MAX_TASKS_PER_ADD: Final = 100  # [sdk]
MAX_ADD_BYTES: Final = 3 << 20
"""The total size of the tasks in one add: below the 32 MB of an API call [quota], and the 4 MiB that a gRPC server
takes (https://grpc.github.io/grpc/core/group__grpc__arg__keys.html, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH)."""
MAX_TASKS_PER_TRANSACTION: Final = 5
"""Tasks added in one datastore transaction [quota], and [sdk: cloudtask_transactional.py]."""
MAX_TASKS_PER_LEASE: Final = 1000  # [sdk]
MAX_LEASE_SECONDS: Final = 7 * 24 * 3600  # [sdk]
MAX_TAG_LENGTH: Final = 500  # [sdk]
MAX_URL_LENGTH: Final = 2083  # [sdk]
MAX_ETA_DAYS: Final = 30  # [sdk: _MAX_COUNTDOWN_SECONDS] and [ct]
MIN_DISPATCH_DEADLINE_SECONDS: Final = 15  # [sdk]
MAX_DISPATCH_DEADLINE_SECONDS: Final = 24 * 3600  # [sdk]
DEFAULT_DISPATCH_DEADLINE_SECONDS: Final = 600
"""How long a handler may run with automatic scaling [push]."""

TASK_NAME_PATTERN: Final = re.compile(r"[a-zA-Z0-9_-]{1,500}")  # [sdk]; always used with fullmatch
QUEUE_NAME_PATTERN: Final = re.compile(r"[a-zA-Z0-9-]{1,100}")  # [sdk]; always used with fullmatch

# The retry parameters of a queue that sets none ([push], and the reference of queue.yaml).
DEFAULT_MIN_BACKOFF_SECONDS: Final = 0.1
DEFAULT_MAX_BACKOFF_SECONDS: Final = 3600.0
DEFAULT_MAX_DOUBLINGS: Final = 16

MAX_TASK_AGE_DAYS: Final = 31
"""How long a queue keeps a task [ct: https://cloud.google.com/tasks/docs/quotas]."""
TOMBSTONE_DAYS: Final = 9
"""How long a used task name stays blocked in a queue of queue.yaml [ct]."""


def environ_key(header: str) -> str:
    """Return the key of ``header`` in a WSGI ``environ`` (PEP 3333)."""
    return "HTTP_" + header.upper().replace("-", "_")


def is_loopback(host: str) -> bool:
    """Tell whether a host, as a URL has it, is certainly this machine, so that it needs no encryption."""
    if host.lower() == "localhost":
        return True
    import ipaddress  # here, because most processes that import this module do not need it

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


SECRET_ENVIRON_KEYS: Final = frozenset(
    environ_key(header)
    for header in (
        API_TICKET_HEADER,
        SIGNATURE_HEADER,
        SERVER_TOKEN_HEADER,
        "Authorization",
        "Proxy-Authorization",
        "Cookie",
    )
)
"""The headers, as keys of a WSGI ``environ``, whose values must not be logged."""
