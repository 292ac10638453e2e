"""Deliveries in an app process over real sockets: which connections it takes over, and which responses it accepts."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from wsgiref.validate import validator

import pytest

from deferred_middleware.server.apps.app_server import AppServer
from deferred_middleware.wire.protocol import SERVER_TOKEN_HEADER

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

WAIT_SECONDS = 20.0
TOKEN = "the-token"


class Serving:
    """An AppServer that serves in a thread, with a token for deliveries."""

    def __init__(self, app: WSGIApplication, *, threads: int, grace_seconds: float) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = AppServer(app, self.listener.dup(), threads=threads, delivery_token=TOKEN)
        self.answered: list[bool] = []
        self._thread = threading.Thread(
            target=lambda: self.answered.append(self.server.serve(grace_seconds=grace_seconds))
        )
        self._thread.start()

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the server."""
        host, port = self.listener.getsockname()
        return http.client.HTTPConnection(host, port, timeout=WAIT_SECONDS)

    def join(self) -> None:
        """Wait until the server has stopped."""
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        """Stop the server and wait until it has stopped."""
        self.server.request_stop()
        self.join()


@pytest.fixture
def serving() -> Iterator[Callable[..., Serving]]:
    """Return a function that serves an app until the end of the test."""
    made: list[Serving] = []

    def serve(app: WSGIApplication, *, threads: int = 4, grace_seconds: float = WAIT_SECONDS) -> Serving:
        made.append(Serving(app, threads=threads, grace_seconds=grace_seconds))
        return made[-1]

    yield serve
    for server in made:
        server.stop()
        server.listener.close()


def deliver(
    connection: http.client.HTTPConnection, *, method: str = "POST", body: bytes = b"", token: str = TOKEN
) -> tuple[int, bytes]:
    """Send a request as the queue process does; return the response's status and body."""
    connection.request(method, "/work", body, {SERVER_TOKEN_HEADER: token})
    response = connection.getresponse()
    return response.status, response.read()


def thread_names(names: list[str]) -> WSGIApplication:
    """An app that records the names of its threads and returns the request's body."""

    @validator
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        names.append(threading.current_thread().name)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return app


def test_only_deliveries_are_handed_over(serving: Callable[..., Serving]) -> None:
    """If a connection's first request has the token, it is taken over for deliveries; others stay with waitress."""
    names: list[str] = []
    server = serving(thread_names(names))
    for token in (TOKEN, "the-tokeN", "", f"{TOKEN} {TOKEN}"):
        with contextlib.closing(server.connect()) as connection:
            assert deliver(connection, body=b"a", token=token) == (200, b"a")
            assert deliver(connection, body=b"b", token=token) == (200, b"b")
    assert [name == "delivery" for name in names] == [True] * 2 + [False] * 6


def test_a_token_in_the_body_is_none(serving: Callable[..., Serving]) -> None:
    """A token in the body is ignored."""
    names: list[str] = []
    server = serving(thread_names(names))
    with contextlib.closing(server.connect()) as connection:
        connection.request("POST", "/", f"\r\n{SERVER_TOKEN_HEADER}: {TOKEN}\r\n".encode())
        assert connection.getresponse().status == 200
    assert names[0] != "delivery"


@pytest.mark.parametrize("size", [0, 1, 10_000, 5_000_000])
def test_bodies_arrive_whole(serving: Callable[..., Serving], size: int) -> None:
    """Bodies of any size pass both ways, one after the other on the same connection."""
    names: list[str] = []
    server = serving(thread_names(names))
    with contextlib.closing(server.connect()) as connection:
        for _ in range(3):
            assert deliver(connection, body=b"x" * size) == (200, b"x" * size)
    assert set(names) == {"delivery"}


