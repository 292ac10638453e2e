"""One attempt to run a task: an HTTP request to the service, as App Engine's task queue sends it.

Headers and rules: https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers . What matters
beyond them is that an attempt ends in time, and that it is counted exactly when it took place: a connection that the
service has closed while it was idle is not used again.
"""

from __future__ import annotations

import dataclasses
import http.client
import logging
import math
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deferred_middleware import protocol
from deferred_middleware.server.records import ClaimedTask
from deferred_middleware.server.services import Service

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_log = logging.getLogger(__name__)

EXCERPT_BYTES = 4096
"""How much of a response's body is kept."""

_DRAIN_BYTES = 64 * 1024
# Servers close idle connections, waitress after 120 s, gunicorn after 2 s. Long before that ours is given up, so that a
# request is never on its way while the service closes.
_IDLE_SECONDS = 30.0
_EXTERNAL_IDLE_SECONDS = 0.5

# What the app may not set: it is the platform's, or belongs to the connection.
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
    """How one attempt ended.

    ``status`` is None when there was no complete HTTP response: no connection, cut off at the dispatch deadline, or the
    service went away; ``reason`` then says which, for a person. ``outcome`` is the response's ``X-Deferred-Outcome``,
    ``excerpt`` the beginning of its body. ``broken_off`` says that the service ended the connection in the middle,
    ``late`` that its handler goes on beyond the dispatch deadline.
    """

    status: int | None
    duration_usec: int
    reason: str | None = None
    outcome: str | None = None
    excerpt: bytes = b""
    broken_off: bool = False
    late: LateHandler | None = None

    @property
    def http_response(self) -> bool:
        """Whether the attempt counts as an execution."""
        return self.status is not None

    def because(self, reason: str) -> AttemptResult:
        """Return the same result with another reason."""
        return dataclasses.replace(self, reason=reason)


class Deliverer:
    """Sends tasks to services, over connections that are kept open, one to each service for each thread.

    ``delivery_token`` goes with every request, and is how a service knows that the task queue sent it. Only one that
    runs elsewhere doesn't get it: whoever is there could pose as the queue then.
    """

    def __init__(self, *, delivery_token: str) -> None:
        self._delivery_token = delivery_token
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._closed = False

    def deliver(self, task: ClaimedTask, service: Service, *, host: str) -> AttemptResult:
        """Make one attempt, with ``host`` as its ``Host`` header; return how it ended, whatever happens on the way."""
        deadline_usec = task.dispatch_deadline_usec or protocol.DEFAULT_DISPATCH_DEADLINE_SECONDS * 1_000_000
        began = time.monotonic()
        connection: _Connection | None = None
        status: int | None = None
        reason: str | None = None
        outcome: str | None = None
        excerpt = b""
        broken_off = False
        late: LateHandler | None = None
        response: http.client.HTTPResponse | None = None
        try:
            connection = self._connection(service)
            connection.deadline = began + deadline_usec / 1e6
            self._send(connection, task, service, host)
            response = connection.getresponse()
            excerpt = response.read(EXCERPT_BYTES)
            # To the end: an app may do its work while it is being read, and the connection is to be used again.
            while response.read(_DRAIN_BYTES):
                pass
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
            status = response.status
            outcome = response.headers.get(protocol.OUTCOME_HEADER)
        except (TimeoutError, _DeadlinePassed) as error:
            reason = f"cut off: no complete response within its dispatch deadline of {deadline_usec / 1e6:g} s"
            if connection is not None and isinstance(error, _DeadlinePassed):
                late = LateHandler(self, connection, response)
        except http.client.RemoteDisconnected:
            reason = "the service closed the connection without a response"
            broken_off = True
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            if service.external and isinstance(error, ConnectionRefusedError):
                reason = f"nothing answers at {service.url}; is the app running there?"
            broken_off = isinstance(error, ConnectionResetError | BrokenPipeError | http.client.IncompleteRead)
        finally:
            if connection is not None and late is None:
                self.put_back(connection, keep=status is not None)
        return AttemptResult(
            status=status,
            duration_usec=int((time.monotonic() - began) * 1e6),
            reason=reason,
            outcome=outcome,
            excerpt=excerpt,
            broken_off=broken_off,
            late=late,
        )

    def close(self) -> None:
        """Close all connections; attempts that are under way end without a response."""
        with self._lock:
            self._closed = True
            for connection in self._connections:
                if connection.busy:
                    connection.shut_down()
                else:
                    connection.close()

    def _send(self, connection: _Connection, task: ClaimedTask, service: Service, host: str) -> None:
        connection.putrequest(task.method, task.url, skip_host=True, skip_accept_encoding=True)
        for name, value in request_headers(task, host):
            connection.putheader(name, value.encode("latin-1"))
        if not service.external:
            connection.putheader(protocol.SERVER_TOKEN_HEADER, self._delivery_token)
        connection.endheaders(task.body or None)

    def _connection(self, service: Service) -> _Connection:
        """Return this thread's connection to a service, new or fit to be used again."""
        mine: dict[str, _Connection] = self._local.__dict__.setdefault("connections", {})
        connection = mine.get(service.address)
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the server is stopping")
            idle_seconds = _EXTERNAL_IDLE_SECONDS if service.external else _IDLE_SECONDS
            if connection is None or not connection.usable(idle_seconds):
                if connection is not None:
                    self._connections.discard(connection)
                    connection.close()
                connection = mine[service.address] = _Connection(service.host.strip("[]"), service.port)
                self._connections.add(connection)
            connection.busy = True
        return connection

    def put_back(self, connection: _Connection, *, keep: bool) -> None:
        """Have a connection back that an attempt was made on; it is closed unless it may be used again."""
        with self._lock:
            connection.busy = False
            connection.idle_since = time.monotonic()
            if not keep or self._closed:
                connection.close()


