"""Answer the queue process's requests in an app process, with a thread for each connection.

A general server passes each request to another thread, which takes most of the server's time. Here the thread that
reads a connection also calls the app. Waitress accepts all connections. If the first request of a connection has the
delivery token, this server :meth:`adopts <DeliveryServer.adopt>` the connection until one side closes it.

The queue process writes all its requests in one form. This server accepts only that form and refuses anything else;
waitress reads the requests of all other clients. The app sees the same environment from both.
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
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

from deferred_middleware.server.delivery.wsgi_response import WSGIResponse
from deferred_middleware.wire.protocol import SERVER_TOKEN_HEADER

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger: Final = logging.getLogger(__name__)

# https://www.rfc-editor.org/rfc/rfc9112#section-3
_FIRST_LINE = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Z]+) (/[\x21-\x7e]*) HTTP/1\.1")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._~:@!$&'()*+,;=-]*(?:/[A-Za-z0-9._~:@!$&'()*+,;=-]+)*/?")
_LENGTH = re.compile(r"[0-9]{1,10}")
# Only a proxy may send these headers, and there is no proxy.
_OF_PROXIES = frozenset({"FORWARDED"} | {f"X_FORWARDED_{what}" for what in ("FOR", "HOST", "PROTO", "PORT", "BY")})
_UNPREFIXED = frozenset({"CONTENT_LENGTH", "CONTENT_TYPE"})
_MAX_BODY_BYTES = 1 << 30
_MAX_KNOWN_NAMES = 1000

# Maps header names to environment keys, because they repeat in each request; "" for headers that the app must not see.
_known_names: dict[str, str] = {}


class RequestError(ValueError):
    """A request can't be read. ``status`` is the response's status."""

    def __init__(self, status: str) -> None:
        self.status = status
        super().__init__(status)


def read_head(head: bytes, environ: dict[str, Any]) -> int:
    """Read a request's head into ``environ``; return the length of the body in bytes.

    ``head`` excludes the empty line at its end. Raises :class:`RequestError` if the queue process would not send such a
    head.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    matched = _FIRST_LINE.fullmatch(first)
    # Code that reads the headers later may treat a lone CR or LF as the end of a line.
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
    """Return a header's environment key, or "" if the app must not see the header."""
    if not _NAME.fullmatch(name):
        raise RequestError("400 Bad Request")
    folded = name.upper().replace("-", "_")
    key = folded if folded in _UNPREFIXED else f"HTTP_{folded}"
    if "_" in name or folded in _OF_PROXIES:
        key = ""
    if len(_known_names) < _MAX_KNOWN_NAMES:
        _known_names[name] = key
    return key


_READ_BYTES = 64 * 1024
_MAX_HEAD_BYTES = 256 * 1024
_TOKEN_LINE = re.compile(rb"\r\n%b: ([^\r\n]*)\r\n" % SERVER_TOKEN_HEADER.encode(), re.IGNORECASE)


class Permits:
    """Limits how many requests run at the same time, from waitress and from the queue process together."""

    def __init__(self, number: int) -> None:
        # threading.Semaphore is several times slower.
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(number):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_exc_info: object) -> None:
        self._free.put(None)


class DeliveryServer:
    """Answers the requests of adopted connections with ``app``, at most as many at a time as ``permits`` allows."""

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
        # Guards _open.
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        # The thread that stops the server sets this; the connections' threads read it.
        self._stopping = False

    def sent(self, data: bytes) -> bool:
        """Return whether ``data``, the first data of a connection, has a complete head with the token."""
        end = data.find(b"\r\n\r\n")
        line = _TOKEN_LINE.search(data, 0, end + 2) if end >= 0 else None
        return line is not None and hmac.compare_digest(line[1], self._token)

    def adopt(self, connection: socket.socket, peer: tuple[str, int], data: bytes) -> None:
        """Answer the requests of a connection until it is closed. ``data`` is the beginning of the first request.

        Call this only after the app was imported, because ``wrap_wsgi_app`` patches how threads are started.
        """
        connection.setblocking(True)
        with self._lock:
            self._open.add(connection)
        if self._stopping:
            self.request_stop()
        try:
            threading.Thread(target=self._serve, args=(connection, peer, data), name="delivery", daemon=True).start()
        except RuntimeError as error:
            logger.error("A delivery can't be answered: %s", error)
            self._close(connection)

    @property
    def is_busy(self) -> bool:
        """Whether there are connections. After :meth:`request_stop` these are connections with unanswered requests."""
        return bool(self._open)

    def request_stop(self) -> None:
        """Read only what has already arrived, and close each connection when its requests are answered."""
        self._stopping = True
        self._shut(socket.SHUT_RD)

    def cut_off(self) -> None:
        """Close the connections whose requests still run."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(how)
                except OSError as error:
                    logger.debug("A connection was closed already: %s", error)

    def _serve(self, connection: socket.socket, peer: tuple[str, int], data: bytes) -> None:
        try:
            self._answer_all(connection, peer, data)
        except OSError as error:
            logger.debug("A connection broke: %s", error)
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
            # If closes is set, the response says so, and the queue process sends no more requests on this connection.
            response.closes = self._stopping
            with self._permits:
                response.answer(self._app, environ)
            closes = response.closes


def _read_head(connection: socket.socket, data: bytes) -> tuple[bytes, bytes]:
    """Return the next request's head and the data after it; the head is empty if there is none.

    ``data`` is what was read before.
    """
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
    """Return the next ``number`` bytes, or fewer if the connection ends."""
    data = bytearray()
    while len(data) < number and (more := connection.recv(min(number - len(data), 16 * _READ_BYTES))):
        data += more
    return bytes(data)
