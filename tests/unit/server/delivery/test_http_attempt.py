"""Attempts at services that run elsewhere, against real servers on real sockets."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.attempt_result import EXCERPT_BYTES, AttemptEvent, AttemptResult
from deferred_middleware.server.delivery.channel import ToDeliver
from deferred_middleware.server.delivery.http_attempt import Deliverer, HttpAttempt, HttpAttempts
from deferred_middleware.server.delivery.task_request import TaskRequests
from tests.support.storing import TASK
from tests.support.threadedserver import ThreadedHTTPServer, ThreadedTCPServer

HOST = "local.default.127.0.0.1:8080"


class Server:
    """A real HTTP server that records requests and connections; a test chooses its response."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: respond(handler, 200)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections += 1

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.requests.append(
                    {"method": self.command, "path": self.path, "headers": self.headers, "body": body}
                )
                server.answer(self)

            do_POST = do_GET = do_PUT = do_DELETE = do_HEAD = handle_request

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self._server = ThreadedHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.service = service_at(self._server.server_address[1])

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def service_at(port: int) -> Service:
    """Return the service on a port."""
    return Service(name="default", version="local", host="127.0.0.1", port=port, concurrency=1, external=True)


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Send a response."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that answers 200."""
    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def deliverer() -> Iterator[Deliverer]:
    """A deliverer without connections."""
    deliverer = Deliverer(TaskRequests())
    yield deliverer
    deliverer.close()


@contextlib.contextmanager
def raw_server(handle: Callable[[socket.socket], None]) -> Iterator[Service]:
    """Serve each TCP connection with ``handle``."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            handle(self.request)

    with ThreadedTCPServer(("127.0.0.1", 0), Handler) as tcp_server:
        thread = threading.Thread(target=tcp_server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service_at(tcp_server.server_address[1])
        finally:
            tcp_server.shutdown()
            thread.join()


class Attempts:
    """The attempts at one service, and their events."""

    def __init__(self, deliverer: Deliverer, service: Service) -> None:
        self._happened = threading.Condition()
        self.attempts = HttpAttempts(lambda task: HttpAttempt(deliverer, task, service, HOST), self._notify)
        self.events: list[AttemptEvent] = []

    def begin(self, **changes: Any) -> None:
        """Begin an attempt."""
        task = dataclasses.replace(TASK, **changes)
        assert self.attempts.deliver([ToDeliver(task)], limit=1, now=time.monotonic()) == []

    def wait_for(self, number: int) -> list[AttemptEvent]:
        """Wait until there are so many events; return them."""
        until = time.monotonic() + 20
        with self._happened:
            while True:
                now = time.monotonic()
                self.attempts.proceed(self.events, now)
                if len(self.events) >= number:
                    return self.events
                assert now < until, self.events
                self._happened.wait(max(0.0, min(until, self.attempts.next_check) - now))

    def _notify(self) -> None:
        with self._happened:
            self._happened.notify_all()


def _event(deliverer: Deliverer, service: Service, **changes: Any) -> AttemptEvent:
    """Make an attempt, and return what happens first."""
    attempts = Attempts(deliverer, service)
    attempts.begin(**changes)
    return attempts.wait_for(1)[0]


def _deliver(deliverer: Deliverer, service: Service, **changes: Any) -> AttemptResult:
    event = _event(deliverer, service, **changes)
    assert event.kind == "answered"
    assert event.result is not None
    return event.result


def test_a_first_attempt_has_the_platforms_headers(server: Server, deliverer: Deliverer) -> None:
    """A first attempt has all of App Engine's headers except those about earlier attempts."""
    result = _deliver(deliverer, server.service)
    assert result.status == 200
    assert result.http_response
    (request,) = server.requests
    assert (request["method"], request["path"], request["body"]) == ("POST", "/work", b"payload")
    assert dict(request["headers"].items()) == {
        "Host": HOST,
        "User-Agent": "AppEngine-Google; (+http://code.google.com/appengine)",
        "X-Appengine-User-IP": "0.1.0.2",
        "X-AppEngine-QueueName": "default",
        "X-AppEngine-TaskName": "one",
        "X-AppEngine-TaskRetryCount": "0",
        "X-AppEngine-TaskExecutionCount": "0",
        "X-AppEngine-TaskETA": "1700000000.000005",
        "Content-Length": "7",
        "Content-Type": "application/octet-stream",
    }


