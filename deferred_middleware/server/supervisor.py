"""The queue process: puts the local server together, and takes it apart.

It owns the store, the scheduler, the delivery of tasks and the admin server that answers the SDK; and it keeps one app
process running for each service. What is started later is stopped earlier, whatever happens in between:

    store → datastore and the SDK's other services → listening sockets → admin server → app processes → scheduler

The scheduler starts when every service answers, so that no task is tried in vain.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from deferred_middleware.errors import ServerError
from deferred_middleware.server.appserver import AppServer
from deferred_middleware.server.delivery import Deliverer
from deferred_middleware.server.listeners import address, bind_all, url
from deferred_middleware.server.processes import (
    START_TIMEOUT_SECONDS,
    AppProcess,
    AppProcessConfig,
    ProcessEvent,
    ProcessReady,
    StartFailed,
    app_environ,
)
from deferred_middleware.server.rpc import RpcApplication
from deferred_middleware.server.scheduler import Scheduler
from deferred_middleware.server.sdk_stubs import make_stub_map
from deferred_middleware.server.service import TaskQueueService
from deferred_middleware.server.services import Service, ServiceDirectory
from deferred_middleware.server.store import TaskStore

STORE_FILE = "tasks.sqlite"
"""Name of the store's file in the data directory."""
VERSION = "local"
"""The version of every service, as the app sees it."""
DEFAULT_PROJECT = "local-app"
DEFAULT_SERVICE = "default"

_ADMIN_THREADS = 16
_STOP_GRACE_SECONDS = 5.0
# With it the SDK would send tasks to Google instead of here (api/taskqueue/taskqueue.py).
_CLOUD_TASKS_VARIABLE = "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServedApp:
    """One service and the app, as ``module:callable``, that it runs."""

    service: str
    app: str


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What ``deferred-middleware serve`` is to serve, and where. The first of ``apps`` is the default service."""

    apps: Sequence[ServedApp]
    host: str = "127.0.0.1"
    port: int = 8080
    admin_port: int = 8000
    data_dir: Path = Path(".deferred")
    threads: int = 8
    ready_file: Path | None = None
    start_timeout_seconds: float = START_TIMEOUT_SECONDS


class AppStartError(ServerError):
    """An app could not be started. ``app_traceback`` is the traceback of its process, or empty."""

    def __init__(self, message: str, app_traceback: str) -> None:
        self.app_traceback = app_traceback
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class _StopRequested:
    signum: int


class Supervisor:
    """Runs the local server as ``config`` says."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        # Its put() may be called by a signal handler that interrupts its get().
        self._events: queue.SimpleQueue[ProcessEvent | _StopRequested | None] = queue.SimpleQueue()
        self._processes: list[AppProcess] = []

    def run(self) -> int:
        """Serve until SIGINT or SIGTERM; return the exit status.

        Has to be called in the main thread, because signals are handled there. Raises :class:`ServerError` when the
        server can't start; nothing it started is left then.
        """
        with self._stop_signals(), contextlib.ExitStack() as stack:
            self._serve(stack)
            # What is on the stack is undone within this block, so that a second signal can be heard meanwhile.
            with self._hastened_by_second_signal():
                stack.close()
        return 0

    def _serve(self, stack: contextlib.ExitStack) -> None:
        """Start everything, putting onto ``stack`` how to stop it, and wait until a signal asks for the end."""
        config = self._config
        data_dir = _make_data_dir(config.data_dir)
        store = TaskStore(data_dir / STORE_FILE)
        stack.callback(store.close)
        ready_file = stack.enter_context(_ReadyFile(config.ready_file))
        listeners = bind_all(
            [served.service for served in config.apps],
            host=config.host,
            port=config.port,
            admin_port=config.admin_port,
            stack=stack,
        )
        services = [
            Service(
                name=served.service,
                version=VERSION,
                host=address(listener)[0],
                port=address(listener)[1],
                # Two threads stay free for people, and for requests that a task makes to its own service.
                concurrency=max(1, config.threads - 2),
            )
            for served, listener in zip(config.apps, listeners[1:], strict=True)
        ]
        # Of the directory the first is the default service, wherever it was listed on the command line.
        directory = ServiceDirectory(sorted(services, key=lambda service: service.name != DEFAULT_SERVICE))
        delivery_token = secrets.token_urlsafe(32)
        # One for each service, so that the APIs know who asks.
        tickets = {secrets.token_urlsafe(32): service for service in services}
        project = os.environ.get("GOOGLE_CLOUD_PROJECT") or DEFAULT_PROJECT
        app_id = f"dev~{project}"

        scheduler = Scheduler(store, directory, Deliverer(delivery_token=delivery_token))
        stub_map = make_stub_map(
            app_id=app_id,
            data_dir=data_dir,
            directory=directory,
            taskqueue_stub=TaskQueueService(store, scheduler.wake, directory=directory),
            callers=tickets,
        )
        stack.callback(stub_map.GetStub("datastore_v3").close)
        stack.enter_context(_admin_server(RpcApplication(stub_map, tickets), listeners[0]))

        base_environ = _base_environ(os.environ)
        for served, (api_ticket, service), listener in zip(config.apps, tickets.items(), listeners[1:], strict=True):
            environ = app_environ(
                base_environ,
                service=service.name,
                version=service.version,
                instance=f"{service.name}-0",
                project=project,
                app_id=app_id,
                default_hostname=directory.default_hostname,
                api_address=address(listeners[0]),
                api_ticket=api_ticket,
            )
            app_process = AppProcessConfig(
                app=served.app,
                service=service.name,
                threads=config.threads,
                listener=listener,
                environ=environ,
                delivery_token=delivery_token,
                api_ticket=api_ticket,
                default_hostname=directory.default_hostname,
                start_timeout_seconds=config.start_timeout_seconds,
            )
            self._processes.append(AppProcess(app_process, on_event=self._events.put))
        stack.callback(self._stop_processes)
        for process in self._processes:
            process.start()
        if self._all_ready():
            stack.callback(_stop_scheduler, scheduler)
            scheduler.start()
            urls = {service.name: url(listener) for service, listener in zip(services, listeners[1:], strict=True)}
            ready_file.write(services=urls, admin=url(listeners[0]))
            # Besides the one at the very end: whoever waits for the file must not find it while all this stops.
            stack.callback(ready_file.remove)
            self._announce(services, listeners, data_dir)
            self._wait_for_stop()

    def _all_ready(self) -> bool:
        """Wait until every service answers; return whether that was reached before somebody wanted it to stop."""
        waiting = {served.service for served in self._config.apps}
        while waiting:
            event = self._events.get()
            if isinstance(event, StartFailed):
                raise AppStartError(event.message, event.traceback)
            if isinstance(event, _StopRequested):
                return False
            if isinstance(event, ProcessReady):
                waiting.discard(event.service)
        return True

    def _wait_for_stop(self) -> None:
        while not isinstance(event := self._events.get(), _StopRequested):
            if isinstance(event, StartFailed):
                raise AppStartError(event.message, event.traceback)
        _say("Stopping: tasks that are running have a few seconds to finish. Ctrl-C again ends them at once.")

    def _stop_processes(self) -> None:
        for process in self._processes:
            process.request_stop()
        for process in self._processes:
            process.stop()

    @contextlib.contextmanager
    def _hastened_by_second_signal(self) -> Iterator[None]:
        """While this is entered, a signal after the first one ends the app processes at once."""

        def watch() -> None:
            while (event := self._events.get()) is not None:
                if isinstance(event, _StopRequested):
                    for process in self._processes:
                        process.kill()

        watcher = threading.Thread(target=watch, name="hasten")
        watcher.start()
        try:
            yield
        finally:
            self._events.put(None)
            watcher.join()

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        def handle(signum: int, _frame: FrameType | None) -> None:
            self._events.put(_StopRequested(signum=signum))

        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        previous = {signum: signal.signal(signum, handle) for signum in handled}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _announce(self, services: Sequence[Service], listeners: Sequence[socket.socket], data_dir: Path) -> None:
        rows = [
            (service.name, url(listener), served.app)
            for service, listener, served in zip(services, listeners[1:], self._config.apps, strict=True)
        ]
        rows.append(("(admin)", url(listeners[0]), "answers the App Engine APIs"))
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for name, where, what in rows:
            _say(f"{name:<{widths[0]}}  {where:<{widths[1]}}  {what}")
        _say(f"Tasks are kept in {data_dir}; Ctrl-C stops it.")


