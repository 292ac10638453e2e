"""What runs inside an app process: one service of the app, behind waitress.

The supervisor starts it as ``python -m deferred_middleware.server.apps.app_server`` and writes one line to its standard
input: an :class:`AppServerConfig` as JSON. Standard input then stays open as the life-line: when it ends, the
supervisor is gone, however it died, and this process ends at once with everything it started. What became of the
start is told on the status pipe, as one line of JSON: ``{"event": "ready"}`` or
``{"event": "failed", "message": …, "traceback": …}``.

The listening socket belongs to the supervisor and outlives this process, so that requests which arrive while it is
being restarted wait in the socket's backlog.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import WSGITask

from deferred_middleware.server.apps.loading import AppLoadError, load_application
from deferred_middleware.server.delivery.delivery_server import DeliveryServer, Permits
from deferred_middleware.server.delivery.frontend import Frontend

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

STOP_GRACE_SECONDS = 5.0
"""How long requests that are running may go on after SIGTERM."""

_CONNECTION_LIMIT = 1000
_SERVER_SOFTWARE = "deferred-middleware"


@dataclass(frozen=True, kw_only=True)
class AppServerConfig:
    """What an app process is told on its standard input.

    ``app`` is ``module:callable``, found in ``directory``, or where the process was started; ``socket_fd`` and
    ``status_fd`` are inherited file descriptors.
    """

    app: str
    service: str
    threads: int
    socket_fd: int
    status_fd: int
    delivery_token: str
    api_ticket: str
    default_hostname: str
    directory: str = ""

    def to_line(self) -> bytes:
        """Return the line of JSON that :meth:`from_line` reads."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> AppServerConfig:
        """Return the config that ``line`` holds. Raises :class:`ValueError` if it holds none."""
        try:
            return cls(**json.loads(line))
        except TypeError as error:
            raise ValueError(f"not a config of an app process: {error}") from error


class _Gathered:
    """Stands for a channel while the beginning of a response is put together."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.parts: list[bytes] = []
        self.write_soon = self.parts.append


class _Task(WSGITask):
    """A request that sends the head of its response together with what the app gives first.

    Waitress sends them one after the other, and whoever reads is woken twice, which costs more than the response.
    """

    def execute(self) -> None:
        channel: Any = self.channel
        with channel.server.permits:
            super().execute()

    def write(self, data: bytes) -> None:
        if self.wrote_header or not data:
            super().write(data)
            return
        channel: Any = self.channel
        gathered: Any = _Gathered(channel.server)
        self.channel = gathered
        try:
            super().write(data)
        finally:
            self.channel = channel
        channel.write_soon(b"".join(gathered.parts))


class _Channel(HTTPChannel):
    """A connection, which waitress reads unless it is the queue process's, as what comes first over it shows."""

    task_class = _Task
    _is_new = True

    def received(self, data: bytes) -> bool:
        is_new, self._is_new = self._is_new, False
        server: Any = self.server
        deliveries: DeliveryServer | None = server.deliveries
        if not is_new or deliveries is None or not deliveries.sent(data):
            return super().received(data)
        # In the thread of waitress's loop, which so never looks at the socket again.
        self.del_channel()
        self.connected = False
        connection, self.socket = self.socket, None
        assert connection is not None
        deliveries.adopt(connection, self.addr, data)
        return True


