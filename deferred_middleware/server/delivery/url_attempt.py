"""One attempt to run a task that has a complete URL: an HTTP request as Cloud Tasks sends it to an HTTP target.

Headers and rules: https://cloud.google.com/tasks/docs/creating-http-target-tasks#handler . Each attempt runs in a
thread of its own, because names have to be resolved and connections encrypted, and both take their time. It has a
connection of its own: the targets are many, and Cloud Tasks promises nothing about connections. Redirects are not
followed: a 3xx is a failure.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, Final

from deferred_middleware.server.config.queues import queue_id
from deferred_middleware.server.delivery.attempt_result import AttemptResult
from deferred_middleware.server.delivery.http_attempt import read_to_end
from deferred_middleware.server.store.records import ClaimedTask
from deferred_middleware.wire import protocol

logger: Final = logging.getLogger(__name__)

USER_AGENT = "Google-Cloud-Tasks"
HEADER_PREFIX = "X-CloudTasks-"

# Where a response says when to try again, at most this is believed.
_MOST_RETRY_AFTER_SECONDS = 3600.0

# The task's own headers that Cloud Tasks drops or replaces, and those that belong to the connection.
# https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#httprequest
_DROPPED_PREFIXES = ("x-cloudtasks-", "x-google-", "x-appengine-")
_DROPPED = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
    | {"proxy-authenticate", "proxy-authorization", "proxy-connection", "user-agent"}
)
# What can't be in a request's first line is encoded. A "%" stays as it is: the URL is encoded already.
_SAFE_IN_URL = "!#$%&'()*+,/:;=?@[]~"
_ILLEGAL_IN_HEADER = re.compile(r"[\r\n\0]")


class UrlDeliverer:
    """Sends tasks to their own URLs.

    ``authorize`` returns the value of a task's ``Authorization`` header, or None. ``rewrite`` returns a task with what
    its queue overrides in the request. Any thread may call any method.
    """

    def __init__(
        self,
        authorize: Callable[[ClaimedTask], str | None] = lambda _task: None,
        rewrite: Callable[[ClaimedTask], ClaimedTask] = lambda task: task,
    ) -> None:
        self.authorize = authorize
        self.rewrite = rewrite
        # Guards the other three.
        self._lock = threading.Lock()
        self._busy: set[socket.socket] = set()
        self._closed = False
        self._tls: ssl.SSLContext | None = None

    def deliver(self, task: ClaimedTask) -> AttemptResult:
        """Make an attempt, wait for its end, and return its result."""
        began = time.monotonic()
        deadline_usec = task.dispatch_deadline_usec or protocol.DEFAULT_DISPATCH_DEADLINE_SECONDS * 1_000_000
        answer = _Answer()
        reason, timed_out = None, False
        try:
            self._exchange(self.rewrite(task), began + deadline_usec / 1e6, answer)
        except TimeoutError:
            answer.status = None
            timed_out = True
            reason = f"cut off: no complete response within its dispatch deadline of {deadline_usec / 1e6:g} s"
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer.status = None
            reason = f"{type(error).__name__}: {error}"
        return AttemptResult(
            status=answer.status,
            duration_usec=int((time.monotonic() - began) * 1e6),
            reason=reason,
            outcome=answer.outcome,
            excerpt=answer.excerpt,
            timed_out=timed_out,
            retry_after_seconds=answer.retry_after_seconds,
        )

    def close(self) -> None:
        """End all attempts."""
        with self._lock:
            self._closed = True
            for connection in self._busy:
                # It may be closed already.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _exchange(self, task: ClaimedTask, deadline: float, answer: _Answer) -> None:
        url = urllib.parse.urlsplit(encoded_url(task.url))
        if not url.hostname:
            raise ValueError(f"the URL names no host: {task.url!r}")
        connection: http.client.HTTPConnection
        remaining = _remaining(deadline)
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=remaining, context=self._context())
        else:
            connection = http.client.HTTPConnection(url.hostname, url.port, timeout=remaining)
        path = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        with contextlib.closing(connection):
            connection.connect()
            with contextlib.closing(connection.sock), self._in_use(connection.sock):
                connection.putrequest(task.method, path, skip_accept_encoding=True)
                for name, value in [*request_headers(task), *self._authorization(task), ("Connection", "close")]:
                    if _ILLEGAL_IN_HEADER.search(value):
                        raise ValueError("a header has a line break in it")
                    connection.putheader(name, value.encode("latin-1"))
                connection.sock.settimeout(_remaining(deadline))
                connection.endheaders(task.body or None)
                reading: Any = _DeadlineSocket(connection.sock, deadline)
                connection.sock = reading
                self._read(connection.getresponse(), answer)

    def _read(self, response: http.client.HTTPResponse, answer: _Answer) -> None:
        with response:
            answer.excerpt = read_to_end(response)
            answer.status = response.status
            answer.outcome = response.headers.get(protocol.OUTCOME_HEADER)
            answer.retry_after_seconds = _retry_after_seconds(response.headers.get("Retry-After"))

    def _authorization(self, task: ClaimedTask) -> list[tuple[str, str]]:
        value = self.authorize(task)
        return [] if value is None else [("Authorization", value)]

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls

    @contextlib.contextmanager
    def _in_use(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the server is stopping")
            self._busy.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(connection)


class _Answer:
    """What is known of a response so far."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.outcome: str | None = None
        self.excerpt = b""
        self.retry_after_seconds = 0.0


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until a deadline, however slowly the data comes."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_remaining(self._deadline))
        return self._connection.recv_into(buffer)


