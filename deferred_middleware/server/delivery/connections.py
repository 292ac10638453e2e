"""Persistent, non-blocking HTTP/1.1 connections to a service, so that one thread can use many of them.

``http.client`` does much work for each request that is not needed here; it took more time than everything else that
the queue process does for a task. A subset of HTTP is enough: one request at a time, whose head is given, and of the
response the status, one header and the body. Framing: https://www.rfc-editor.org/rfc/rfc9112#section-6.3

If a method raises :class:`BlockingIOError`, call it again when the connection is ready, and it continues.
"""

from __future__ import annotations

import errno
import http.client
import logging
import math
import os
import re
import select
import socket
import time
from collections.abc import Callable
from typing import Final

logger: Final = logging.getLogger(__name__)

_READ_BYTES = 64 * 1024
_MAX_HEAD_BYTES = 256 * 1024
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;|$)")


class ServiceConnection:
    """A connection to a service; sending the first request opens it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._poll = select.poll()
        self._unsent: bytes | memoryview = b""
        self.idle_since: float = 0.0
        # How often receive() may still read, so that an endless response doesn't block the thread's other connections.
        self.reads_left: float = math.inf

    def usable(self, idle_seconds: float) -> bool:
        """Return whether the connection is open, not idle for more than ``idle_seconds``, and has nothing to read."""
        if self._socket is None or time.monotonic() - self.idle_since > idle_seconds:
            return False
        return not self._poll.poll(0)

    def fileno(self) -> int:
        """Return the file descriptor, or -1 if the connection is closed."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def awaited(self) -> int:
        """The events that the connection waits for, as :mod:`select` defines them."""
        return select.POLLOUT if self._unsent else select.POLLIN

    def send(self, data: bytes) -> None:
        """Send as much of a request as the socket takes; :meth:`flush` sends the rest."""
        if self._socket is None:
            self._socket = self._connect()
        self._unsent = data
        try:
            self.flush()
        except BlockingIOError:
            logger.debug("A service reads a request slowly.")

    def flush(self) -> None:
        """Send the rest of a request. Raises :class:`BlockingIOError` while some of it is unsent."""
        while self._unsent:
            if self._socket is None:
                raise BrokenPipeError("the connection is closed")
            sent = self._socket.send(self._unsent)
            self._unsent = memoryview(self._unsent)[sent:] if sent < len(self._unsent) else b""

    def receive(self) -> bytes:
        """Return the next data, or ``b""`` at the end of the connection.

        Raises :class:`BlockingIOError` if there is no data yet, and after ``reads_left`` calls.
        """
        if not self.reads_left:
            raise BlockingIOError(errno.EAGAIN, "other connections have their turn")
        self.reads_left -= 1
        return b"" if self._socket is None else self._socket.recv(_READ_BYTES)

    def wait(self, until: float) -> None:
        """Wait until the connection is ready, at most until ``until`` on the monotonic clock."""
        waiting = select.poll()
        waiting.register(self.fileno(), self.awaited)
        waiting.poll(milliseconds_until(until))

    def shut_down(self) -> None:
        """End the connection while another thread may be using it."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                logger.debug("A connection was closed already: %s", error)

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        # Resolving a name may take a while, but only attempts for the same name wait for it.
        family, kind, proto, _name, address = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, proto)
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setblocking(False)
            # If connecting fails later, sending raises the error.
            error = opened.connect_ex(address)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
        except BaseException:
            opened.close()
            raise
        self._poll = select.poll()
        self._poll.register(opened, select.POLLIN)
        return opened


def milliseconds_until(until: float) -> int | None:
    """Return the timeout for :meth:`select.poll.poll` that ends at ``until`` on the monotonic clock."""
    if until == math.inf:
        return None
    # Round up, so that the caller doesn't poll repeatedly in the last millisecond. The maximum fits into a C int.
    return max(0, min(math.ceil((until - time.monotonic()) * 1000), 1_000_000_000))


class Response:
    """Parses the response that ``receive`` returns in parts, as :meth:`ServiceConnection.receive` does.

    Reading raises :class:`http.client.HTTPException` if the response is invalid or incomplete, and whatever ``receive``
    raises. ``has_body`` is false for a response to HEAD.
    """

    def __init__(self, receive: Callable[[], bytes], *, has_body: bool = True) -> None:
        self._receive_some = receive
        self._has_body = has_body
        self._buffer = bytearray()
        self._headers: dict[bytes, bytes] = {}
        # How many bytes of the body or chunk are still to be read; None: all until the end of the connection.
        self._left: int | None = 0
        self._chunked = False
        self._chunk_ends = False
        self._persistent = False
        self._ended = False
        self.status: int = 0

    @property
    def keeps_connection(self) -> bool:
        """Whether the connection may be reused: the whole response was read, and no bytes follow it."""
        return self._persistent and self._ended and not self._buffer

    def header(self, name: str) -> str | None:
        """Return a header's value, in which each character stands for one byte, or None."""
        value = self._headers.get(name.lower().encode())
        return None if value is None else value.decode("latin-1")

    def read_head(self) -> None:
        """Read the head of the response."""
        while not self.status:
            end = self._buffer.find(b"\r\n\r\n")
            if end >= 0:
                head = bytes(self._buffer[:end])
                del self._buffer[: end + 4]
                self._parse_head(head)
            elif len(self._buffer) > _MAX_HEAD_BYTES:
                raise http.client.LineTooLong("response's head")
            elif not self._receive():
                if self._buffer:
                    raise http.client.BadStatusLine(repr(bytes(self._buffer[:100])))
                raise http.client.RemoteDisconnected("the service closed the connection without a response")

    def read(self) -> bytes:
        """Return more of the body, or ``b""`` at its end."""
        while not self._ended:
            if self._left is None:
                if not self._buffer and not self._receive():
                    self._ended = True
                    break
                return self._take(len(self._buffer))
            if self._left:
                if not self._buffer and not self._receive():
                    raise http.client.IncompleteRead(b"", self._left)
                data = self._take(self._left)
                self._left -= len(data)
                return data
            if self._chunked:
                self._next_chunk()
            else:
                self._ended = True
        return b""

    def _receive(self) -> bool:
        data = self._receive_some()
        self._buffer += data
        return bool(data)

    def _take(self, number: int) -> bytes:
        data = bytes(self._buffer[:number])
        del self._buffer[:number]
        return data

    def _parse_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit() or rest[3:4].strip():
            raise http.client.BadStatusLine(repr(first[:100]))
        status = int(rest[:3])
        if 100 <= status < 200 and status != 101:
            return  # an interim response; the final one follows
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if colon:
                name, value = name.lower(), value.strip(b" \t")
                headers[name] = headers[name] + b", " + value if name in headers else value
        self._headers = headers
        self._frame(status)
        said = headers.get(b"connection", b"").lower()
        self._persistent = b"close" not in said if version == b"HTTP/1.1" else b"keep-alive" in said
        if self._left is None:
            self._persistent = False
        self.status = status

    def _frame(self, status: int) -> None:
        if not self._has_body or status in (204, 304):
            self._ended = True
        elif b"transfer-encoding" in self._headers:
            self._chunked = self._headers[b"transfer-encoding"].lower().endswith(b"chunked")
            self._left = 0 if self._chunked else None
        elif b"content-length" in self._headers:
            # If the header is repeated with the same value, use that value.
            lengths = {length.strip() for length in self._headers[b"content-length"].split(b",")}
            length = lengths.pop()
            if lengths or not length.isdigit():
                raise http.client.HTTPException(f"no length: {self._headers[b'content-length']!r}")
            self._left = int(length)
        else:
            self._left = None

    def _next_chunk(self) -> None:
        """Read the line with the next chunk's length, or the trailers after the last chunk."""
        start = 2 if self._chunk_ends else 0
        end = self._buffer.find(b"\r\n", start)
        if end >= 0:
            size = _CHUNK_SIZE.match(self._buffer, start, end)
            if size is None or self._buffer[:start].strip():
                raise http.client.HTTPException(f"no chunk: {bytes(self._buffer[:100])!r}")
            self._left = int(size[1], 16)
            if self._left:
                del self._buffer[: end + 2]
                self._chunk_ends = True
                return
            # Trailers may follow; an empty line ends the body.
            final = self._buffer.find(b"\r\n\r\n", end)
            if final >= 0:
                del self._buffer[: final + 4]
                self._ended = True
                return
        if len(self._buffer) > _MAX_HEAD_BYTES:
            raise http.client.LineTooLong("end of a chunk")
        if not self._receive():
            raise http.client.IncompleteRead(b"")
