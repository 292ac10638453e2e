"""The head of a request, read into a WSGI environment.

This is for requests of the queue process, which writes them in one way only. So little is accepted, and whatever is odd
is refused; a request of anybody else is waitress's to read. What an app sees is the same from both.

The connections of an app process over which the queue process delivers tasks, each with a thread of its own.

Between a connection and the app there is no other thread then, to hand a request over to, which is what takes most of
the time of a server for everybody. So waitress accepts a connection, and if the first thing that comes over it is a
request that carries the delivery token, it is :meth:`adopted <DeliveryServer.adopt>`, until one side closes it.
"""

from __future__ import annotations

import hmac
import io
import logging
import queue
import re
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

from deferred_middleware.server.delivery.wsgi_response import WSGIResponse
from deferred_middleware.wire.protocol import SERVER_TOKEN_HEADER

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# https://www.rfc-editor.org/rfc/rfc9112#section-3
_FIRST_LINE = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Z]+) (/[\x21-\x7e]*) HTTP/1\.1")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._~:@!$&'()*+,;=-]*(?:/[A-Za-z0-9._~:@!$&'()*+,;=-]+)*/?")
_LENGTH = re.compile(r"[0-9]{1,10}")
# Only a proxy may say these, and there is none.
_OF_PROXIES = frozenset({"FORWARDED"} | {f"X_FORWARDED_{what}" for what in ("FOR", "HOST", "PROTO", "PORT", "BY")})
_UNPREFIXED = frozenset({"CONTENT_LENGTH", "CONTENT_TYPE"})
_MAX_BODY_BYTES = 1 << 30
_MAX_KNOWN_NAMES = 1000

# What names of headers become, which are the same in each request; "" for those that the app doesn't see.
_known_names: dict[str, str] = {}


class RequestError(ValueError):
    """A request can't be answered. ``status`` is what is answered instead."""

    def __init__(self, status: str) -> None:
        self.status = status
        super().__init__(status)


