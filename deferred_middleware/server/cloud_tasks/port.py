"""One port for gRPC and for REST.

A gRPC client begins with the preface of HTTP/2 (https://www.rfc-editor.org/rfc/rfc9113#section-3.4), and a REST client
with a request of HTTP/1.1. So the first bytes of a connection say which of two servers it is passed to; both listen on
sockets that only this process's user can reach. They are started when the first client connects: ``serve`` has the port
too, and most apps never use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Final, Protocol

logger: Final = logging.getLogger(__name__)

_PREFACE: Final = b"PRI * HTTP/2.0\r\n"
_READ_BYTES: Final = 64 * 1024
_FIRST_BYTES_SECONDS: Final = 60.0
_LAST_TURNS: Final = 3


class Servers(Protocol):
    """The two servers behind the port: the paths of their sockets, and how they end."""

    grpc_socket: str
    http_socket: str

    def stop(self) -> None:
        """Stop both."""


class SharedPort:
    """Passes the connections of ``listener`` on, from :meth:`start` to :meth:`stop`.

    ``start_servers`` starts the servers; it is called once, by another thread. What it raises is logged, and said to
    clients.
    """

    def __init__(self, listener: socket.socket, start_servers: Callable[[], Servers]) -> None:
        self._listener = listener
        self._start_servers = start_servers
        self._thread = threading.Thread(target=self._run, name="cloud-tasks", daemon=True)
        # All others belong to the thread's loop, and are made there.
        self._running = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._servers: Servers | None = None
        self._starting: asyncio.Future[Servers] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to accept connections."""
        self._thread.start()
        self._running.wait()

    def start_servers(self) -> None:
        """Start the servers now, and not when the first client connects. Raises what starting them raises."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._started(), self._loop).result()

    def stop(self) -> None:
        """Close all connections, and stop the servers."""
        if self._thread.ident is None:
            return
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(stopping.set)
        self._thread.join()
        if self._servers is not None:
            self._servers.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            logger.exception("The port of the Cloud Tasks API does not answer any more.")
        finally:
            self._running.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        # A duplicate, because its owner closes the listener.
        server = await asyncio.start_server(self._connected, sock=self._listener.dup())
        self._running.set()
        await self._stopping.wait()
        # Not wait_closed(), which waits for the clients since Python 3.12.
        server.close()
        for _ in range(_LAST_TURNS):
            # Connections that have just been accepted become tasks.
            await asyncio.sleep(0)
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        for _ in range(_LAST_TURNS):
            # Sockets are closed a turn after their transports.
            await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = asyncio.current_task()
        assert own is not None
        self._connections.add(own)
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.TimeoutError):
                await self._pass_on(reader, writer)
        except asyncio.CancelledError:
            logger.debug("A connection is closed, because the server stops.")
        except Exception:
            logger.exception("A connection of the Cloud Tasks API failed.")
        finally:
            self._connections.discard(own)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await asyncio.wait_for(_first_bytes(reader), _FIRST_BYTES_SECONDS)
        if not first:
            return
        is_grpc = first.startswith(_PREFACE)
        try:
            servers = await self._started()
        except Exception as error:  # noqa: BLE001 - it is logged where it is raised, and the client is told
            if not is_grpc:
                writer.write(_unavailable(str(error)))
                await writer.drain()
            return
        path = servers.grpc_socket if is_grpc else servers.http_socket
        server_reader, server_writer = await asyncio.open_unix_connection(path)
        try:
            server_writer.write(first)
            await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))
        finally:
            server_writer.close()

    async def _started(self) -> Servers:
        if self._servers is not None:
            return self._servers
        if self._starting is None:
            self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_servers))
        try:
            self._servers = await asyncio.shield(self._starting)
        except Exception as error:
            if self._starting is not None:
                logger.error("The Cloud Tasks API can't be answered: %s", error)
            self._starting = None  # The next client has it tried again.
            raise
        return self._servers


async def _first_bytes(reader: asyncio.StreamReader) -> bytes:
    """Return the first bytes of a connection, as many as it takes to tell the protocols apart; none at its end."""
    data = b""
    while len(data) < len(_PREFACE) and _PREFACE.startswith(data):
        more = await reader.read(_READ_BYTES)
        if not more:
            break
        data += more
    return data


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction of a connection until its end."""
    try:
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except (ConnectionError, RuntimeError):
        # The other side is gone: so is this one.
        writer.close()


def _unavailable(reason: str) -> bytes:
    content = {"error": {"code": 503, "message": reason, "status": "UNAVAILABLE"}}
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body
