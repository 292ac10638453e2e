"""The request of a cron job."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from deferred_middleware.server.config.services import Service
from deferred_middleware.server.cron_request import send_cron_request


def _service(port: int, *, external: bool) -> Service:
    return Service(name="default", version="local", host="127.0.0.1", port=port, concurrency=1, external=external)


def _answer(listener: socket.socket, received: list[bytes], response: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        received.append(connection.recv(65536))
        connection.sendall(response)


@pytest.mark.parametrize("external", [False, True])
def test_the_request_has_the_headers_of_the_platform(external: bool) -> None:
    """It is a GET with the platform's header; only the server's own processes get the token."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        response = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"
        thread: Any = threading.Thread(target=_answer, args=(listener, received, response))
        thread.start()
        service = _service(listener.getsockname()[1], external=external)
        answer = send_cron_request(service, "/clean?x=1", host="v2.localhost:8080", delivery_token="secret")
        thread.join()
    assert answer == (201, b"ok")
    (request,) = received
    assert request.startswith(b"GET /clean?x=1 HTTP/1.1\r\n")
    assert b"\r\nX-Appengine-Cron: true\r\n" in request
    assert b"\r\nHost: v2.localhost:8080\r\n" in request
    assert (b"secret" in request) is not external


def test_no_answer_is_an_error() -> None:
    """Whatever is wrong with the connection or the response is one kind of error."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread: Any = threading.Thread(target=_answer, args=(listener, received, b"nonsense\r\n\r\n"))
        thread.start()
        service = _service(listener.getsockname()[1], external=False)
        with pytest.raises(OSError, match="nonsense"):
            send_cron_request(service, "/", host="x", delivery_token="t")
        thread.join()
    with pytest.raises(OSError, match="URL"):
        send_cron_request(service, "/a b\r\nX: y", host="x", delivery_token="t")
