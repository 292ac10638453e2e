"""What runs inside an app process: one service of the app, served by waitress.

The supervisor starts the process with the script ``entry.py`` and writes one line to its standard input: an
:class:`AppServerConfig` as JSON. Standard input stays open after that. Its end means that the
supervisor has ended, for whatever reason; this process is then killed at once, with everything that it started, by a
second process that waits for nothing else. A thread could not do it while the app holds the interpreter's lock. The
process reports its start on the status pipe, as one line of JSON: ``{"event": "ready"}`` or
``{"event": "failed", "message": …, "traceback": …}``.

The listening socket belongs to the supervisor and outlives this process. So requests that arrive during a restart wait
in the socket's backlog.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import WSGITask

from deferred_middleware.errors.loggers import get_logger, log_to_terminal
from deferred_middleware.server.apps.console import reacting_to, set_standard_input
from deferred_middleware.server.apps.failure_logs import leave_out_repeated_failures
from deferred_middleware.server.apps.loading import AppLoadError, load_application
from deferred_middleware.server.config.handlers import HandlerRule
from deferred_middleware.server.delivery.begun import Begun
from deferred_middleware.server.delivery.frontend import Frontend
from deferred_middleware.server.delivery.runners import Permits, TaskRunners
from deferred_middleware.server.handlers.front import HandlersApp

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

STOP_GRACE_SECONDS = 5.0
"""How long running requests may go on after SIGTERM."""

logger: Final = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1 << 30  # as by default in waitress
_CONNECTION_LIMIT = 1000
# When that many are open, a tenth of them is closed: those that have been idle for longest.
_CROWDED = 900
_MAX_ACCEPTS_IN_A_TURN = 32
_SERVER_SOFTWARE = "deferred-middleware"


@dataclass(frozen=True, kw_only=True)
class AppServerConfig:
    """What an app process reads from its standard input.

    ``app`` is ``module:callable``, found in ``directory``, by default the directory that the process was started in.
    The names that end with ``_fd`` are inherited file descriptors. Over ``channel_fd`` tasks are delivered, and
    ``begun_fd`` is the memory that says which of them have begun. Without ``api_fd``, API calls go over HTTP; without
    ``terminal_fd``, standard input is empty.
    """

    app: str
    service: str
    threads: int
    socket_fd: int
    status_fd: int
    channel_fd: int
    begun_fd: int
    delivery_token: str
    api_ticket: str
    default_hostname: str
    directory: str = ""
    task_lines: bool = False
    handlers: tuple[HandlerRule, ...] = ()
    api_fd: int | None = None
    terminal_fd: int | None = None

    @property
    def descriptors(self) -> list[int]:
        """The inherited descriptors, without that of the terminal."""
        found = (self.socket_fd, self.status_fd, self.channel_fd, self.begun_fd, self.api_fd)
        return [descriptor for descriptor in found if descriptor is not None]

    def to_line(self) -> bytes:
        """Return the configuration as the line of JSON that :meth:`from_line` reads."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> AppServerConfig:
        """Return the configuration in ``line``. Raises :class:`ValueError` if it holds none."""
        try:
            given = json.loads(line)
            return cls(**{**given, "handlers": tuple(HandlerRule(**rule) for rule in given["handlers"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not the configuration of an app process: {error}") from error


class _HeadBuffer:
    """Stands in for a channel while the beginning of a response is put together."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.parts: list[bytes] = []
        self.write_soon = self.parts.append


class _RequestTask(WSGITask):
    """A request that sends the head of its response together with the first part of the body.

    Waitress sends them separately. The client is then woken twice, which costs more than the response itself.
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
        buffer: Any = _HeadBuffer(channel.server)
        self.channel = buffer
        try:
            super().write(data)
        finally:
            self.channel = channel
        channel.write_soon(b"".join(buffer.parts))


class _Channel(HTTPChannel):
    """A connection whose requests are :class:`_RequestTask`."""

    task_class = _RequestTask


class AppServer:
    """Serves one WSGI app on a socket until :meth:`request_stop`, and then lets running requests finish.

    At most ``threads`` requests run at a time, together with the tasks of :meth:`run_tasks`. Idle connections keep
    nobody out: if there are many, those that have been idle for longest are closed. A request whose body has
    ``max_body_bytes`` or more is refused with 413, before the body is read if its length is known.
    """

    def __init__(
        self,
        app: WSGIApplication,
        sock: socket.socket,
        *,
        threads: int,
        max_body_bytes: int = _MAX_BODY_BYTES,
    ) -> None:
        self._channels: dict[int, Any] = {}
        # Set by request_stop(), in any thread; read by the thread that serves.
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
            max_request_body_size=max_body_bytes,
            clear_untrusted_proxy_headers=True,
        )
        server.channel_class = _Channel
        self._accept_one = server.handle_accept
        server.handle_accept = self._accept
        server.permits = self._permits = Permits(threads)
        self._tasks: TaskRunners | None = None
        self._server = server

    def run_tasks(self, deliver: WSGIApplication, channel: socket.socket, begun: Begun) -> None:
        """Run the tasks that arrive over ``channel`` with ``deliver``, from now on."""
        environ = {
            "SERVER_NAME": self._server.server_name,
            "SERVER_PORT": str(self._server.effective_port),
            "SERVER_SOFTWARE": _SERVER_SOFTWARE,
        }
        self._tasks = TaskRunners(
            deliver, channel, begun, permits=self._permits, environ=environ, on_failure=_end_at_once
        )
        self._tasks.start()

    def request_stop(self) -> None:
        """Ask :meth:`serve` to return. Any thread may call this."""
        if not self._stopping:
            self._stopping = True
            self._server.pull_trigger()

    def serve(self, *, grace_seconds: float = STOP_GRACE_SECONDS) -> bool:
        """Serve until asked to stop; return whether every request was answered within ``grace_seconds`` after that."""
        while not self._stopping:
            self._turn(timeout_seconds=30.0)
        # Clients that connect from now on wait in the backlog for the next process.
        self._server.accepting = False
        # At least one turn, to read what has arrived on connections that were accepted before.
        self._turn(timeout_seconds=0)
        if self._tasks is not None:
            self._tasks.request_stop()
        deadline = time.monotonic() + grace_seconds
        while self._is_busy() and time.monotonic() < deadline:
            self._turn(timeout_seconds=0.05)
        answered = not self._is_busy()
        self._server.task_dispatcher.shutdown(timeout=0.5 if answered else 0)
        for channel in list(self._server.active_channels.values()):
            channel.handle_close()  # not close(), which leaves its buffers' files open
        if answered:
            wasyncore.close_all(self._channels, ignore_all=True)
        else:
            # A running thread will write to the trigger's pipe. Left open, its descriptor can't become another file's.
            wasyncore.dispatcher.close(self._server)
        return answered

    def _turn(self, *, timeout_seconds: float) -> None:
        wasyncore.loop(timeout=timeout_seconds, use_poll=True, map=self._channels, count=1)

    def _accept(self) -> None:
        """Accept the connections that wait, because a turn of the loop looks at every open one."""
        for _ in range(_MAX_ACCEPTS_IN_A_TURN):
            before = len(self._channels)
            self._accept_one()
            if len(self._channels) <= before:
                break
        if len(self._channels) >= _CROWDED:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connections that have been idle for longest; those that were accepted just now are the last."""
        channels = self._server.active_channels.values()
        idle = [channel for channel in channels if not channel.requests and not channel.total_outbufs_len]
        idle.sort(key=lambda channel: channel.last_activity)
        for channel in idle[: _CROWDED // 10]:
            channel.handle_close()
        logger.debug("Connections: %d; idle ones that were closed: %d.", len(channels), min(len(idle), _CROWDED // 10))

    def _is_busy(self) -> bool:
        if self._tasks is not None and self._tasks.is_busy:
            return True
        channels = list(self._server.active_channels.values())
        return any(channel.requests or channel.total_outbufs_len for channel in channels)


@contextlib.contextmanager
def serving(server: AppServer, *, thread: str, grace_seconds: float = STOP_GRACE_SECONDS) -> Iterator[None]:
    """Have a thread of the name ``thread`` run a server while this is entered."""
    serves = threading.Thread(target=server.serve, kwargs={"grace_seconds": grace_seconds}, name=thread)
    serves.start()
    try:
        yield
    finally:
        server.request_stop()
        serves.join()


def main() -> int:
    """Run one app process, as its standard input says; return its exit status."""
    supervisor_pipe = os.dup(0)
    config = AppServerConfig.from_line(_read_line(supervisor_pipe))
    # The app must not read from the pipe or pass it on to its children.
    set_standard_input(config.terminal_fd)
    _start_guard(supervisor_pipe, config)
    # The supervisor handles Ctrl-C, and then stops this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in config.descriptors:
        os.set_inheritable(descriptor, False)
    return run(config)


def run(config: AppServerConfig) -> int:
    """Load the app, report the result on the status pipe, and serve until SIGTERM; return the exit status."""
    _enter(config.directory)
    with os.fdopen(config.status_fd, "wb") as status:
        try:
            app = load_application(config.app)
        except AppLoadError as error:
            cause = error.__cause__ or error
            _write_event(
                status,
                event="failed",
                message=str(error),
                traceback="".join(traceback.format_exception(type(cause), cause, cause.__traceback__)),
            )
            return 1
        _configure_logging(config.service)
        if config.task_lines:
            leave_out_repeated_failures()
        # An app that doesn't use the SDK need not import it.
        if config.api_fd is not None and "google.appengine.api.apiproxy_stub_map" in sys.modules:
            from deferred_middleware.server.apps import api_client

            api_client.install(socket.socket(fileno=config.api_fd))
        frontend = Frontend(
            HandlersApp(app, config.handlers),
            delivery_token=config.delivery_token,
            api_ticket=config.api_ticket,
            default_hostname=config.default_hostname,
        )
        # After the import of the app: wrap_wsgi_app patches how threads are started, also those of waitress.
        server = AppServer(frontend, socket.socket(fileno=config.socket_fd), threads=config.threads)
        server.run_tasks(frontend.deliver, socket.socket(fileno=config.channel_fd), Begun(config.begun_fd))

        with reacting_to([signal.SIGTERM], lambda _signum: server.request_stop()):
            _write_event(status, event="ready")
            status.close()
            answered = server.serve()
        # A second one, to the whole process group, must not keep the functions of atexit from running.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if answered:
        return 0
    get_logger(__name__).warning(
        "Requests were still running %.0f seconds after the stop signal; they are cut off.", STOP_GRACE_SECONDS
    )
    # The interpreter's own exit would wait for the threads that still run.
    logging.shutdown()
    os._exit(0)


def _end_at_once() -> None:
    """End this process. What it has begun runs again, in another process."""
    logging.shutdown()
    os._exit(1)


def _enter(directory: str) -> None:
    """Change to ``directory``, if one is given, and make the app's modules importable, before all others."""
    if directory:
        os.chdir(directory)
    here = os.getcwd()
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)


def _read_line(descriptor: int) -> bytes:
    # Unbuffered: the thread that watches the pipe would miss what a buffer has read ahead.
    with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as stream:
        return stream.readline()


def _start_guard(supervisor_pipe: int, config: AppServerConfig) -> None:
    """Start the process that kills this one, and everything that it starts, at the end of the pipe.

    Nobody receives the results of running tasks then, and these tasks will run again. A new supervisor may need the
    port at once. The guard is in this process's group, which the supervisor kills when this process has ended.
    """
    assert os.getpgrp() == os.getpid(), "an app process leads a process group"
    child = os.fork()
    if child:
        # The guard is no child of this process, in which the app may wait for any child.
        os.waitpid(child, 0)
        os.close(supervisor_pipe)
        return
    if os.fork():
        os._exit(0)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    for descriptor in (0, 1, 2, *config.descriptors):
        os.close(descriptor)
    while os.read(supervisor_pipe, 4096):
        pass
    os.kill(0, signal.SIGKILL)


def _write_event(status: Any, **event: str) -> None:
    status.write(json.dumps(event).encode() + b"\n")
    status.flush()


def _configure_logging(service: str) -> None:
    """Send log records to standard error, unless the app has configured logging when it was imported."""
    log_to_terminal(f"[{service}] %(levelname)s %(name)s: %(message)s")
