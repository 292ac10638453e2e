"""What the request of a task is: its headers, as App Engine's task queue sends them, and the environment made of them.

Headers and rules: https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers .
"""

from __future__ import annotations

import functools
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from deferred_middleware.server.config.queues import queue_id
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.vouching import Voucher
from deferred_middleware.server.store.records import ClaimedTask, Headers, StoredTask
from deferred_middleware.wire import protocol

# Characters that a request's first line must not have, and a header's value.
_ILLEGAL_IN_URL: Final = re.compile(r"[^\x21-\x7e]")
_ILLEGAL_IN_HEADER: Final = re.compile(r"[\r\n\0]")
_LEGAL_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LEGAL_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]+")

# Headers that the app may not set, because they belong to the platform or to the connection.
_PLATFORM_PREFIX: Final = "x-appengine-"
_PASSED_ON: Final = frozenset({"x-appengine-current-namespace", "x-appengine-default-namespace"})
_REPLACED: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        protocol.SERVER_TOKEN_HEADER.lower(),
    }
)
# Only a proxy may send these headers, and there is none between the queue and an app process.
_OF_PROXIES: Final = frozenset(
    {"forwarded"} | {f"x-forwarded-{what}" for what in ("for", "host", "proto", "port", "by")}
)
_UNPREFIXED: Final = frozenset({"content-length", "content-type"})
_NOT_SEEN: Final = ""

_QUEUE_KEY: Final = protocol.environ_key(protocol.QUEUE_NAME_HEADER)
_NAME_KEY: Final = protocol.environ_key(protocol.TASK_NAME_HEADER)
_RETRIES_KEY: Final = protocol.environ_key(protocol.RETRY_COUNT_HEADER)
_EXECUTIONS_KEY: Final = protocol.environ_key(protocol.EXECUTION_COUNT_HEADER)
_ETA_KEY: Final = protocol.environ_key(protocol.ETA_HEADER)
_PREVIOUS_KEY: Final = protocol.environ_key(protocol.PREVIOUS_RESPONSE_HEADER)
_REASON_KEY: Final = protocol.environ_key(protocol.RETRY_REASON_HEADER)
_SIGNATURE_KEY: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)

_AGENT_KEY: Final = protocol.environ_key("User-Agent")

SAME_FOR_ALL: Final = {
    "SCRIPT_NAME": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_HOST": "127.0.0.1",
    "REMOTE_PORT": "0",
    _AGENT_KEY: protocol.TASK_QUEUE_USER_AGENT,
    protocol.environ_key(protocol.USER_IP_HEADER): protocol.TASK_QUEUE_IP,
}
"""The part of the environment that all deliveries to app processes have in common; no message carries it."""


class TaskRequests:
    """Makes the requests of tasks. If there is a ``voucher``, it signs tasks that were enqueued without a signature.

    Set the voucher before the first delivery.
    """

    def __init__(self, voucher: Voucher | None = None) -> None:
        self.voucher = voucher

    def moved(self, task: StoredTask, queue: str, service: str | None) -> Headers:
        """Return the headers of a task in another queue; see :meth:`Voucher.moved`."""
        return task.headers if self.voucher is None else self.voucher.moved(task, queue, service)

    def headers(self, task: ClaimedTask, service: Service, host: str) -> list[tuple[str, str]]:
        """Return the headers of a request over HTTP. Raises :class:`ValueError` if the task gives no valid request."""
        check(task)
        headers = request_headers(task, host)
        if self.voucher is not None and (signature := self.voucher.signature(task, service)) is not None:
            headers.append((protocol.SIGNATURE_HEADER, signature))
        return headers

    def environ(self, task: ClaimedTask, service: Service, host: str) -> dict[str, str]:
        """Return the environment of a delivery, without what is :data:`SAME_FOR_ALL`.

        Raises :class:`ValueError` if the task gives no valid request.
        """
        check(task)
        environ = request_environ(task, host)
        if self.voucher is not None and (signature := self.voucher.signature(task, service)) is not None:
            environ[_SIGNATURE_KEY] = signature
        return environ


def check(task: ClaimedTask) -> None:
    """Raise :class:`ValueError` if a task gives no valid request."""
    if _ILLEGAL_IN_URL.search(task.url):
        raise ValueError(f"the URL has a character that is not allowed in URLs: {task.url!r}")
    if not _LEGAL_METHOD.fullmatch(task.method):
        raise ValueError(f"not a method: {task.method!r}")
    for name, value in task.headers:
        if _ILLEGAL_IN_HEADER.search(value):
            raise ValueError(f"the header {name} has a line break in it")


