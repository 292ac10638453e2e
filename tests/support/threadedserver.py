"""Servers in the tests' own process that leave no thread behind.

Every call of ``wrap_wsgi_app`` reloads the threading module. A thread that started before the reload ends with a
KeyError, possibly during another test.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from http.server import HTTPServer
from typing import Any

_BOUND_SECONDS = 10.0


class _Threaded(socketserver.ThreadingMixIn):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self._answering: list[tuple[threading.Thread, socket.socket]] = []
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread."""
        arguments = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self._answering.append((thread, request))
        thread.start()

    def server_close(self) -> None:
        """Close the socket and all connections, and wait for their threads."""
        super().server_close()
        for _, connection in self._answering:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread, _ in self._answering:
            thread.join(_BOUND_SECONDS)


class ThreadedHTTPServer(_Threaded, HTTPServer):
    """An HTTP server with a thread for each connection."""


class ThreadedTCPServer(_Threaded, socketserver.TCPServer):
    """A TCP server with a thread for each connection."""