class AppServer:
    """Serves one WSGI app on a socket until :meth:`request_stop`, then lets what runs finish.

    At most ``threads`` requests run at a time. Those that carry ``delivery_token`` from their connection's beginning
    are the queue process's, which has threads of its own for them.
    """

    def __init__(self, app: WSGIApplication, sock: socket.socket, *, threads: int, delivery_token: str = "") -> None:
        self._channels: dict[int, Any] = {}
        self._stopping = False
        server: Any = create_server(
            app,
            map=self._channels,
            sockets=[sock],
            threads=threads,
            ident=_SERVER_SOFTWARE,
            # select() can't take descriptors above 1023.
            asyncore_use_poll=True,
            connection_limit=_CONNECTION_LIMIT,
            clear_untrusted_proxy_headers=True,
        )
        server.channel_class = _Channel
        server.permits = permits = Permits(threads)
        self._deliveries: DeliveryServer | None = None
        if delivery_token:
            environ = {
                "SERVER_NAME": server.server_name,
                "SERVER_PORT": str(server.effective_port),
                "SERVER_SOFTWARE": _SERVER_SOFTWARE,
            }
            self._deliveries = DeliveryServer(app, delivery_token=delivery_token, permits=permits, environ=environ)
        server.deliveries = self._deliveries
        self._server = server

    def request_stop(self) -> None:
        """Ask :meth:`serve` to return. Safe in a signal handler: it sets a flag and writes one byte to a pipe."""
        if not self._stopping:
            self._stopping = True
            self._server.pull_trigger()

    def serve(self, *, grace_seconds: float = STOP_GRACE_SECONDS) -> bool:
        """Serve until asked to stop; return whether every request was answered within ``grace_seconds`` after that."""
        while not self._stopping:
            self._turn(timeout_seconds=30.0)
        # Who connects from now on waits in the backlog for the next process.
        self._server.accepting = False
        # One turn in any case, to read what has arrived on connections that were accepted already.
        self._turn(timeout_seconds=0)
        if self._deliveries is not None:
            self._deliveries.request_stop()
        deadline = time.monotonic() + grace_seconds
        while self._is_busy() and time.monotonic() < deadline:
            self._turn(timeout_seconds=0.05)
        answered = not self._is_busy()
        self._server.task_dispatcher.shutdown(timeout=0.5 if answered else 0)
        if self._deliveries is not None:
            self._deliveries.cut_off()
        for channel in list(self._server.active_channels.values()):
            channel.handle_close()  # not close(), which leaves its buffers' files open
        if answered:
            wasyncore.close_all(self._channels, ignore_all=True)
        else:
            # A thread that still runs will write to the trigger's pipe. Left open, its number can't be another file's.
            wasyncore.dispatcher.close(self._server)
        return answered

    def _turn(self, *, timeout_seconds: float) -> None:
        wasyncore.loop(timeout=timeout_seconds, use_poll=True, map=self._channels, count=1)

    def _is_busy(self) -> bool:
        if self._deliveries is not None and self._deliveries.is_busy:
            return True
        channels = list(self._server.active_channels.values())
        return any(channel.requests or channel.total_outbufs_len for channel in channels)


def main() -> int:
    """Run one app process, as its standard input says; return its exit status."""
    lifeline = os.dup(0)
    # The app must not read from the life-line, nor hand it to its own children.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    config = AppServerConfig.from_line(_read_line(lifeline))
    threading.Thread(target=_watch_lifeline, args=(lifeline,), name="lifeline", daemon=True).start()
    # Ctrl-C is the supervisor's to answer: it stops this process in its turn.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (config.socket_fd, config.status_fd):
        os.set_inheritable(descriptor, False)
    return run(config)


def run(config: AppServerConfig) -> int:
    """Load the app, say what became of it on the status pipe, and serve it until SIGTERM; return the exit status."""
    _enter(config.directory)
    with os.fdopen(config.status_fd, "wb") as status:
        try:
            app = load_application(config.app)
        except AppLoadError as error:
            cause = error.__cause__ or error
            _tell(
                status,
                event="failed",
                message=str(error),
                traceback="".join(traceback.format_exception(type(cause), cause, cause.__traceback__)),
            )
            return 1
        _configure_logging(config.service)
        frontend = Frontend(
            app,
            delivery_token=config.delivery_token,
            api_ticket=config.api_ticket,
            default_hostname=config.default_hostname,
        )
        # Made after the app was imported: wrap_wsgi_app patches how threads are started, and waitress's must be.
        server = AppServer(
            frontend,
            socket.socket(fileno=config.socket_fd),
            threads=config.threads,
            delivery_token=config.delivery_token,
        )

        def stop(_signum: int, _frame: FrameType | None) -> None:
            server.request_stop()

        signal.signal(signal.SIGTERM, stop)
        _tell(status, event="ready")
    if server.serve():
        return 0
    logging.getLogger(__name__).warning(
        "Requests were still running %.0f seconds after the stop; they are cut off.", STOP_GRACE_SECONDS
    )
    # A thread that still runs would hold up the interpreter's own exit.
    logging.shutdown()
    os._exit(0)


def _enter(directory: str) -> None:
    """Change to ``directory``, if there is one, and have the app's modules found there."""
    here = os.getcwd()
    if directory:
        os.chdir(directory)
        # "python -m" has put there where the command was started, which is none of this app's business.
        if sys.path[0] in ("", here) and not Path(__file__).is_relative_to(here):
            del sys.path[0]
        here = directory
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def _read_line(descriptor: int) -> bytes:
    # Unbuffered, because whatever a buffer read ahead would be lost to the watcher of the life-line.
    with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as stream:
        return stream.readline()


def _watch_lifeline(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass
    # What runs now can't report to anybody, and will be run again. A new supervisor may want the port at once, so
    # everything that this process started has to go too; it leads its own process group.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _tell(status: Any, **event: str) -> None:
    status.write(json.dumps(event).encode() + b"\n")
    status.flush()


def _configure_logging(service: str) -> None:
    """Send log records to standard error, unless the app has arranged for them while it was imported."""
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(level=logging.INFO, format=f"[{service}] %(levelname)s %(name)s: %(message)s")
    # Requests that wait for a thread are what a queue of tasks looks like, not something to warn of.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
