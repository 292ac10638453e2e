"""One port for gRPC and for REST."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.cloud_tasks.port import SharedPort

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Echo:
    """Two servers that answer with their name and what they got, until the client ends its side."""

    def __init__(self, folder: str) -> None:
        self.grpc_socket, self.http_socket = f"{folder}/grpc", f"{folder}/http"
        self.stopped = False
        self._listeners = []
        for path, name in ((self.grpc_socket, b"grpc "), (self.http_socket, b"http ")):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen(50)
            self._listeners.append(listener)
            threading.Thread(target=self._serve, args=(listener, name), daemon=True).start()

    def _serve(self, listener: socket.socket, name: bytes) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._answer, args=(connection, name), daemon=True).start()

    def _answer(self, connection: socket.socket, name: bytes) -> None:
        with connection, contextlib.suppress(OSError):
            data = b""
            while part := connection.recv(65536):
                data += part
            connection.sendall(name + data)

    def stop(self) -> None:
        """Close the listeners."""
        self.stopped = True
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Open a port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def folder() -> Iterator[str]:
    """Make a folder with a short path."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def ask(listener: socket.socket, *parts: bytes) -> bytes:
    """Send the parts over a connection, and return what comes back."""
    with socket.create_connection(listener.getsockname(), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        data = b""
        while part := connection.recv(65536):
            data += part
        return data


def test_the_first_bytes_choose_the_server(listener: socket.socket, folder: str) -> None:
    """HTTP/2 goes to gRPC, everything else to REST, however the first bytes are cut."""
    servers = Echo(folder)
    port = SharedPort(listener, lambda: servers)
    port.start()
    try:
        assert ask(listener, PREFACE + b"frames") == b"grpc " + PREFACE + b"frames"
        assert ask(listener, b"P", b"RI * HTTP", b"/2.0\r\n\r\nSM\r\n\r\n") == b"grpc " + PREFACE
        for request in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/1.1\r\n\r\n",
            b"PROPFIND / HTTP/1.1\r\n\r\n",
            b"\x16\x03",
        ):
            assert ask(listener, request[:2], request[2:]) == b"http " + request
        large = bytes(3_000_000)
        assert ask(listener, PREFACE, large) == b"grpc " + PREFACE + large
        assert ask(listener) == b""
    finally:
        port.stop()
    assert servers.stopped


def test_the_servers_start_with_the_first_client(listener: socket.socket, folder: str) -> None:
    """They are started once, and not before somebody needs them."""
    started: list[Echo] = []

    def start() -> Echo:
        started.append(Echo(folder))
        return started[-1]

    port = SharedPort(listener, start)
    port.start()
    try:
        assert started == []
        threads = [threading.Thread(target=ask, args=(listener, b"GET / HTTP/1.1\r\n\r\n")) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(started) == 1
    finally:
        port.stop()


def test_servers_that_can_not_start(listener: socket.socket, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    """A client hears why, and a later one has it tried again."""
    outcomes: list[ServerError | None] = [ServerError("No packages."), ServerError("No packages."), None]

    def start() -> Echo:
        failure = outcomes.pop(0)
        if failure is not None:
            raise failure
        return Echo(folder)

    port = SharedPort(listener, start)
    port.start()
    try:
        answer = ask(listener, b"GET / HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"No packages." in answer
        assert ask(listener, PREFACE) == b""
        assert "No packages." in caplog.text
        assert ask(listener, b"GET / HTTP/1.1\r\n\r\n").startswith(b"http ")
    finally:
        port.stop()


def test_stopping_closes_connections(listener: socket.socket, folder: str) -> None:
    """Idle connections don't keep the server from stopping."""
    port = SharedPort(listener, lambda: Echo(folder))
    port.start()
    port.start_servers()
    with (
        socket.create_connection(listener.getsockname(), timeout=20) as idle,
        socket.create_connection(listener.getsockname(), timeout=20) as busy,
    ):
        busy.sendall(PREFACE)
        # Connections are accepted in their order, so the other two are now.
        ask(listener, b"GET / HTTP/1.1\r\n\r\n")
        port.stop()
        for connection in (busy, idle):
            # The end of a connection with unread data is a reset.
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""


def test_a_port_that_was_not_started_can_be_stopped(listener: socket.socket, tmp_path: Path) -> None:
    """Stopping does nothing then."""
    SharedPort(listener, lambda: Echo(str(tmp_path))).stop()