def request_headers(task: ClaimedTask, host: str) -> list[tuple[str, str]]:
    """Return the headers of a task's next attempt, in which each character stands for one byte."""
    headers = [
        ("Host", host),
        ("User-Agent", _user_agent(task)),
        (protocol.USER_IP_HEADER, protocol.TASK_QUEUE_IP),
        (protocol.QUEUE_NAME_HEADER, queue_id(task.queue)),
        (protocol.TASK_NAME_HEADER, task.name),
        (protocol.RETRY_COUNT_HEADER, str(task.retry_count)),
        (protocol.EXECUTION_COUNT_HEADER, str(task.execution_count)),
        (protocol.ETA_HEADER, _eta(task)),
    ]
    if task.previous_response is not None:
        headers.append((protocol.PREVIOUS_RESPONSE_HEADER, str(task.previous_response)))
    if task.retry_reason is not None:
        headers.append((protocol.RETRY_REASON_HEADER, task.retry_reason))
    if task.body or task.method in ("POST", "PUT"):
        headers.append(("Content-Length", str(len(task.body))))
    has_type = False
    for name, value in task.headers:
        folded = _folded(name)
        if folded is not None:
            has_type = has_type or folded == "content-type"
            headers.append((name, value))
    if task.body and not has_type:
        headers.append(("Content-Type", protocol.CONTENT_TYPE))
    return headers


def request_environ(task: ClaimedTask, host: str) -> dict[str, str]:
    """Return what a WSGI server would make of the request with :func:`request_headers`, in plain types."""
    path, query = _split(task.url)
    environ = {
        "REQUEST_METHOD": task.method,
        "REQUEST_URI": task.url,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_HOST": host,
        _QUEUE_KEY: queue_id(task.queue),
        _NAME_KEY: task.name,
        _RETRIES_KEY: str(task.retry_count),
        _EXECUTIONS_KEY: str(task.execution_count),
        _ETA_KEY: _eta(task),
    }
    if task.origin is not None:
        environ[_AGENT_KEY] = _user_agent(task)
    if task.previous_response is not None:
        environ[_PREVIOUS_KEY] = str(task.previous_response)
    if task.retry_reason is not None:
        environ[_REASON_KEY] = task.retry_reason
    if task.body or task.method in ("POST", "PUT"):
        environ["CONTENT_LENGTH"] = str(len(task.body))
    for name, value in task.headers:
        key = _key(name)
        if key:
            value = value.strip(" \t")
            environ[key] = f"{environ[key]}, {value}" if key in environ else value
    if task.body and "CONTENT_TYPE" not in environ:
        environ["CONTENT_TYPE"] = protocol.CONTENT_TYPE
    return environ


def _user_agent(task: ClaimedTask) -> str:
    """Return the platform's user agent, after the one that a client of the Cloud Tasks API has chosen, if any.

    Source: https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#appenginehttprequest ("headers").
    """
    if task.origin is None:
        return protocol.TASK_QUEUE_USER_AGENT
    own = [value for name, value in task.headers if name.lower() == "user-agent"]
    return " ".join([*own, protocol.TASK_QUEUE_USER_AGENT])


def _eta(task: ClaimedTask) -> str:
    return f"{task.eta_usec // 1_000_000}.{task.eta_usec % 1_000_000:06d}"


@functools.lru_cache(maxsize=1024)
def _split(url: str) -> tuple[str, str]:
    """Return a URL's path, decoded as in WSGI, and its query."""
    path, _, query = url.partition("#")[0].partition("?")
    return "/" + unquote_to_bytes(path).decode("latin-1").lstrip("/"), query


@functools.lru_cache(maxsize=1024)
def _folded(name: str) -> str | None:
    """Return a header's name as servers normalize it, or None if the app may not send it.

    Raises :class:`ValueError` if it is no name.
    """
    if not _LEGAL_NAME.fullmatch(name):
        raise ValueError(f"not the name of a header: {name!r}")
    # Some servers treat an underscore as a hyphen, and so accept X_AppEngine_TaskName as the platform's header.
    folded = name.lower().replace("_", "-")
    if folded in _REPLACED or (folded.startswith(_PLATFORM_PREFIX) and folded not in _PASSED_ON):
        return None
    return folded


@functools.lru_cache(maxsize=1024)
def _key(name: str) -> str:
    """Return a header's key in the environment, or "" if the app must not see the header."""
    folded = _folded(name)
    if folded is None or "_" in name or folded in _OF_PROXIES:
        return _NOT_SEEN
    return name.upper().replace("-", "_") if folded in _UNPREFIXED else protocol.environ_key(name)
