"""A delivery attempt over HTTP, against real servers on real sockets."""

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
from deferred_middleware.server.delivery.http_attempt import EXCERPT_BYTES, AttemptResult, Deliverer, request_headers
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
    return Service(name="default", version="local", host="127.0.0.1", port=port, concurrency=1)


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
    """A deliverer with a token."""
    deliverer = Deliverer(delivery_token="token")
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


def _deliver(deliverer: Deliverer, service: Service, **changes: Any) -> AttemptResult:
    return deliverer.deliver(dataclasses.replace(TASK, **changes), service, host=HOST)


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
        "X-Deferred-Server-Token": "token",
    }


def test_an_app_elsewhere_does_not_get_the_token(deliverer: Deliverer, server: Server) -> None:
    """An external service gets the same request without the token, which would let it pose as the queue process."""
    external = dataclasses.replace(server.service, external=True)
    result = deliverer.deliver(TASK, external, host=HOST)
    assert result.status == 200
    assert "X-Deferred-Server-Token" not in server.requests[0]["headers"]
    assert "token" not in str(server.requests[0]["headers"])
    assert server.requests[0]["headers"]["X-AppEngine-TaskName"] == "one"


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


def test_the_apps_headers_are_kept_but_not_the_platforms() -> None:
    """The app's own and namespace headers are delivered; reserved headers, in any spelling, are dropped."""
    kept = (
        ("X-Mine", "1"),
        ("X-Mine", "2"),
        ("Content-Type", "text/plain"),
        ("X-AppEngine-Current-Namespace", "tenant"),
        ("X-AppEngine-Default-Namespace", ""),
    )
    dropped = (
        ("x-appengine-queuename", "forged"),
        ("X_AppEngine_TaskName", "forged"),
        ("X-AppEngine-Fake-Is-Admin", "1"),
        ("Content-Length", "9"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
        ("User-Agent", "mine"),
        ("X-Deferred-Server-Token", "forged"),
    )
    headers = request_headers(dataclasses.replace(TASK, headers=kept + dropped), HOST)
    assert [header for header in headers if header in kept] == list(kept)
    assert not [header for header in headers if header in dropped]
    assert [name for name, _value in headers].count("Content-Type") == 1


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
def test_a_redirect_is_not_followed(
    server: Server, deliverer: Deliverer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A redirect is not followed. The reason and an ERROR have its status and Location, as printable text."""
    server.answer = lambda handler: respond(handler, status, Location="/else\x1bwhere")
    result = _deliver(deliverer, server.service)

    reason = f"the app redirected it with status {status} and Location '/else\\x1bwhere'"
    assert (result.status, (result.reason or "").partition(";")[0]) == (status, reason)
    assert [request["path"] for request in server.requests] == ["/work"]
    assert [record.levelname for record in caplog.records if reason in record.getMessage()] == ["ERROR"]


def test_a_repeated_redirect_is_logged_once(
    server: Server, deliverer: Deliverer, caplog: pytest.LogCaptureFixture
) -> None:
    """If the attempt before was answered with the same status, only the reason tells of the redirect."""
    server.answer = lambda handler: respond(handler, 304)
    result = _deliver(deliverer, server.service, previous_response=304)

    assert "status 304 and no Location" in (result.reason or "")
    assert caplog.records == []
    _deliver(deliverer, server.service, previous_response=500)
    assert len(caplog.records) == 1


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


def test_a_slow_attempt_is_cut_off_at_its_dispatch_deadline(deliverer: Deliverer) -> None:
    """An attempt without a response by its dispatch deadline ends with a reason and without an HTTP response."""
    over = threading.Event()
    with raw_server(lambda connection: _exchange_then(connection, b"", lambda: over.wait(10))) as service:
        result = _deliver(deliverer, service, dispatch_deadline_usec=200_000)
        over.set()
        assert result.late is not None
        result.late.wait()
    assert result.status is None
    assert not result.http_response
    assert 0.2 <= result.duration_usec / 1e6 < 2
    assert "dispatch deadline of 0.2 s" in str(result.reason)


def test_a_trickling_response_does_not_outlast_the_deadline(deliverer: Deliverer) -> None:
    """A service that sends its response byte by byte is cut off at the dispatch deadline."""
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        _exchange_then(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", lambda: None)
        with contextlib.suppress(OSError):
            while not over.wait(0.02):
                connection.sendall(b"x")

    with raw_server(trickle) as service:
        began = time.monotonic()
        result = _deliver(deliverer, service, dispatch_deadline_usec=300_000)
        took_seconds = time.monotonic() - began
        over.set()
        assert result.late is not None
        result.late.wait()
    assert result.status is None
    assert took_seconds < 2


def test_a_response_without_an_end_does_not_outlast_the_deadline(deliverer: Deliverer) -> None:
    """An endless, fast response is cut off at the dispatch deadline and doesn't block other attempts until then."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(bytes(1_000_000))

    with raw_server(answer) as service:
        task = dataclasses.replace(TASK, dispatch_deadline_usec=200_000)
        delivery = deliverer.begin(task, service, host=HOST)
        turns = 0
        while (result := delivery.proceed()) is None:
            turns += 1
            delivery.wait()
        assert turns > 10
        assert result.status is None
        assert result.reason is not None
        assert result.reason.startswith("cut off")
        assert result.late is not None
        deliverer.close()
        result.late.wait()


def test_one_thread_makes_many_attempts(deliverer: Deliverer) -> None:
    """An attempt that waits for its response doesn't block others in the same thread."""
    go_on = threading.Event()

    def answer(connection: socket.socket) -> None:
        request = connection.recv(4096)
        if b"slow" in request:
            assert go_on.wait(10)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with raw_server(answer) as service:
        slow = deliverer.begin(dataclasses.replace(TASK, url="/slow"), service, host=HOST)
        assert slow.proceed() is None
        assert slow.proceed() is None
        assert _deliver(deliverer, service).status == 200
        go_on.set()
        slow.wait()
        result = slow.proceed()
        assert result is not None
        assert result.status == 200


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"", "without a response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "IncompleteRead"),
        (b"garbage\r\n\r\n", "BadStatusLine"),
    ],
)
def test_a_service_that_breaks_off_has_not_responded(deliverer: Deliverer, response: bytes, reason: str) -> None:
    """A missing, incomplete or invalid response counts as no response."""
    with raw_server(lambda connection: _exchange_then(connection, response, lambda: None)) as service:
        result = _deliver(deliverer, service)
    assert result.status is None
    assert reason in str(result.reason)


def test_a_service_that_is_down_has_not_responded(deliverer: Deliverer) -> None:
    """A refused connection gives a result without a response, and raises nothing."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    result = _deliver(deliverer, service_at(port))
    assert result.status is None
    assert "refused" in str(result.reason)


def test_closing_cuts_off_attempts_and_refuses_new_ones(deliverer: Deliverer) -> None:
    """close() ends a running attempt at once, and later attempts are refused."""
    arrived, over = threading.Event(), threading.Event()
    results: list[AttemptResult] = []

    def hold() -> None:
        arrived.set()
        over.wait(10)

    def handle(connection: socket.socket) -> None:
        _exchange_then(connection, b"", hold)

    with raw_server(handle) as service:
        attempt = threading.Thread(target=lambda: results.append(_deliver(deliverer, service)))
        attempt.start()
        assert arrived.wait(10)
        deliverer.close()
        attempt.join(10)
        results.append(_deliver(deliverer, service))
        over.set()
    assert [result.status for result in results] == [None, None]
    assert "stopping" in str(results[1].reason)
