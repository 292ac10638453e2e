"""Parsing responses from services, however the bytes arrive, and connections with a deadline."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from deferred_middleware.server.delivery.connections import Response, ServiceConnection
from hypothesis import given
from hypothesis import strategies as st

RESPONSES = {
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "the same length twice": (b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", 200, b"hello", True),
    "no reason phrase": (b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", 404, b"", True),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "chunks": (
        b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\n\r\n",
        500,
        b"hello, world",
        True,
    ),
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\na\r\n\r\n0\r\nX: y\r\nZ: z\r\n\r\n",
        200,
        b"a\r\n",
        True,
    ),
    "until the end": (b"HTTP/1.1 200 OK\r\n\r\nhello", 200, b"hello", False),
    "to be closed": (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
    "HTTP/1.0, kept": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
        200,
        b"hi",
        True,
    ),
    "an interim response": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\n.",
        201,
        b".",
        True,
    ),
    "more than was asked for": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi there", 200, b"hi", False),
}


def whole(response: Response) -> bytes:
    """Read a response to its end."""
    response.read_head()
    body = b""
    while part := response.read():
        body += part
    return body


@pytest.mark.parametrize("kind", RESPONSES)
@given(data=st.data())
def test_a_response_is_the_same_however_it_is_cut(kind: str, data: st.DataObject) -> None:
    """Status, body and reuse of the connection don't depend on how the bytes are split."""
    sent, status, body, kept = RESPONSES[kind]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1))))
    parts = iter([sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)])
    response = Response(lambda: next(parts, b""))
    assert whole(response) == body
    assert response.status == status
    if kind != "more than was asked for":
        # Extra bytes that have not arrived yet are detected before the connection is reused.
        assert response.keeps_connection == kept


def test_what_nobody_asked_for_ends_the_connection() -> None:
    """If more bytes than the response arrive, the connection is not reused."""
    sent, _status, body, kept = RESPONSES["more than was asked for"]
    parts = iter([sent])
    response = Response(lambda: next(parts, b""))
    assert whole(response) == body
    assert response.keeps_connection is kept


def test_a_response_to_head_has_no_body() -> None:
    """A response to HEAD ends after its head, whatever its Content-Length."""
    parts = iter([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"])
    response = Response(lambda: next(parts), has_body=False)
    assert whole(response) == b""
    assert response.keeps_connection


def test_headers_are_found_in_any_case() -> None:
    """Header names are case-insensitive, and repeated headers are joined with commas."""
    parts = iter([b"HTTP/1.1 200 OK\r\nX-One: a\r\nx-one:b \r\nContent-Length: 0\r\n\r\n"])
    response = Response(lambda: next(parts))
    response.read_head()
    assert response.header("X-ONE") == "a, b"
    assert response.header("X-Two") is None


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", http.client.RemoteDisconnected),
        (b"HTTP/1.1 200 OK\r\nContent-", http.client.BadStatusLine),
        (b"SMTP 200\r\n\r\n", http.client.BadStatusLine),
        (b"HTTP/1.1 2000 OK\r\n\r\n", http.client.BadStatusLine),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhal", http.client.IncompleteRead),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4, 5\r\n\r\nhalf", http.client.HTTPException),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhalf", http.client.HTTPException),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhal", http.client.IncompleteRead),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", http.client.IncompleteRead),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n", http.client.IncompleteRead),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\nhalf\r\n", http.client.HTTPException),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhalf\r\n0\r\n\r\n", http.client.HTTPException),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, http.client.LineTooLong),
    ],
)
def test_what_is_no_whole_response_is_an_error(sent: bytes, error: type[Exception]) -> None:
    """Incomplete responses, conflicting lengths and garbage raise an error."""
    parts = iter([sent])
    with pytest.raises(error):
        whole(Response(lambda: next(parts, b"")))


@contextlib.contextmanager
def peer(serve: Callable[[socket.socket], object]) -> Iterator[ServiceConnection]:
    """A connection to a real socket whose other end is passed to ``serve``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            accepted, _address = listener.accept()
            with accepted:
                serve(accepted)

        thread = threading.Thread(target=accept)
        thread.start()
        connection = ServiceConnection(*listener.getsockname()[:2])
        try:
            yield connection
        finally:
            connection.close()
            thread.join(10)


def test_reading_goes_on_where_it_was() -> None:
    """An incomplete response can be read further when more bytes arrive, without losing any."""
    go_on = threading.Event()

    def serve(accepted: socket.socket) -> None:
        accepted.recv(100)
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
        assert go_on.wait(10)
        accepted.sendall(b"ngth: 2\r\n\r\nhi")

    with peer(serve) as connection:
        connection.send(b"request")
        connection.wait(time.monotonic() + 10)
        response = Response(connection.receive)
        with pytest.raises(BlockingIOError):
            response.read_head()
        go_on.set()
        while True:
            connection.wait(time.monotonic() + 10)
            with contextlib.suppress(BlockingIOError):
                assert whole(response) == b"hi"
                break


def test_a_service_that_does_not_read_holds_nobody_up() -> None:
    """If a service doesn't read, sending a large request doesn't block; the rest is sent later."""
    go_on = threading.Event()
    size = 50_000_000
    arrived: list[int] = []

    def serve(accepted: socket.socket) -> None:
        assert go_on.wait(10)
        while sum(arrived) < size:
            arrived.append(len(accepted.recv(1_000_000)))

    with peer(serve) as connection:
        connection.send(bytes(size))
        assert connection.awaited == select.POLLOUT
        with pytest.raises(BlockingIOError):
            connection.flush()
        go_on.set()
        while connection.awaited == select.POLLOUT:
            connection.wait(time.monotonic() + 10)
            with contextlib.suppress(BlockingIOError):
                connection.flush()
    assert sum(arrived) == size


def test_waiting_ends_at_its_time() -> None:
    """If nothing arrives, the wait ends at its deadline."""
    over = threading.Event()
    with peer(lambda accepted: over.wait(10)) as connection:
        connection.send(b"request")
        until = time.monotonic() + 0.05
        connection.wait(until)
        assert until <= time.monotonic() < until + 5
        over.set()


def test_a_connection_on_which_something_came_unasked_is_not_usable() -> None:
    """A connection with unread bytes is not usable, because they would be taken for the next response."""
    sent = threading.Event()

    def serve(accepted: socket.socket) -> None:
        accepted.recv(100)
        accepted.sendall(b"x")
        sent.set()
        # The client closes the connection with a byte unread, which resets it.
        with contextlib.suppress(ConnectionResetError):
            accepted.recv(100)

    with peer(serve) as connection:
        connection.send(b"request")
        connection.idle_since = time.monotonic()
        assert sent.wait(10)
        until = time.monotonic() + 10
        while connection.usable(10):
            assert time.monotonic() < until
