"""The message ``Task`` of the API: from a client's task to the store's, and back.

What the service checks, fills in and shows: the reference
(https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#task), and what was recorded, by the letters of
:mod:`~deferred_middleware.server.cloud_tasks.call_errors`.
"""

from __future__ import annotations

import datetime
import ipaddress
import math
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final

from google.cloud import tasks_v2

from deferred_middleware.server.cloud_tasks import call_errors
from deferred_middleware.server.cloud_tasks.call_errors import RpcCode, invalid
from deferred_middleware.server.cloud_tasks.calls.queue_messages import (
    check_duration,
    check_retry,
    check_routing,
    fill_retry,
    fill_retry_defaults,
    fill_routing,
    policy_of,
    seconds_of,
    target_of,
)
from deferred_middleware.server.cloud_tasks.names import QueuePath, parse_task_name
from deferred_middleware.server.cloud_tasks.queues import FoundQueue
from deferred_middleware.server.delivery.url_attempt import USER_AGENT, encoded_url
from deferred_middleware.server.store.records import (
    HTTP_TARGET,
    AttemptRecord,
    CloudOrigin,
    Headers,
    NewTask,
    StoredTask,
)
from deferred_middleware.wire import protocol

Task: Final[Any] = tasks_v2.Task.pb()
BASIC: Final = Task.View.Value("BASIC")
FULL: Final = Task.View.Value("FULL")

MAX_HTTP_TASK_BYTES: Final = 1 << 20
MAX_APP_ENGINE_TASK_BYTES: Final = 100 * 1024
"""The largest tasks (https://cloud.google.com/tasks/docs/quotas#limits). The service was seen to take up to 1 MB for
App Engine as well; here the documented limit holds, so that an app does not depend on more."""
MAX_AHEAD_SECONDS: Final = protocol.MAX_ETA_DAYS * 24 * 3600
DEADLINE_SECONDS: Final = {True: (15, 30 * 60, "30m"), False: (15, 24 * 3600 + 15, "24h15s")}
"""The bounds of the dispatch deadline of HTTP targets (True) and App Engine targets, [G] task/create/deadline-… ."""
MAX_HEADER_BYTES: Final = 80 * 1024

_METHOD: Final[Any] = tasks_v2.HttpMethod
_APP_ENGINE_BODY: Final = ("POST", "PUT")
_HTTP_BODY: Final = ("POST", "PUT", "PATCH")
# [D] AppEngineHttpRequest.headers, HttpRequest.headers: "can't be set or overridden", "ignored or replaced".
_DROPPED_PREFIXES: Final = ("x-google-", "x-appengine-")
_RPC_CODES: Final = {
    400: RpcCode.INVALID_ARGUMENT,
    401: RpcCode.UNAUTHENTICATED,
    403: RpcCode.PERMISSION_DENIED,
    404: RpcCode.NOT_FOUND,
    409: RpcCode.ABORTED,
    429: RpcCode.RESOURCE_EXHAUSTED,
    499: RpcCode.CANCELLED,
    501: RpcCode.UNIMPLEMENTED,
    503: RpcCode.UNAVAILABLE,
    504: RpcCode.DEADLINE_EXCEEDED,
}
_UNRESERVED_HOST_ENDINGS: Final = (".localhost", ".local", ".internal", ".test", ".example", ".invalid")


def new_task(task: Any, queue: FoundQueue, now_usec: int) -> NewTask:
    """Return the task that a client asks for. Raises :class:`~.call_errors.ApiCallError` if it is not legal."""
    task_id = None
    if task.name:
        path, task_id = parse_task_name(task.name)
        if path != queue.path:
            raise call_errors.not_in_queue(queue.path.name, path.name)
    kind = task.WhichOneof("message_type")
    if kind is None:
        # [I] GoogleCloudPlatform/python-docs-samples#2140 has it for v2beta3, where the field has another name.
        raise invalid("Task.message_type is not set.")
    is_http = kind == "http_request"
    eta_usec = _eta_usec(task, now_usec)
    deadline_usec = _deadline_usec(task, is_http)
    retry = None
    if task.HasField("retry_config"):
        check_retry(task.retry_config)
        fill_retry_defaults(task.retry_config)
        retry = policy_of(task.retry_config)
    fields = _http_fields(task.http_request) if is_http else _app_engine_fields(task.app_engine_http_request)
    return NewTask(
        queue=queue.name, name=task_id, eta_usec=eta_usec, dispatch_deadline_usec=deadline_usec, retry=retry, **fields
    )


def check_size(task: Any) -> None:
    """Check the size of a task as it is stored, with all that was filled in."""
    limit = MAX_HTTP_TASK_BYTES if task.HasField("http_request") else MAX_APP_ENGINE_TASK_BYTES
    if task.ByteSize() > limit:
        raise call_errors.too_large()