def read_head(head: bytes, environ: dict[str, Any]) -> int:
    """Put what a request's head says into ``environ``; return how many bytes its body has.

    ``head`` is without the empty line at its end. Raises :class:`RequestError` for one that the queue process would
    not send.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    matched = _FIRST_LINE.fullmatch(first)
    # A lone CR or LF may end a line for whoever reads it later.
    if matched is None or head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise RequestError("400 Bad Request")
    environ["REQUEST_METHOD"], target = matched.groups()
    environ["REQUEST_URI"] = target
    if _PLAIN_PATH.fullmatch(target):
        environ["PATH_INFO"], environ["QUERY_STRING"] = target, ""
    else:
        path, _, environ["QUERY_STRING"] = target.partition("#")[0].partition("?")
        environ["PATH_INFO"] = "/" + unquote_to_bytes(path).decode("latin-1").lstrip("/")
    for line in lines:
        name, colon, value = line.partition(":")
        key = _known_names.get(name)
        if key is None:
            key = _key(name)
        if not colon:
            raise RequestError("400 Bad Request")
        if key:
            value = value.strip(" \t")
            environ[key] = f"{environ[key]}, {value}" if key in environ else value
    if "HTTP_TRANSFER_ENCODING" in environ or "HTTP_EXPECT" in environ:
        raise RequestError("501 Not Implemented")
    length = environ.get("CONTENT_LENGTH", "0")
    if not _LENGTH.fullmatch(length):
        raise RequestError("400 Bad Request")
    if int(length) >= _MAX_BODY_BYTES:
        raise RequestError("413 Content Too Large")
    return int(length)


def _key(name: str) -> str:
    """Return under which key a header goes into the environment; an empty one for what the app is not to see."""
    if not _NAME.fullmatch(name):
        raise RequestError("400 Bad Request")
    folded = name.upper().replace("-", "_")
    key = folded if folded in _UNPREFIXED else f"HTTP_{folded}"
    if "_" in name or folded in _OF_PROXIES:
        key = ""
    if len(_known_names) < _MAX_KNOWN_NAMES:
        _known_names[name] = key
    return key


_log = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_MAX_HEAD_BYTES = 256 * 1024
_TOKEN_LINE = re.compile(rb"\r\n%b: ([^\r\n]*)\r\n" % SERVER_TOKEN_HEADER.encode(), re.IGNORECASE)


class Permits:
    """Lets so many requests run at a time, wherever they came in."""

    def __init__(self, number: int) -> None:
        # A semaphore of the threading module takes several times as long.
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(number):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_exc_info: object) -> None:
        self._free.put(None)


class DeliveryServer:
    """Answers by ``app`` what comes over the connections that it adopts, as long as there are ``permits``."""

    def __init__(self, app: WSGIApplication, *, delivery_token: str, permits: Permits, environ: dict[str, Any]) -> None:
        self._app = app
        self._token = delivery_token.encode()
        self._permits = permits
        self._environ = {
            **environ,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SCRIPT_NAME": "",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._stopping = False

    def sent(self, data: bytes) -> bool:
        """Tell whether ``data``, the first of a connection, begins with the whole head of a delivery."""
        end = data.find(b"\r\n\r\n")
        line = _TOKEN_LINE.search(data, 0, end + 2) if end >= 0 else None
        return line is not None and hmac.compare_digest(line[1], self._token)

    def adopt(self, connection: socket.socket, peer: tuple[str, int], data: bytes) -> None:
        """Answer what comes over a connection, beginning with ``data``, until it is closed.

        Has to be called after the app was imported: ``wrap_wsgi_app`` patches how threads are started.
        """
        connection.setblocking(True)
        with self._lock:
            self._open.add(connection)
        if self._stopping:
            self.request_stop()
        try:
            threading.Thread(target=self._serve, args=(connection, peer, data), name="delivery", daemon=True).start()
        except RuntimeError as error:
            _log.error("A delivery can't be answered: %s", error)
            self._close(connection)

    @property
    def is_busy(self) -> bool:
        """Whether there are connections. Once it was asked to stop that means that requests are being answered."""
        return bool(self._open)

    def request_stop(self) -> None:
        """Read no more than what has arrived; the connections are closed when that is answered."""
        self._stopping = True
        self._shut(socket.SHUT_RD)

    def cut_off(self) -> None:
        """Close the connections of what is still running."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(how)
                except OSError as error:
                    _log.debug("A connection was closed already: %s", error)

    def _serve(self, connection: socket.socket, peer: tuple[str, int], data: bytes) -> None:
        try:
            self._answer_all(connection, peer, data)
        except OSError as error:
            _log.debug("A connection broke off: %s", error)
        finally:
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _answer_all(self, connection: socket.socket, peer: tuple[str, int], data: bytes) -> None:
        host, port = peer[:2]
        base = {**self._environ, "REMOTE_ADDR": host, "REMOTE_HOST": host, "REMOTE_PORT": str(port)}
        closes = False
        while not closes:
            environ = base.copy()
            response = WSGIResponse(connection.sendall)
            try:
                head, data = _read_head(connection, data)
                if not head:
                    return
                length = read_head(head, environ)
            except RequestError as error:
                response.closes = True
                response.refuse(error.status, error.status.encode())
                return
            body, data = data[:length], data[length:]
            if len(body) < length:
                body += _read(connection, length - len(body))
                if len(body) < length:
                    return
            environ["wsgi.input"] = io.BytesIO(body)
            # Then it says so, and nobody sends another request over this connection.
            response.closes = self._stopping
            with self._permits:
                response.answer(self._app, environ)
            closes = response.closes


def _read_head(connection: socket.socket, data: bytes) -> tuple[bytes, bytes]:
    """Return the head of the next request, empty when there is none, and what comes after it; ``data`` comes first."""
    while True:
        head, found, rest = data.partition(b"\r\n\r\n")
        if found:
            return head, rest
        if len(data) > _MAX_HEAD_BYTES:
            raise RequestError("431 Request Header Fields Too Large")
        if not (more := connection.recv(_READ_BYTES)):
            return b"", b""
        data += more


def _read(connection: socket.socket, number: int) -> bytes:
    """Return the next ``number`` bytes, or fewer if that is all that comes."""
    data = bytearray()
    while len(data) < number and (more := connection.recv(min(number - len(data), 16 * _READ_BYTES))):
        data += more
    return bytes(data)