class _DeadlineSocket:
    """What ``http.client`` uses of a socket to read a response.

    It closes the connection when it has the head of a response after which the server closes it. A socket's own file
    keeps the socket open until the body is read; here, whoever has opened the connection closes it.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._connection, self._deadline))

    def close(self) -> None:
        pass


def request_headers(task: ClaimedTask) -> list[tuple[str, str]]:
    """Return the headers of a task's next attempt, without ``Host`` and ``Authorization``.

    The names and their values on retries are as recorded from Cloud Tasks: the retry reason is empty.
    """
    headers = [
        ("User-Agent", USER_AGENT),
        (f"{HEADER_PREFIX}QueueName", queue_id(task.queue)),
        (f"{HEADER_PREFIX}TaskName", task.name),
        (f"{HEADER_PREFIX}TaskRetryCount", str(task.retry_count)),
        (f"{HEADER_PREFIX}TaskExecutionCount", str(task.execution_count)),
        (f"{HEADER_PREFIX}TaskETA", f"{task.eta_usec // 1_000_000}.{task.eta_usec % 1_000_000:06d}"),
    ]
    if task.previous_response is not None:
        headers.append((f"{HEADER_PREFIX}TaskPreviousResponse", str(task.previous_response)))
        headers.append((f"{HEADER_PREFIX}TaskRetryReason", task.retry_reason or ""))
    if task.body or task.method in ("POST", "PUT", "PATCH"):
        headers.append(("Content-Length", str(len(task.body))))
    has_token = task.origin is not None and task.origin.token is not None
    for name, value in task.headers:
        # Some servers treat an underscore as a hyphen.
        folded = name.lower().replace("_", "-")
        if folded in _DROPPED or folded.startswith(_DROPPED_PREFIXES) or (has_token and folded == "authorization"):
            continue
        headers.append((name, value))
    return headers


def encoded_url(url: str) -> str:
    """Return a URL in which the characters that can't be in a request are encoded, as Cloud Tasks encodes them."""
    return urllib.parse.quote(url, safe=_SAFE_IN_URL)


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("the deadline has passed")
    return remaining


def _retry_after_seconds(value: str | None) -> float:
    """Return what a ``Retry-After`` header asks for, 0 if nothing. A date is not looked at."""
    if value is None or not value.strip().isdecimal():
        return 0.0
    return min(_MOST_RETRY_AFTER_SECONDS, float(value.strip()[:20]))