def task_message(task: StoredTask, path: QueuePath, host: str, view: int, attempts: list[AttemptRecord]) -> Any:
    """Return a task as the API shows it. ``host`` is where it goes, if it goes to a service."""
    shown = Task(name=path.task(task.name))
    shown.view = FULL if view == FULL else BASIC
    # [D] "will be truncated to the nearest second"
    shown.create_time.FromSeconds(task.created_usec // 1_000_000)
    shown.schedule_time.FromMicroseconds(task.eta_usec)
    shown.response_count = task.execution_count
    shown.dispatch_count = task.retry_count + (task.state == "running")
    if task.dispatch_deadline_usec is not None:
        shown.dispatch_deadline.FromMicroseconds(task.dispatch_deadline_usec)
    elif task.is_http:
        shown.dispatch_deadline.FromSeconds(protocol.DEFAULT_DISPATCH_DEADLINE_SECONDS)
    if task.retry is not None:
        fill_retry(shown.retry_config, task.retry)
    if task.first_attempt_usec is not None:
        # [D] "Only dispatch_time will be set."
        shown.first_attempt.dispatch_time.FromMicroseconds(task.first_attempt_usec)
    if attempts:
        _fill_attempt(shown.last_attempt, attempts[-1])
    if task.is_http:
        _fill_http_request(shown.http_request, task, with_body=view == FULL)
    else:
        _fill_app_engine_request(shown.app_engine_http_request, task, host, with_body=view == FULL)
    return shown


# From a client's task.


def _eta_usec(task: Any, now_usec: int) -> int:
    if not task.HasField("schedule_time"):
        return now_usec
    time = task.schedule_time
    if not 0 <= time.nanos <= 999_999_999:
        raise invalid("Task.scheduleTime is not a valid time.")
    if time.seconds > now_usec // 1_000_000 + MAX_AHEAD_SECONDS:
        try:
            moment = datetime.datetime.fromtimestamp(time.seconds, datetime.timezone.utc)
        except (OverflowError, ValueError, OSError):
            raise invalid("Task.scheduleTime is not a valid time.") from None
        raise call_errors.too_far_ahead(moment)
    # [D] "truncated to the nearest microsecond"; a time in the past is now.
    return max(now_usec, int(time.seconds) * 1_000_000 + int(time.nanos) // 1000)


def _deadline_usec(task: Any, is_http: bool) -> int | None:
    if not task.HasField("dispatch_deadline"):
        return None
    check_duration(task.dispatch_deadline, "Task.dispatchDeadline")
    seconds = seconds_of(task.dispatch_deadline)
    if not seconds and not is_http:
        return None  # [D] "0 indicates that the request has the default deadline"
    least, most, longest = DEADLINE_SECONDS[is_http]
    if not least <= seconds <= most:
        raise invalid(f"Task.dispatchDeadline must be between [15s, {longest}].")
    # [D] "truncated to the nearest millisecond"
    return math.floor(seconds * 1000) * 1000


def _http_fields(request: Any) -> dict[str, Any]:
    method = _method(request.http_method)
    url = request.url
    if not url:
        raise invalid("HttpRequest.url is required.")
    if not url.startswith(("http://", "https://")):
        raise invalid("HttpTarget.url must start with 'http://' or 'https://'.")
    if len(encoded_url(url)) > protocol.MAX_URL_LENGTH:
        raise invalid(f"HttpRequest.url must have at most {protocol.MAX_URL_LENGTH} characters.")
    _check_body(method, request.body, _HTTP_BODY)
    kind = request.WhichOneof("authorization_header")
    origin = CloudOrigin()
    if kind is not None:
        token = getattr(request, kind)
        if not token.service_account_email:
            raise invalid(f"HttpRequest.{kind.split('_')[0]}Token.serviceAccountEmail is required.")
        if not url.startswith("https://") and not _is_private(url):
            # [I] googleapis/nodejs-tasks#353. A machine of one's own needs no encryption.
            raise invalid(
                "HttpRequest.url must start with 'https://' for request with HttpRequest.authorization_header"
            )
        is_oidc = kind == "oidc_token"
        purpose = token.audience if is_oidc else token.scope
        origin = CloudOrigin(token="oidc" if is_oidc else "oauth", email=token.service_account_email, purpose=purpose)
    headers = _headers(request.headers)
    return {
        "target": HTTP_TARGET, "method": method, "url": url, "headers": headers, "body": request.body, "origin": origin
    }  # fmt: skip


def _app_engine_fields(request: Any) -> dict[str, Any]:
    method = _method(request.http_method)
    uri = request.relative_uri or "/"
    if not uri.startswith("/") or any(character.isspace() or not character.isprintable() for character in uri):
        raise invalid("AppEngineHttpRequest.relativeUri must begin with '/' and must be a valid HTTP relative URI.")
    if len(encoded_url(uri)) > protocol.MAX_URL_LENGTH:
        raise invalid(f"AppEngineHttpRequest.relativeUri must have at most {protocol.MAX_URL_LENGTH} characters.")
    _check_body(method, request.body, _APP_ENGINE_BODY)
    check_routing(request.app_engine_routing)
    headers = _headers(request.headers)
    if request.body and not any(name.lower() == "content-type" for name, _value in headers):
        headers = (*headers, ("Content-Type", protocol.CONTENT_TYPE))
    return {
        "target": target_of(request.app_engine_routing), "method": method, "url": encoded_url(uri), "headers": headers,
        "body": request.body, "origin": CloudOrigin(),
    }  # fmt: skip


def _method(number: int) -> str:
    if number not in _METHOD.__members__.values():
        raise invalid(f"{number} is not an HttpMethod.")
    return "POST" if not number else str(_METHOD(number).name)


def _check_body(method: str, body: bytes, allowed: tuple[str, ...]) -> None:
    if body and method not in allowed:
        # [D] "It is an error to set a body on a task with an incompatible HttpMethod."
        raise invalid(f"A request body is not allowed for the HTTP method {method}.")


def _headers(given: Mapping[str, str]) -> Headers:
    """Return headers as the store has them: a character for each byte."""
    headers = []
    size = 0
    for name, value in given.items():
        size += len(name) + len(value.encode())
        if not name or not name.isascii() or not _is_token(name) or any(character in value for character in "\r\n\0"):
            raise invalid(f"The header {name[:80]!r} is not valid.")
        folded = name.lower()
        if folded not in ("host", "content-length") and not folded.startswith(_DROPPED_PREFIXES):
            headers.append((name, value.strip().encode().decode("latin-1")))
    if size > MAX_HEADER_BYTES:
        raise invalid("The size of the headers must be less than 80KB.")
    return tuple(headers)


def _is_token(name: str) -> bool:
    return all(character.isalnum() or character in "!#$%&'*+-.^_`|~" for character in name)


def _is_private(url: str) -> bool:
    """Return whether a URL leads to a machine of one's own, or within a network of one's own."""
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_UNRESERVED_HOST_ENDINGS)
    return address.is_private or address.is_loopback


# To a client.


def _fill_attempt(shown: Any, attempt: AttemptRecord) -> None:
    scheduled = attempt.started_usec if attempt.scheduled_usec is None else attempt.scheduled_usec
    shown.schedule_time.FromMicroseconds(scheduled)
    shown.dispatch_time.FromMicroseconds(attempt.started_usec)
    shown.response_time.FromMicroseconds(attempt.started_usec + attempt.duration_usec)
    status = attempt.status
    if status is not None and 200 <= status < 300:
        return
    code = rpc_code_of(status)
    if status is None and (attempt.reason or "").startswith("cut off"):
        code = RpcCode.DEADLINE_EXCEEDED
    shown.response_status.code = code
    # [I] googleapis/nodejs-tasks#487: "INTERNAL(13): HTTP status code 502"
    shown.response_status.message = f"{code.name}({code.value}): HTTP status code {status or 0}"


def rpc_code_of(status: int | None) -> RpcCode:
    """Return the code for an HTTP status, as ``google/rpc/code.proto`` has it; None is no response."""
    if status is None:
        return RpcCode.UNAVAILABLE
    if status in _RPC_CODES:
        return _RPC_CODES[status]
    if 400 <= status < 500:
        return RpcCode.FAILED_PRECONDITION
    return RpcCode.INTERNAL if status >= 500 else RpcCode.UNKNOWN


def _fill_http_request(request: Any, task: StoredTask, *, with_body: bool) -> None:
    request.url = task.url
    request.http_method = _METHOD[task.method]
    _fill_headers(request.headers, task.headers)
    # [G] golden/happypath.json: the default is shown, also in the basic view.
    _set_header(request.headers, "User-Agent", USER_AGENT)
    if with_body:
        request.body = task.body
    origin = task.origin
    if origin is not None and origin.token == "oidc":
        request.oidc_token.service_account_email = origin.email
        request.oidc_token.audience = origin.purpose
    elif origin is not None and origin.token == "oauth":
        request.oauth_token.service_account_email = origin.email
        request.oauth_token.scope = origin.purpose


def _fill_app_engine_request(request: Any, task: StoredTask, host: str, *, with_body: bool) -> None:
    request.relative_uri = task.url
    request.http_method = _METHOD[task.method]
    fill_routing(request.app_engine_routing, task.target)
    request.app_engine_routing.host = host
    _fill_headers(request.headers, task.headers)
    own = [value for name, value in request.headers.items() if name.lower() == "user-agent"]
    _set_header(request.headers, "User-Agent", " ".join([*own, protocol.TASK_QUEUE_USER_AGENT]))
    if task.body:
        request.headers["Content-Length"] = str(len(task.body))
    if with_body:
        request.body = task.body


def _fill_headers(shown: Any, headers: Headers) -> None:
    for name, value in headers:
        shown[name] = value.encode("latin-1").decode("utf-8", "replace")


def _set_header(shown: Any, name: str, value: str) -> None:
    for other in [other for other in shown if other.lower() == name.lower()]:
        del shown[other]
    shown[name] = value
