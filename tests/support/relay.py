"""A relay between a client and a server, whose connections a test can cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

_BOUND_SECONDS = 10.0
_CHUNK_BYTES = 65_536


class Relay:
    """Relays TCP connections to ``upstream``, as a context manager."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Relay:
        """Start."""
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and cut all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(_BOUND_SECONDS)
            assert not thread.is_alive()
        for connection in self._connections:
            connection.close()

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, name="relay", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                theirs, _ = self._listener.accept()
            except OSError:
                return  # the end
            ours = socket.create_connection(self._upstream)
            with self._lock:
                self._connections += [theirs, ours]
            self._start(self._copy, theirs, ours)
            self._start(self._copy, ours, theirs)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK_BYTES):
                sink.sendall(chunk)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