class _ReadyFile:
    """The file that says where everything answers; it exists only while that is so."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> _ReadyFile:
        if self._path is not None:
            if not self._path.parent.is_dir():
                raise ServerError(
                    f"--ready-file {self._path}: there is no directory {self._path.parent}; make it first."
                )
            # One that a killed server left behind would be believed.
            self.remove()
        return self

    def write(self, *, services: Mapping[str, str], admin: str) -> None:
        """Write the file, whole or not at all."""
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"services": services, "admin": admin}) + "\n")
        temporary.replace(self._path)

    def __exit__(self, *_exc_info: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the file, if it is there."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise ServerError(f"--ready-file {self._path} can't be written: {error.strerror}.") from error


@contextlib.contextmanager
def _admin_server(app: RpcApplication, listener: socket.socket) -> Iterator[None]:
    # A duplicate, because waitress closes its socket before the listener's owner does.
    server = AppServer(app, listener.dup(), threads=_ADMIN_THREADS)
    thread = threading.Thread(target=server.serve, name="admin")
    thread.start()
    try:
        yield
    finally:
        server.request_stop()
        thread.join()


def _stop_scheduler(scheduler: Scheduler) -> None:
    released = scheduler.stop(_STOP_GRACE_SECONDS)
    if released:
        _say(f"{released} task{'s' if released > 1 else ''} did not finish in time; they run again at the next start.")


def _make_data_dir(path: Path) -> Path:
    """Return ``path`` as a directory in which files can be made. Raises :class:`ServerError` if it can't be one."""
    try:
        if not path.exists():
            path.mkdir(mode=0o700, parents=True)
            # What is kept here is nobody's source code.
            (path / ".gitignore").write_text("*\n")
    except OSError as error:
        raise ServerError(f"--data-dir {path} can't be made: {error.strerror}; choose another.") from error
    if not path.is_dir():
        raise ServerError(f"--data-dir {path} is not a directory; choose another.")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ServerError(f"--data-dir {path} can't be written to; choose another, or change its permissions.")
    return path


def _base_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what app processes inherit of this process's environment."""
    inherited = dict(environ)
    if inherited.pop(_CLOUD_TASKS_VARIABLE, None) is not None:
        _logger.warning(
            "%s is not passed on to the app: with it, tasks would go to Google instead of here.", _CLOUD_TASKS_VARIABLE
        )
    return inherited


def _say(text: str) -> None:
    """Tell the person at the terminal, if there still is one: a closed terminal must not upset an orderly stop."""
    try:
        print(text, flush=True)  # noqa: T201 - this is the one place that announces
    except OSError as error:
        _logger.debug("Standard output can't be written to: %s", error)
        # What could not be written would be tried again at exit, and fail again.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