def test_a_retry_says_what_happened_before(server: Server, deliverer: Deliverer) -> None:
    """The counts, previous response and retry reason come from the task; after a timeout the previous response is 0."""
    _deliver(
        deliverer,
        server.service,
        retry_count=3,
        execution_count=2,
        previous_response=0,
        retry_reason="Instance Unavailable",
    )
    headers = server.requests[0]["headers"]
    assert headers["X-AppEngine-TaskRetryCount"] == "3"
    assert headers["X-AppEngine-TaskExecutionCount"] == "2"
    assert headers["X-AppEngine-TaskPreviousResponse"] == "0"
    assert headers["X-AppEngine-TaskRetryReason"] == "Instance Unavailable"


def test_header_bytes_arrive_as_they_were(server: Server, deliverer: Deliverer) -> None:
    """A non-ASCII header is delivered byte for byte."""
    _deliver(deliverer, server.service, headers=(("X-Name", "caf\xc3\xa9"),))
    assert server.requests[0]["headers"]["X-Name"] == "caf\xc3\xa9"


def test_a_get_task_has_no_body(server: Server, deliverer: Deliverer) -> None:
    """A task with method GET is sent without Content-Length and Content-Type."""
    _deliver(deliverer, server.service, method="GET", body=b"")
    assert server.requests[0]["method"] == "GET"
    assert "Content-Length" not in server.requests[0]["headers"]
    assert "Content-Type" not in server.requests[0]["headers"]


def test_connections_are_kept(server: Server, deliverer: Deliverer) -> None:
    """Successive attempts share a connection, also after error responses."""
    for status in (200, 500, 404, 200):
        server.answer = lambda handler, status=status: respond(handler, status, b"x")  # type: ignore[misc]
        assert _deliver(deliverer, server.service).status == status
    assert server.connections == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server: Server, deliverer: Deliverer, status: int) -> None:
    """A redirect is not followed. The reason has its status and Location, as printable text."""
    server.answer = lambda handler: respond(handler, status, Location="/else\x1bwhere")
    result = _deliver(deliverer, server.service)

    reason = f"the app redirected it with status {status} and Location '/else\\x1bwhere'"
    assert (result.status, (result.reason or "").partition(";")[0]) == (status, reason)
    assert [request["path"] for request in server.requests] == ["/work"]


def test_outcome_and_excerpt_are_told(server: Server, deliverer: Deliverer) -> None:
    """The result has the outcome header and the beginning of the body."""
    server.answer = lambda handler: respond(handler, 200, b"why", X_Deferred_Outcome="permanent-failure")
    result = _deliver(deliverer, server.service)
    assert (result.outcome, result.excerpt) == ("permanent-failure", b"why")


def test_a_large_response_does_not_break_the_connection(server: Server, deliverer: Deliverer) -> None:
    """Only the beginning of a 5 MB response is kept, and the next attempt on the connection gets its own response."""
    server.answer = lambda handler: respond(handler, 200, b"x" * 5_000_000)
    first = _deliver(deliverer, server.service)
    server.answer = lambda handler: respond(handler, 201, b"second")
    second = _deliver(deliverer, server.service)
    assert (first.status, first.excerpt) == (200, b"x" * EXCERPT_BYTES)
    assert (second.status, second.excerpt) == (201, b"second")
    assert server.connections == 1


def _exchange_then(connection: socket.socket, response: bytes, after: Callable[[], object]) -> None:
    received = b""
    while b"payload" not in received:
        data = connection.recv(65536)
        if not data:
            return
        received += data
    connection.sendall(response)
    after()


