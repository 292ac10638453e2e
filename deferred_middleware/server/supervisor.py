"""The queue process: puts the local server together, and takes it apart.

It owns the store, the scheduler, the delivery of tasks and the admin server that answers the SDK; and it keeps one app
process running for each service. What is started later is stopped earlier, whatever happens in between:

    store → datastore and the SDK's other services → listening sockets → admin server → app processes → scheduler

The scheduler starts when every service answers, so that no task is tried in vain.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import queue
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin.guard import Guard, admin_names
from deferred_middleware.server.admin.json_api import JsonApi
from deferred_middleware.server.admin.server_file import AddressFile, RunningServer, about, content_of, server_file
from deferred_middleware.server.admin.terminal import announce, say, say_environ
from deferred_middleware.server.api.rpc import RpcApplication
from deferred_middleware.server.api.stubs import make_stub_map
from deferred_middleware.server.api.taskqueue import TaskQueueService
from deferred_middleware.server.apps.app_server import AppServer
from deferred_middleware.server.apps.environ import Platform, base_environ
from deferred_middleware.server.apps.process import AppProcesses, ProcessEvent, ProcessReady, StartFailed
from deferred_middleware.server.apps.process_ends import ProcessEnds
from deferred_middleware.server.assembly import (
    address,
    bind_all,
    external_environs,
    make_services,
    process_configs,
    tickets_of,
    url,
    warn_of_different_keys,
)
from deferred_middleware.server.config.data_dir import SecretKey
from deferred_middleware.server.config.external_apps import environ_file, exports, write_environ_file
from deferred_middleware.server.config.queue_yaml import QueueYamlWatcher, find_queue_yaml
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.serveconfig import DEFAULT_PROJECT, ServeConfig
from deferred_middleware.server.config.served import DEFAULT_SERVICE
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.delivery.http_attempt import Deliverer
from deferred_middleware.server.dispatch.scheduler import Scheduler
from deferred_middleware.server.store.records import DAY_SECONDS, Retention
from deferred_middleware.server.store.store import TaskStore

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

STORE_FILE = "tasks.sqlite"
"""Name of the store's file in the data directory."""

_ADMIN_THREADS = 16
_STOP_GRACE_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class AppStartError(ServerError):
    """An app could not be started. ``app_traceback`` is the traceback of its process, or empty."""

    def __init__(self, message: str, app_traceback: str) -> None:
        self.app_traceback = app_traceback
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class _StopRequested:
    signum: int


@dataclass(frozen=True, kw_only=True)
class _CodeChanged:
    service: str
    files: Sequence[Path]


