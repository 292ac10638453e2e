"""The connections of the app processes that run here, for API calls: the queue process's end.

An app process could use HTTP, as the SDK's client does. These connections need no listener that others could reach, no
parsing, and no hand-over between threads: the thread that reads a call also answers it. An app process inherits one
end of a socket pair, the *control socket*. To open a connection, it makes another pair and sends one end of it over the
control socket. A connection carries one call at a time. Each request and each answer is a frame: four bytes with its
length, most significant byte first, and the bytes of a ``remote_api`` message, as over HTTP.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

logger: Final = logging.getLogger(__name__)

MAX_FRAME_BYTES = 256 << 20
"""Longest frame. The SDK's own limit is 32 MB for a request; an answer may be longer."""

_LENGTH = struct.Struct(">I")
_READ_BYTES = 256 * 1024


class FrameError(ConnectionError):
    """What was received is no frame, or only a part of one."""


def send_frame(connection: socket.socket, data: bytes) -> None:
    """Send a frame."""
    if len(data) > MAX_FRAME_BYTES:
        raise FrameError(f"{len(data)} bytes are too many for one message")
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(connection: socket.socket) -> bytes | None:
    """Return the bytes of the next frame, or ``None`` at the end of the connection.

    No frame may follow it before the answer. Raises :class:`FrameError`, and :class:`OSError` if the connection fails.
    """
    received = connection.recv(_READ_BYTES)
    if not received:
        return None
    while len(received) < _LENGTH.size:
        received += _more(connection, _LENGTH.size - len(received))
    (length,) = _LENGTH.unpack_from(received)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {length} bytes was announced")
    missing = _LENGTH.size + length - len(received)
    if not missing:
        return received[_LENGTH.size :]
    if missing < 0:
        raise FrameError("something follows the message")
    parts = [received[_LENGTH.size :]]
    while missing:
        part = _more(connection, missing)
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _more(connection: socket.socket, missing: int) -> bytes:
    part = connection.recv(min(missing, _READ_BYTES))
    if not part:
        raise FrameError("the connection ended within a message")
    return part


class ApiConnections:
    """Answers what the app processes send over their connections; ``answer`` is called by several threads."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def control_socket(self, service: str) -> socket.socket:
        """Return a control socket for a process of ``service``; the caller passes it on, and closes it here."""
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._accept, args=(ours,), name=f"api-{service}", daemon=True).start()
        return theirs

    def _accept(self, control: socket.socket) -> None:
        """Serve the connections that arrive over a control socket, until the process at its other end has ended."""
        with control:
            try:
                while True:
                    data, descriptors, _flags, _address = socket.recv_fds(control, 1, 1)
                    if not data:
                        return
                    for descriptor in descriptors:
                        self._start(socket.socket(fileno=descriptor))
            except OSError as error:
                logger.error("An app process can open no more connections for API calls: %s", error)

    def _start(self, connection: socket.socket) -> None:
        try:
            threading.Thread(target=self._serve, args=(connection,), name="api-connection", daemon=True).start()
        except RuntimeError as error:
            # The app's call fails at once.
            connection.close()
            logger.error("A connection for API calls was refused: %s", error)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while (request := receive_frame(connection)) is not None:
                    send_frame(connection, self._answer(request))
            except FrameError as error:
                logger.error("A connection for API calls is closed: %s", error)
            except OSError as error:
                logger.debug("A connection for API calls broke off: %s", error)