def test_a_connection_that_was_closed_while_idle_is_not_used(deliverer: Deliverer) -> None:
    """If the service closes an idle connection, the next attempt succeeds on a new one."""
    closed = threading.Semaphore(0)

    def handle(connection: socket.socket) -> None:
        _exchange_then(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", lambda: None)
        connection.shutdown(socket.SHUT_RDWR)
        closed.release()

    with raw_server(handle) as service:
        for _ in range(3):
            assert _deliver(deliverer, service).status == 200
            assert closed.acquire(timeout=10)


def test_a_handler_is_awaited_after_its_deadline(deliverer: Deliverer) -> None:
    """An attempt is cut off at its dispatch deadline; the end of its handler is an event of its own."""
    over = threading.Event()
    with raw_server(lambda connection: _exchange_then(connection, b"", lambda: over.wait(10))) as service:
        attempts = Attempts(deliverer, service)
        attempts.begin(dispatch_deadline_usec=200_000)
        (event,) = attempts.wait_for(1)
        assert event.kind == "cut off"
        assert event.result is not None
        assert (event.result.status, event.result.http_response) == (None, False)
        assert 0.2 <= event.result.duration_usec / 1e6 < 2
        assert "dispatch deadline of 0.2 s" in str(event.result.reason)
        over.set()
        assert attempts.wait_for(2)[1].kind == "died"


@pytest.mark.parametrize("length", [b"Content-Length: 1000\r\n", b""])
def test_a_trickling_response_does_not_outlast_the_deadline(deliverer: Deliverer, length: bytes) -> None:
    """A service that sends its response byte by byte, or without an end, is cut off at the dispatch deadline."""
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        _exchange_then(connection, b"HTTP/1.1 200 OK\r\n" + length + b"\r\n", lambda: None)
        with contextlib.suppress(OSError):
            while not over.wait(0.02):
                connection.sendall(b"x")

    with raw_server(trickle) as service:
        attempts = Attempts(deliverer, service)
        attempts.begin(dispatch_deadline_usec=300_000)
        began = time.monotonic()
        assert attempts.wait_for(1)[0].kind == "cut off"
        assert time.monotonic() - began < 2
        deliverer.close()
        assert attempts.wait_for(2)[1].result is not None
        over.set()


def test_a_request_that_is_not_taken_is_cut_off(deliverer: Deliverer) -> None:
    """If the service doesn't read the whole request, it can't run the task: the attempt just ends."""
    over = threading.Event()

    def ignore(connection: socket.socket) -> None:
        over.wait(20)

    with raw_server(ignore) as service:
        result = _deliver(deliverer, service, body=bytes(50_000_000), dispatch_deadline_usec=300_000)
        over.set()
    assert result.status is None
    assert str(result.reason).startswith("cut off")


def test_attempts_do_not_wait_for_each_other(deliverer: Deliverer) -> None:
    """An attempt that waits for its response doesn't block others."""
    go_on = threading.Event()

    def answer(connection: socket.socket) -> None:
        request = connection.recv(4096)
        if b"slow" in request:
            assert go_on.wait(10)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with raw_server(answer) as service:
        attempts = Attempts(deliverer, service)
        attempts.begin(id=1, url="/slow")
        attempts.begin(id=2)
        assert [event.task.id for event in attempts.wait_for(1)] == [2]
        go_on.set()
        assert [event.task.id for event in attempts.wait_for(2)] == [2, 1]


@pytest.mark.parametrize(
    ("response", "kind", "reason"),
    [
        (b"", "died", "without a response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "died", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha", "died", "IncompleteRead"),
        (b"garbage\r\n\r\n", "answered", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "answered", "got more than 100 headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + bytes(100_000) + b"\r\n\r\n", "answered", "LineTooLong"),
    ],
)
def test_a_service_that_breaks_off_has_not_responded(
    deliverer: Deliverer, response: bytes, kind: str, reason: str
) -> None:
    """A missing, incomplete or invalid response counts as no response."""
    with raw_server(lambda connection: _exchange_then(connection, response, lambda: None)) as service:
        event = _event(deliverer, service)
    assert event.kind == kind
    assert event.result is not None
    assert event.result.status is None
    assert reason in str(event.result.reason)


def test_a_service_that_is_down_has_not_responded(deliverer: Deliverer) -> None:
    """A refused connection gives a result without a response, and raises nothing."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    result = _deliver(deliverer, service_at(port))
    assert result.status is None
    assert "nothing answers at http://127.0.0.1:" in str(result.reason)


def test_closing_cuts_off_attempts_and_refuses_new_ones(deliverer: Deliverer) -> None:
    """close() ends a running attempt at once, and later attempts are refused."""
    arrived, over = threading.Event(), threading.Event()
    events: list[AttemptEvent] = []

    def hold() -> None:
        arrived.set()
        over.wait(10)

    def handle(connection: socket.socket) -> None:
        _exchange_then(connection, b"", hold)

    with raw_server(handle) as service:
        attempt = threading.Thread(target=lambda: events.append(_event(deliverer, service)))
        attempt.start()
        assert arrived.wait(10)
        deliverer.close()
        attempt.join(10)
        events.append(_event(deliverer, service))
        over.set()
    assert [event.kind for event in events] == ["died", "answered"]
    assert events[1].result is not None
    assert events[1].result.status is None
    assert "stopping" in str(events[1].result.reason)