class Supervisor:
    """Runs the local server as ``config`` says; the data directory is locked by the caller."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        # Its put() may be called by a signal handler that interrupts its get().
        self._events: queue.SimpleQueue[ProcessEvent | _CodeChanged | _StopRequested | None] = queue.SimpleQueue()
        self._processes: AppProcesses | None = None

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
        for served in config.served.apps:
            for note in served.notes:
                _logger.warning("%s: %s", served.app_yaml, note)
        secret_key = SecretKey(config.data_dir)
        for note in secret_key.notes:
            _logger.warning("%s", note)
        queues = self._queues(stack)
        retention = Retention(
            tombstone_seconds=config.tombstone_days * DAY_SECONDS,
            succeeded_seconds=config.history_days * DAY_SECONDS,
            succeeded_tasks=config.history_tasks,
        )
        store = TaskStore(config.data_dir / STORE_FILE, retention=retention)
        stack.callback(store.close)
        ready_file = stack.enter_context(AddressFile(config.ready_file, option="--ready-file"))
        server_json = stack.enter_context(server_file(config.data_dir))
        listeners = bind_all(
            [served.service for served in config.served.apps],
            host=config.host,
            port=config.port,
            admin_host=config.admin_host,
            admin_port=config.admin_port,
            stack=stack,
        )
        services = make_services(config, listeners[1:])
        # Of the directory the first is the default service, wherever it was listed on the command line.
        directory = ServiceDirectory(sorted(services, key=lambda service: service.name != DEFAULT_SERVICE))
        delivery_token = secrets.token_urlsafe(32)
        tickets = tickets_of(services, secret_key)
        project = os.environ.get("GOOGLE_CLOUD_PROJECT") or DEFAULT_PROJECT
        app_id = f"dev~{project}"

        process_ends = ProcessEnds(service.id for service in services if not service.external)
        scheduler = Scheduler(
            store, directory, Deliverer(delivery_token=delivery_token), queues=queues, process_ends=process_ends
        )
        stub_map = make_stub_map(
            app_id=app_id,
            data_dir=config.data_dir,
            directory=directory,
            taskqueue_stub=TaskQueueService(store, scheduler.wake, directory=directory, queues=queues),
            callers=tickets,
        )
        stack.callback(stub_map.GetStub("datastore_v3").close)
        running = RunningServer(
            pid=os.getpid(),
            since=_now(),
            admin=url(listeners[0]),
            token=secrets.token_urlsafe(32),
            services={service.id: service.url for service in services},
        )
        api = JsonApi(
            store,
            queues=lambda: queues,
            wake=scheduler.wake,
            about=about(running, config.data_dir),
            token=running.token,
        )
        names = admin_names(config.admin_host, config.allowed_hosts)
        admin = Guard(RpcApplication(stub_map, tickets, pages=api), names=names)
        stack.enter_context(_admin_server(admin, listeners[0]))

        platform = Platform(
            project=project,
            app_id=app_id,
            default_hostname=directory.default_hostname,
            api_address=address(listeners[0]),
            inherited=base_environ(os.environ, secret_key=secret_key.text),
        )
        environs = external_environs(platform, tickets)
        files = {name: environ_file(config.data_dir, name) for name in environs}
        for name, environ in environs.items():
            write_environ_file(files[name], environ)
        configs = process_configs(config, platform, tickets, listeners[1:], delivery_token=delivery_token)
        warn_of_different_keys([*(one.environ for one in configs), *environs.values()])
        processes = self._processes = AppProcesses(configs, on_event=self._events.put, ends=process_ends)
        stack.callback(processes.stop)
        if config.reload:
            stack.enter_context(self._code_watcher())
        processes.start()
        if self._all_ready(processes, scheduler):
            stack.callback(_stop_scheduler, scheduler)
            scheduler.start()
            server_json.write(content_of(running))
            stack.callback(server_json.remove)
            ready_file.write(
                {
                    "services": running.services,
                    "admin": running.admin,
                    "environ_files": {name: str(path.absolute()) for name, path in files.items()},
                }
            )
            # Besides the one at the very end: whoever waits for the file must not find it while all this stops.
            stack.callback(ready_file.remove)
            announce(config, running)
            for name, environ in environs.items():
                say_environ(name, exports(environ), files[name])
            say(f"Tasks are kept in {config.data_dir}; Ctrl-C stops it.")
            while self._take_event(processes, scheduler) is not None:
                pass
            say("Stopping: tasks that are running have a few seconds to finish. Ctrl-C again ends them at once.")

    def _queues(self, stack: contextlib.ExitStack) -> QueueRegistry:
        """Return the queues as queue.yaml has them, now and when it changes."""
        queues = QueueRegistry()
        given = self._config.queue_yaml
        files = [one.app_yaml for one in self._config.served.apps if one.app_yaml and one.service == DEFAULT_SERVICE]
        path = (
            given if given is not None else find_queue_yaml([*(file.absolute().parent for file in files), Path.cwd()])
        )
        stack.enter_context(QueueYamlWatcher(path, queues, required=given is not None))
        return queues

    def _code_watcher(self) -> contextlib.AbstractContextManager[object]:
        from deferred_middleware.server.apps.code_watcher import CodeWatcher

        return CodeWatcher(
            {served.service: served.directory or Path.cwd() for served in self._config.served.apps},
            lambda service, files: self._events.put(_CodeChanged(service=service, files=files)),
        )

    def _all_ready(self, processes: AppProcesses, scheduler: Scheduler) -> bool:
        """Wait until every service answers; return whether that was reached before somebody wanted it to stop."""
        waiting = set(processes.services)
        while waiting:
            event = self._take_event(processes, scheduler)
            if event is None:
                return False
            if isinstance(event, ProcessReady):
                waiting.discard(event.service)
        return True

    def _take_event(self, processes: AppProcesses, scheduler: Scheduler) -> ProcessEvent | _CodeChanged | None:
        """Wait for the next thing that happens and do what it calls for; return None when it is to be stopped."""
        event = self._events.get()
        if event is None or isinstance(event, _StopRequested):
            return None
        if isinstance(event, StartFailed):
            raise AppStartError(event.message, event.traceback)
        if isinstance(event, _CodeChanged):
            names = ", ".join(os.path.relpath(path) for path in event.files)
            _logger.info("Service %r is started again, because of changes in %s.", event.service, names)
            # An attempt that began while there is no process would wait for the next one, however long that takes.
            scheduler.suspend_service(event.service)
            processes.restart(event.service)
        elif processes.is_serving(event.service):
            scheduler.resume_service(event.service)
        return event

    @contextlib.contextmanager
    def _hastened_by_second_signal(self) -> Iterator[None]:
        """While this is entered, a signal after the first one ends the app processes at once."""

        def watch() -> None:
            while (event := self._events.get()) is not None:
                if isinstance(event, _StopRequested) and self._processes is not None:
                    self._processes.kill()

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


@contextlib.contextmanager
def _admin_server(app: WSGIApplication, listener: socket.socket) -> Iterator[None]:
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
        say(f"{released} task{'s' if released > 1 else ''} did not finish in time; they run again at the next start.")


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
