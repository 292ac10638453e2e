"""One attempt to run a task: an HTTP request to the service, as App Engine's task queue sends it.

Headers and rules: https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers . In addition,
an attempt must end in time and must count exactly if the service got it. So a connection that the service closed while
it was idle is not used again.
"""

from __future__ import annotations

import dataclasses
import functools
import http.client
import math
import re
import select
import threading
import time
from dataclasses import dataclass
from typing import Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.server.config.queues import queue_id
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.connections import Response, ServiceConnection
from deferred_middleware.server.delivery.vouching import Voucher
from deferred_middleware.server.store.records import ClaimedTask
from deferred_middleware.wire import protocol

logger: Final = get_logger(__name__)

EXCERPT_BYTES = 4096
"""How much of a response's body is kept."""

# Servers close idle connections: waitress after 120 s, gunicorn after 2 s. Close ours long before that, so that no
# request is sent while the service closes the connection.
_IDLE_SECONDS = 30.0
_EXTERNAL_IDLE_SECONDS = 0.5
# How many times a response is read before the thread's other attempts continue.
_READS_IN_A_ROW = 16

_MAX_LOCATION_CHARACTERS = 500
# Characters that a request's first line must not have.
_ILLEGAL_IN_URL = re.compile(r"[^\x21-\x7e]")