def request_headers(task: ClaimedTask, host: str) -> list[tuple[str, str]]:
    """Return the headers of a task's next attempt; each character stands for one byte."""
    headers = [
        ("Host", host),
        ("User-Agent", protocol.TASK_QUEUE_USER_AGENT),
        (protocol.USER_IP_HEADER, protocol.TASK_QUEUE_IP),
        (protocol.QUEUE_NAME_HEADER, task.queue),
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
        # Some servers take an underscore for a hyphen, and so would take X_AppEngine_TaskName for the platform's.
        folded = name.lower().replace("_", "-")
        if folded in _REPLACED or (folded.startswith(_PLATFORM_PREFIX) and folded not in _PASSED_ON):
            continue
        has_type = has_type or folded == "content-type"
        headers.append((name, value))
    if task.body and not has_type:
        headers.append(("Content-Type", protocol.CONTENT_TYPE))
    return headers


class LateHandler:
    """A handler that goes on although its attempt was cut off.

    Nothing can end it from outside, short of its process. As long as it runs, another attempt would overlap with it.
    """

    def __init__(
        self, deliverer: Deliverer, connection: _Connection, response: http.client.HTTPResponse | None
    ) -> None:
        self._deliverer = deliverer
        self._connection = connection
        self._response = response

    def wait(self) -> int | None:
        """Return when the handler has ended, its process has, or the deliverer is closed; the status if it gave one."""
        status: int | None = None
        try:
            self._connection.extend(math.inf)
            response = self._response or self._connection.getresponse()
            while response.read(_DRAIN_BYTES):
                pass
            status = response.status
        except (OSError, http.client.HTTPException, ValueError) as error:
            _log.debug("A handler that was cut off ended without a response: %s", error)
        finally:
            self._deliverer.put_back(self._connection, keep=False)
        return status


class _DeadlinePassed(OSError):
    """The deadline came while a response was waited for. No TimeoutError: a file on the socket stays usable then."""


class _DeadlineSocket(socket.socket):
    """A socket each of whose operations ends at ``deadline``, by the monotonic clock.

    A timeout on a socket is one for each operation, so a service that sends a byte now and then would never meet it.
    """

    deadline: float

    def arm(self) -> None:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline has passed")
        self.settimeout(None if remaining == math.inf else remaining)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        try:
            self.arm()
            return super().recv_into(buffer, nbytes, flags)
        except TimeoutError as error:
            raise _DeadlinePassed(str(error)) from error


class _Connection(http.client.HTTPConnection):
    """A kept connection to one service. It knows when it must end, and whether it may be used again."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.deadline = 0.0
        self.idle_since = 0.0
        self.busy = False
        self._socket: _DeadlineSocket | None = None

    def connect(self) -> None:
        family, kind, proto, _name, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        self._socket = self.sock = _DeadlineSocket(family, kind, proto)
        self._socket.deadline = self.deadline
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.arm()
        self._socket.connect(address)

    def send(self, data: object) -> None:
        if self._socket is not None and self.sock is not None:
            self._socket.deadline = self.deadline
            # The timeout of sendall() is one for all of it.
            self._socket.arm()
        super().send(data)  # type: ignore[arg-type] # bytes, as HTTPConnection.endheaders() gives it

    def extend(self, deadline: float) -> None:
        """Let a response that is waited for come until ``deadline``."""
        self.deadline = deadline
        if self._socket is not None:
            self._socket.deadline = deadline

    def usable(self, idle_seconds: float) -> bool:
        """Tell whether it is open, has not been idle for long, and the service has neither closed it nor sent more."""
        if self.sock is None or time.monotonic() - self.idle_since > idle_seconds:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def shut_down(self) -> None:
        """End it under whoever is using it, in another thread."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                _log.debug("A connection was closed already: %s", error)
