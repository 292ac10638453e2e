"""The error page on a real socket: what browsers, other clients and the queue process get."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest

from deferred_middleware.server.apps.error_page import ErrorPage, serving_error_page

WAIT_SECONDS = 30.0
PAGE = ErrorPage("default", "Importing main failed: <b> & \udcff", 'File "main.py"\n</pre><script>')


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket, as the queue process has it for each service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def ask(listener: socket.socket, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Return the status, the content type and the body of the answer."""
    host, port = listener.getsockname()
    connection = http.client.HTTPConnection(host, port, timeout=WAIT_SECONDS)
    try:
        connection.request(
            method, "/some/path", headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def test_every_request_gets_the_traceback(listener: socket.socket) -> None:
    """Browsers get HTML with everything escaped, others text."""
    with serving_error_page(PAGE, listener):
        status, kind, body = ask(listener, Accept="text/html,*/*")
        assert (status, kind) == (500, "text/html; charset=utf-8")
        assert "failed: &lt;b&gt; &amp; \\udcff" in body
        assert "File &quot;main.py&quot;\n&lt;/pre&gt;&lt;script&gt;" in body
        status, kind, body = ask(listener, "POST")
        assert (status, kind) == (500, "text/plain; charset=utf-8")
        assert 'File "main.py"\n</pre><script>' in body
        assert ask(listener, "HEAD")[2] == ""


def test_the_socket_stays_open(listener: socket.socket) -> None:
    """Afterwards, requests wait in the socket's backlog for the next process."""
    with serving_error_page(PAGE, listener):
        pass
    client = socket.create_connection(listener.getsockname(), WAIT_SECONDS)
    listener.settimeout(WAIT_SECONDS)
    accepted, _address = listener.accept()
    accepted.close()
    client.close()