# Headers that the app may not set, because they belong to the platform or to the connection.
_PLATFORM_PREFIX = "x-appengine-"
_PASSED_ON = frozenset({"x-appengine-current-namespace", "x-appengine-default-namespace"})
_REPLACED = frozenset(
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


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """How an attempt ended.

    ``status`` is None if there was no complete HTTP response: the connection failed, the attempt was cut off at its
    dispatch deadline, or the service ended the connection. ``reason`` then says why, for people. ``outcome`` is the
    response's ``X-Deferred-Outcome``, and ``excerpt`` the beginning of its body. If the service ended the connection
    during the attempt, ``broken_off`` is true. If the handler still runs after the dispatch deadline, ``late`` is that
    handler. ``timed_out`` and ``retry_after_seconds``, from the response, are known of HTTP targets only.
    """

    status: int | None
    duration_usec: int
    reason: str | None = None
    outcome: str | None = None
    excerpt: bytes = b""
    broken_off: bool = False
    late: LateHandler | None = None
    timed_out: bool = False
    retry_after_seconds: float = 0.0

    @property
    def http_response(self) -> bool:
        """Whether the attempt counts as an execution."""
        return self.status is not None

    def because(self, reason: str) -> AttemptResult:
        """Return a copy with ``reason`` as its reason."""
        return dataclasses.replace(self, reason=reason)


class Deliverer:
    """Sends tasks to services over persistent connections.

    Every request has the ``delivery_token``, which proves to a service that the task queue sent the request. External
    services don't get the token, because with it they could pose as the queue. If there is a ``voucher``, it signs
    tasks that were enqueued without a signature. Set it before the first delivery.
    """

    def __init__(self, *, delivery_token: str, voucher: Voucher | None = None) -> None:
        self._delivery_token = delivery_token
        self.voucher = voucher
        # Guards _busy, _idle and _closed.
        self._lock = threading.Lock()
        self._busy: set[ServiceConnection] = set()
        # Keyed by the service's address. The most recently used connection is used next.
        self._idle: dict[str, list[ServiceConnection]] = {}
        self._closed = False

    def begin(self, task: ClaimedTask, service: Service, *, host: str) -> HttpAttempt:
        """Return a new attempt with ``host`` as its ``Host`` header, without sending anything yet."""
        return HttpAttempt(self, task, service, host)

    def deliver(self, task: ClaimedTask, service: Service, *, host: str) -> AttemptResult:
        """Make an attempt with ``host`` as its ``Host`` header, wait for its end, and return its result."""
        delivery = self.begin(task, service, host=host)
        while (result := delivery.proceed()) is None:
            delivery.wait()
        return result

    def close(self) -> None:
        """Close all connections. Running attempts end without a response."""
        with self._lock:
            self._closed = True
            for connection in self._busy:
                connection.shut_down()
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def request(self, task: ClaimedTask, service: Service, host: str) -> bytes:
        """Return the request that delivers a task. Raises :class:`ValueError` if the task gives no valid request."""
        if _ILLEGAL_IN_URL.search(task.url):
            raise ValueError(f"the URL has a character that is not allowed in URLs: {task.url!r}")
        headers = request_headers(task, host)
        if not service.external:
            headers.append((protocol.SERVER_TOKEN_HEADER, self._delivery_token))
        if self.voucher is not None and (signature := self.voucher.signature(task, service)) is not None:
            headers.append((protocol.SIGNATURE_HEADER, signature))
        lines = [f"{task.method} {task.url} HTTP/1.1", *[f"{name}: {value}" for name, value in headers], "\r\n"]
        head = "\r\n".join(lines)
        # Each line ends with one line break, and the last one adds the empty line.
        if head.count("\r") != len(lines) or head.count("\n") != len(lines) or "\0" in head:
            raise ValueError("a header has a line break in it")
        return head.encode("latin-1") + task.body

    def take(self, service: Service) -> ServiceConnection:
        """Return a usable connection to a service, idle or new. The caller must put it back."""
        idle_seconds = _EXTERNAL_IDLE_SECONDS if service.external else _IDLE_SECONDS
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the server is stopping")
            idle = self._idle.get(service.address)
            while idle:
                connection = idle.pop()
                if connection.usable(idle_seconds):
                    break
                connection.close()
            else:
                connection = ServiceConnection(service.host.strip("[]"), service.port)
            self._busy.add(connection)
        return connection

    def put_back(self, connection: ServiceConnection, service: Service, *, keep: bool) -> None:
        """Take back an attempt's connection; keep it for the next attempt, or close it."""
        with self._lock:
            self._busy.discard(connection)
            if not keep or self._closed:
                connection.close()
                return
            connection.idle_since = time.monotonic()
            self._idle.setdefault(service.address, []).append(connection)


class HttpAttempt:
    """An attempt that never blocks: each call of :meth:`proceed` does what is possible without waiting.

    ``deadline`` is the dispatch deadline on the monotonic clock. Only one thread at a time may use an attempt.
    """

    def __init__(self, deliverer: Deliverer, task: ClaimedTask, service: Service, host: str) -> None:
        self._deliverer = deliverer
        self._task = task
        self._service = service
        self._host = host
        self._deadline_usec = task.dispatch_deadline_usec or protocol.DEFAULT_DISPATCH_DEADLINE_SECONDS * 1_000_000
        self._began = time.monotonic()
        self._connection: ServiceConnection | None = None
        self._response: Response | None = None
        self._excerpt = b""
        self.deadline: float = self._began + self._deadline_usec / 1e6

    def fileno(self) -> int:
        """Return the descriptor of the attempt's connection, or -1 if there is none."""
        return -1 if self._connection is None else self._connection.fileno()

    @property
    def awaited(self) -> int:
        """The events that the connection waits for, as :mod:`select` defines them."""
        return 0 if self._connection is None else self._connection.awaited

    def wait(self) -> None:
        """Wait until the attempt can proceed."""
        if self._connection is not None:
            self._connection.wait(self.deadline)

    def proceed(self) -> AttemptResult | None:
        """Send the request on the first call, then read the response; return the result at the end, and None before.

        Call this again when the events in ``awaited`` have occurred or the deadline has passed.
        """
        response = self._response
        reason: str | None = None
        broken_off = False
        late: LateHandler | None = None
        try:
            if response is None:
                self._send()
                return None
            self._read(response)
            if 300 <= response.status < 400:
                reason = self._redirected(response.status, response.header("Location"))
            return self._ended(response.status, reason=reason, outcome=response.header(protocol.OUTCOME_HEADER))
        except BlockingIOError:
            if time.monotonic() < self.deadline:
                return None
            reason = f"cut off: no complete response within its dispatch deadline of {self._deadline_usec / 1e6:g} s"
            if self._connection is not None and response is not None and self._connection.awaited == select.POLLIN:
                late = LateHandler(self._deliverer, self._connection, response, self._service)
        except http.client.RemoteDisconnected:
            reason = "the service closed the connection without a response"
            broken_off = True
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            if self._service.external and isinstance(error, ConnectionRefusedError):
                reason = f"nothing answers at {self._service.url}; is the app running there?"
            broken_off = isinstance(error, ConnectionResetError | BrokenPipeError | http.client.IncompleteRead)
        return self._ended(None, reason=reason, broken_off=broken_off, late=late)

    def _send(self) -> None:
        request = self._deliverer.request(self._task, self._service, self._host)
        self._connection = connection = self._deliverer.take(self._service)
        self._response = Response(connection.receive, has_body=self._task.method != "HEAD")
        connection.send(request)

    def _read(self, response: Response) -> None:
        assert self._connection is not None
        self._connection.flush()
        self._connection.reads_left = _READS_IN_A_ROW
        response.read_head()
        # Read to the end, because an app may still work while its response is read, and the connection is reused.
        while part := response.read():
            if len(self._excerpt) < EXCERPT_BYTES:
                self._excerpt = (self._excerpt + part)[:EXCERPT_BYTES]

    def _redirected(self, status: int, location: str | None) -> str:
        """Return the reason for the failure of a redirected attempt, and log it, unless it is the same as before.

        A layer of the app answered in the task's place. If it is outside of the middleware, the app logs nothing.
        """
        reason = redirect_reason(status, location)
        if self._task.previous_response != status:
            task = self._task
            logger.error("Task %s of queue %s (%s) did not run: %s.", task.name, task.queue, task.url, reason)
        return reason

    def _ended(
        self,
        status: int | None,
        *,
        reason: str | None = None,
        outcome: str | None = None,
        broken_off: bool = False,
        late: LateHandler | None = None,
    ) -> AttemptResult:
        connection, self._connection = self._connection, None
        if connection is not None and late is None:
            keep = self._response is not None and self._response.keeps_connection
            self._deliverer.put_back(connection, self._service, keep=keep)
        return AttemptResult(
            status=status,
            duration_usec=int((time.monotonic() - self._began) * 1e6),
            reason=reason,
            outcome=outcome,
            excerpt=self._excerpt,
            broken_off=broken_off,
            late=late,
        )


def redirect_reason(status: int, location: str | None) -> str:
    """Return a text for people about a response that is a redirect."""
    where = "no Location" if location is None else f"Location {location[:_MAX_LOCATION_CHARACTERS]!r}"
    return f"the app redirected it with status {status} and {where}; the queue doesn't follow redirects"


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
        (protocol.ETA_HEADER, f"{task.eta_usec // 1_000_000}.{task.eta_usec % 1_000_000:06d}"),
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


def _user_agent(task: ClaimedTask) -> str:
    """Return the platform's user agent, after the one that a client of the Cloud Tasks API has chosen, if any.

    Source: https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#appenginehttprequest ("headers").
    """
    if task.origin is None:
        return protocol.TASK_QUEUE_USER_AGENT
    own = [value for name, value in task.headers if name.lower() == "user-agent"]
    return " ".join([*own, protocol.TASK_QUEUE_USER_AGENT])


@functools.lru_cache(maxsize=1024)
def _folded(name: str) -> str | None:
    """Return a header's name as servers normalize it, or None if the app may not send it."""
    # Some servers treat an underscore as a hyphen, and so accept X_AppEngine_TaskName as the platform's header.
    folded = name.lower().replace("_", "-")
    if folded in _REPLACED or (folded.startswith(_PLATFORM_PREFIX) and folded not in _PASSED_ON):
        return None
    return folded


class LateHandler:
    """A handler that still runs after its attempt was cut off.

    The handler can't be stopped without ending its process. While it runs, another attempt would overlap with it.
    """

    def __init__(
        self, deliverer: Deliverer, connection: ServiceConnection, response: Response, service: Service
    ) -> None:
        self._deliverer = deliverer
        self._connection = connection
        self._response = response
        self._service = service

    def wait(self) -> int | None:
        """Wait until the handler or its process ends, or the deliverer is closed; return the status, if any."""
        status: int | None = None
        try:
            self._connection.reads_left = math.inf
            while not self._has_ended():
                self._connection.wait(math.inf)
            status = self._response.status
        except (OSError, http.client.HTTPException, ValueError) as error:
            logger.debug("A handler that was cut off ended without a response: %s", error)
        finally:
            self._deliverer.put_back(self._connection, self._service, keep=False)
        return status

    def _has_ended(self) -> bool:
        try:
            self._response.read_head()
            while self._response.read():
                pass
        except BlockingIOError:
            return False
        return True
