"""Request heads: the ``environ`` that they give, and which ones are refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from deferred_middleware.server.delivery.delivery_server import RequestError, read_head

from deferred_middleware.server.apps.app_server import AppServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ODD = {
    "no version": (b"POST /x", "400"),
    "HTTP/1.0": (b"POST /x HTTP/1.0", "400"),
    "no path": (b"POST http://host/x HTTP/1.1", "400"),
    "a space": (b"POST /x y HTTP/1.1", "400"),
    "a lower-case method": (b"post /x HTTP/1.1", "400"),
    "a lone LF": (b"POST /x HTTP/1.1\r\nA: b\nC: d", "400"),
    "a lone CR": (b"POST /x HTTP/1.1\r\nA: b\rC: d", "400"),
    "a NUL": (b"POST /x HTTP/1.1\r\nA: \0", "400"),
    "no colon": (b"POST /x HTTP/1.1\r\nA", "400"),
    "no name": (b"POST /x HTTP/1.1\r\n: a", "400"),
    "a space before the colon": (b"POST /x HTTP/1.1\r\nA : b", "400"),
    "a folded line": (b"POST /x HTTP/1.1\r\nA: b\r\n c: d", "400"),
    "no length": (b"POST /x HTTP/1.1\r\nContent-Length: +1", "400"),
    "a negative length": (b"POST /x HTTP/1.1\r\nContent-Length: -1", "400"),
    "two lengths": (b"POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1", "400"),
    "an endless length": (b"POST /x HTTP/1.1\r\nContent-Length: 99999999999", "400"),
    "a huge length": (b"POST /x HTTP/1.1\r\nContent-Length: 1073741824", "413"),
    "chunks": (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked", "501"),
    "an expectation": (b"POST /x HTTP/1.1\r\nExpect: 100-continue", "501"),
}
SAME = [
    b"POST /_cb/deferred/shop.mail/send HTTP/1.1\r\nHost: a\r\nContent-Type: x\r\nContent-Length: 3",
    b"GET /a%20b/%2F?x=1&y=%20 HTTP/1.1\r\nHost: a",
    b"GET //a//b HTTP/1.1\r\nHost: a",
    b"GET /?q HTTP/1.1\r\nHost: a",
    b"GET /a;b=c:d@e#f?g HTTP/1.1\r\nHost: a",
    b"PUT / HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nx-two: 2\r\nX-Empty:\r\nX-Tab: \t a b \t",
    b"GET / HTTP/1.1\r\nHost: a\r\nX_Under: 1\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=x\r\nX-Latin: \xe9",
]


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_refused(kind: str) -> None:
    """A head that the queue process wouldn't send is refused with an error status."""
    head, status = ODD[kind]
    with pytest.raises(RequestError) as caught:
        read_head(head, {})
    assert caught.value.status.startswith(status)


@pytest.fixture(scope="module")
def seen_from_waitress() -> Iterator[dict[bytes, dict[str, Any]]]:
    """The ``environ`` of each request as an app behind waitress sees it."""
    seen: list[dict[str, Any]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(dict(environ))
        start_response("200 OK", [("Content-Length", "0")])
        return []

    listener = socket.create_server(("127.0.0.1", 0))
    server = AppServer(app, listener, threads=1)
    address = listener.getsockname()
    thread = threading.Thread(target=server.serve)
    thread.start()
    for head in SAME:
        with socket.create_connection(address) as client:
            client.sendall(head + b"\r\n\r\nabc")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
    yield dict(zip(SAME, seen, strict=True))
    server.request_stop()
    thread.join(10)


@pytest.mark.parametrize("head", SAME)
def test_an_app_sees_the_same_as_from_waitress(head: bytes, seen_from_waitress: dict[bytes, dict[str, Any]]) -> None:
    """The ``environ`` is the same as waitress makes of the request."""
    environ: dict[str, Any] = {}
    assert read_head(head, environ) == (3 if b"Content-Length" in head else 0)
    expected = {
        key: value
        for key, value in seen_from_waitress[head].items()
        if key.startswith(("HTTP_", "CONTENT_"))
        or key in ("REQUEST_METHOD", "REQUEST_URI", "PATH_INFO", "QUERY_STRING")
    }
    assert environ == expected