def test_a_request_may_come_bit_by_bit(serving: Callable[..., Serving]) -> None:
    """After the first request, a request may arrive in pieces of any size."""
    server = serving(thread_names([]))
    request = f"POST / HTTP/1.1\r\n{SERVER_TOKEN_HEADER}: {TOKEN}\r\nContent-Length: 5\r\n\r\nhello".encode()
    with socket.create_connection(server.listener.getsockname(), timeout=WAIT_SECONDS) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(request)
        assert client.recv(1000).endswith(b"hello")
        for byte in request:
            client.sendall(bytes([byte]))
        answer = b""
        while not answer.endswith(b"hello"):
            answer += client.recv(1000)


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"Content-Length: +5\r\n\r\nhello", b"400"),
        (b"X: " + b"x" * 300_000, b"431"),
    ],
)
def test_an_odd_request_ends_the_connection(serving: Callable[..., Serving], odd: bytes, status: bytes) -> None:
    """A request that the queue process wouldn't send gets an error and ends the connection, even with the token."""
    names: list[str] = []
    server = serving(thread_names(names))
    start = f"POST / HTTP/1.1\r\n{SERVER_TOKEN_HEADER}: {TOKEN}\r\n".encode()
    with socket.create_connection(server.listener.getsockname(), timeout=WAIT_SECONDS) as client:
        client.sendall(start + b"Content-Length: 0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        answer = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(start + odd)
        with contextlib.suppress(ConnectionResetError):
            while more := client.recv(1000):
                answer += more
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert names == ["delivery"]


def test_no_more_requests_run_than_threads(serving: Callable[..., Serving]) -> None:
    """Deliveries and other requests together never exceed the number of threads."""
    entered, may_end = threading.Semaphore(0), threading.Semaphore(0)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entered.release()
        assert may_end.acquire(timeout=WAIT_SECONDS)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    server = serving(app, threads=2)
    connections = [server.connect() for _ in range(4)]
    for number, connection in enumerate(connections):
        connection.request("GET", "/", headers={SERVER_TOKEN_HEADER: TOKEN} if number % 2 else {})
    for _ in range(2):
        assert entered.acquire(timeout=WAIT_SECONDS)
    assert not entered.acquire(timeout=0.2)
    for _ in connections:
        may_end.release()
    for connection in connections:
        assert connection.getresponse().status == 200
        connection.close()


def test_what_the_app_raises_is_a_500_and_logged(
    serving: Callable[..., Serving], caplog: pytest.LogCaptureFixture
) -> None:
    """If the app raises, even SystemExit, the response is 500, the traceback is logged, and the connection stays."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise SystemExit("the app's own") if environ["REQUEST_METHOD"] == "PUT" else KeyError("the app's own")

    server = serving(app)
    with contextlib.closing(server.connect()) as connection:
        status, body = deliver(connection)
        sock = connection.sock
        assert (status, b"the app's own" in body) == (500, False)
        assert deliver(connection, method="PUT")[0] == 500
        assert connection.sock is sock
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in records] == ["Exception while serving /work"] * 2
    assert all(record.exc_info for record in records)


def test_an_exception_in_the_middle_ends_the_connection(serving: Callable[..., Serving]) -> None:
    """If the app raises after the head is sent, the client gets an incomplete response and the iterable is closed."""
    closed = threading.Event()

    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            yield b"beginning"
            raise KeyError("too late")

        def close(self) -> None:
            closed.set()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Parts()

    server = serving(app)
    with contextlib.closing(server.connect()) as connection, pytest.raises(http.client.IncompleteRead):
        deliver(connection)
    assert closed.wait(WAIT_SECONDS)


@pytest.mark.parametrize(
    ("method", "status", "headers", "parts", "body"),
    [
        ("POST", "200 OK", [], [b"hello"], b"hello"),
        ("POST", "200 OK", [], [b"", b"hel", b"", b"lo"], b"hello"),
        ("POST", "200 OK", [("Content-Length", "5")], [b"hel", b"lo"], b"hello"),
        ("POST", "200 OK", [("Content-Length", "2")], [b"hel", b"lo"], b"he"),
        ("POST", "200 OK", [], [], b""),
        ("POST", "204 No Content", [], [], b""),
        ("POST", "304 Not Modified", [], [b"ignored"], b""),
        ("HEAD", "200 OK", [("Content-Length", "5")], [b"hello"], b""),
        ("HEAD", "200 OK", [], [b"hel", b"lo"], b""),
    ],
)
@pytest.mark.parametrize("kind", [list, iter])
def test_responses_are_framed(
    serving: Callable[..., Serving],
    method: str,
    status: str,
    headers: list[tuple[str, str]],
    parts: list[bytes],
    body: bytes,
    kind: Callable[[list[bytes]], Iterable[bytes]],
) -> None:
    """Any valid response arrives unchanged, and the connection can be used again."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, headers)
        return kind(parts)

    server = serving(app)
    with contextlib.closing(server.connect()) as connection:
        for _ in range(2):
            assert deliver(connection, method=method) == (int(status[:3]), body)


def test_a_response_that_is_too_short_ends_the_connection(serving: Callable[..., Serving]) -> None:
    """If a body is shorter than its Content-Length, the connection is closed."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "10")])
        return [b"hello"]

    server = serving(app)
    with contextlib.closing(server.connect()) as connection, pytest.raises(http.client.IncompleteRead):
        deliver(connection)


def test_an_app_may_write_and_may_change_its_mind(serving: Callable[..., Serving]) -> None:
    """As in PEP 3333, write() precedes the iterable, and exc_info replaces a head that is not sent yet."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("X-First", "1")])
        try:
            raise KeyError("changed")
        except KeyError:
            write = start_response("202 Accepted", [], sys.exc_info())
        write(b"written, ")
        return [b"given"]

    server = serving(app)
    with contextlib.closing(server.connect()) as connection:
        assert deliver(connection) == (202, b"written, given")


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK\r\nX: y", []),
        ("OK", []),
        ("200 OK", [("X", "a\r\nY: b")]),
        ("200 OK", [("X\n", "a")]),
        ("200 OK", [("Connection", "close")]),
        ("200 OK", [("Content-Length", "many")]),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("X", "\u20ac")]),
    ],
)
def test_a_head_that_is_none_is_a_500(
    serving: Callable[..., Serving], status: str, headers: list[tuple[str, str]]
) -> None:
    """An invalid status or header, which could break the framing, gives a 500 instead."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, headers)
        return [b"never seen"]

    server = serving(app)
    with contextlib.closing(server.connect()) as connection:
        assert deliver(connection)[0] == 500


def test_a_stop_finishes_what_runs(serving: Callable[..., Serving]) -> None:
    """After a stop, a running delivery is finished and idle connections are closed."""
    began, may_end = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            began.set()
            assert may_end.wait(WAIT_SECONDS)
        start_response("200 OK", [])
        return [b"done"]

    server = serving(app)
    idle, running = server.connect(), server.connect()
    assert deliver(idle, method="GET") == (200, b"done")
    running.request("POST", "/", b"", {SERVER_TOKEN_HEADER: TOKEN})
    assert began.wait(WAIT_SECONDS)
    server.server.request_stop()
    assert idle.sock.recv(1) == b""
    may_end.set()
    response = running.getresponse()
    assert (response.status, response.read()) == (200, b"done")
    server.join()
    assert server.answered == [True]
    idle.close()
    running.close()


def test_what_has_arrived_is_answered_before_the_end(serving: Callable[..., Serving]) -> None:
    """A request that has arrived before the stop is still served."""
    began, may_end = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began.set()
        assert may_end.wait(WAIT_SECONDS)
        start_response("200 OK", [])
        return [b"done"]

    server = serving(app)
    request = f"GET / HTTP/1.1\r\n{SERVER_TOKEN_HEADER}: {TOKEN}\r\n\r\n".encode()
    with socket.create_connection(server.listener.getsockname(), timeout=WAIT_SECONDS) as client:
        client.sendall(request)
        assert began.wait(WAIT_SECONDS)
        client.sendall(request)
        server.server.request_stop()
        may_end.set()
        answers = b""
        while more := client.recv(1000):
            answers += more
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    server.join()
    assert server.answered == [True]


def test_what_does_not_end_is_cut_off(serving: Callable[..., Serving]) -> None:
    """After the grace period, a request that still runs loses its connection, and serve() returns False."""
    began, may_end = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began.set()
        may_end.wait(WAIT_SECONDS)
        start_response("200 OK", [])
        return []

    server = serving(app, grace_seconds=0.1)
    connection = server.connect()
    connection.request("GET", "/", headers={SERVER_TOKEN_HEADER: TOKEN})
    assert began.wait(WAIT_SECONDS)
    server.server.request_stop()
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    server.join()
    assert server.answered == [False]
    may_end.set()
    # Stopping leaves this open for waitress's threads that may still run.
    server.server._server.trigger.close()
    connection.close()


def test_a_client_that_has_gone_ends_the_response(serving: Callable[..., Serving]) -> None:
    """If the client is gone, streaming ends and the iterable is closed."""
    closed = threading.Event()

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            until = time.monotonic() + WAIT_SECONDS
            while time.monotonic() < until:
                yield bytes(100_000)

        def close(self) -> None:
            closed.set()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Endless()

    server = serving(app)
    connection = server.connect()
    connection.request("GET", "/", headers={SERVER_TOKEN_HEADER: TOKEN})
    connection.getresponse().read(10)
    connection.close()
    assert closed.wait(WAIT_SECONDS / 2)
