"""The queue process: it runs the objects of the local server, and stops them.

They are started in this order, and stopped in the opposite order, whatever happens in between:

    store → datastore and the SDK's other services → listening sockets → admin server → app processes → scheduler

The scheduler starts when every service answers, so that no task is attempted in vain.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin.server_file import content_of
from deferred_middleware.server.admin.terminal import print_environ, print_line, print_services
from deferred_middleware.server.api.rpc import MAX_HTTP_BODY_BYTES
from deferred_middleware.server.apps.app_server import AppServer, serving
from deferred_middleware.server.apps.console import reacting_to, terminal_restored
from deferred_middleware.server.apps.environ import environ_file, exports, write_environ_file
from deferred_middleware.server.apps.process import ProcessEvent, ProcessReady, StartFailed
from deferred_middleware.server.assembly import ServerParts, assemble
from deferred_middleware.server.config.served import ServeConfig
from deferred_middleware.server.dispatch.scheduler import Scheduler
from deferred_middleware.server.store.upkeep.salvage import StoreDamagedError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_ADMIN_THREADS = 16
_STOP_GRACE_SECONDS = 5.0
# A disk that damages the database again so soon is not one to go on with.
_DAMAGE_PAUSE_SECONDS = 60.0

logger: Final = logging.getLogger(__name__)


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


@dataclass(frozen=True, kw_only=True)
class _StoreFailed:
    error: ServerError


_Event = ProcessEvent | _CodeChanged | _StopRequested | _StoreFailed


class Supervisor:
    """Runs the local server that ``config`` describes. The caller has locked the data directory."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        # Any thread puts events in.
        self._events: queue.SimpleQueue[ProcessEvent | _CodeChanged | _StopRequested | _StoreFailed | None] = (
            queue.SimpleQueue()
        )
        # Written by the main thread before any other thread reads it.
        self._parts: ServerParts | None = None

    def run(self) -> int:
        """Serve until SIGINT or SIGTERM; return the exit status.

        Has to be called in the main thread, which handles signals. Raises :class:`ServerError` when the server can't
        start; everything that was started has ended then.
        """
        with reacting_to((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._stop), terminal_restored():
            found_damage = -_DAMAGE_PAUSE_SECONDS
            while True:
                try:
                    with contextlib.ExitStack() as stack:
                        self._serve(stack)
                        # The stack is unwound inside this block, so that a second signal is noticed meanwhile.
                        with self._killing_at_second_signal():
                            stack.close()
                    return 0
                except StoreDamagedError as error:
                    last, found_damage = found_damage, time.monotonic()
                    if found_damage - last < _DAMAGE_PAUSE_SECONDS:
                        raise
                    logger.error("%s This server does so now.", error)
                    self._forget_old_events()

    def _forget_old_events(self) -> None:
        """Forget what was reported of objects that have ended, but not that a signal has asked for the end."""
        kept = []
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, _StopRequested):
                    kept.append(event)
        for event in kept:
            self._events.put(event)

    def _serve(self, stack: contextlib.ExitStack) -> None:
        """Start everything, with its stop on ``stack``, and return when a signal asks for the end."""
        for served in self._config.served.apps:
            for note in served.notes:
                logger.warning("%s: %s", served.app_yaml, note)
        parts = self._parts = assemble(
            self._config,
            stack,
            on_event=self._events.put,
            on_store_failure=lambda error: self._events.put(_StoreFailed(error=error)),
        )
        stack.enter_context(_admin_server(parts.admin_app, parts.admin_listener))
        stack.callback(parts.live.close)
        files = self._write_environ_files(parts)
        stack.callback(parts.processes.stop)
        if self._config.reload:
            stack.enter_context(self._code_watcher())
        parts.processes.start()
        if not self._wait_until_all_serve(parts):
            return
        stack.callback(_stop_scheduler, parts.scheduler)
        parts.scheduler.start()
        stack.callback(parts.cloud_tasks.stop)
        parts.cloud_tasks.start()
        self._write_address_files(parts, files, stack)
        print_services(self._config, parts.running)
        for name, environ in parts.environs.items():
            print_environ(name, exports(environ), files[name])
        print_line(f"Tasks are kept in {self._config.data_dir}; Ctrl-C stops it.")
        while self._handle_event(parts) is not None:
            pass
        print_line("Stopping: tasks that are running have a few seconds to finish. Ctrl-C again ends them at once.")

    def _write_environ_files(self, parts: ServerParts) -> dict[str, Path]:
        """Write the environments of the apps that run elsewhere; return the files by service."""
        files = {name: environ_file(self._config.data_dir, name) for name in parts.environs}
        for name, environ in parts.environs.items():
            write_environ_file(files[name], environ)
        return files

    def _write_address_files(
        self, parts: ServerParts, environ_files: dict[str, Path], stack: contextlib.ExitStack
    ) -> None:
        """Write the files that say where the server answers, because now it does."""
        parts.server_json.write(content_of(parts.running))
        stack.callback(parts.server_json.remove)
        parts.ready_file.write(
            {
                "services": parts.running.services,
                "admin": parts.running.admin,
                "cloud_tasks": parts.running.cloud_tasks,
                "environ_files": {name: str(path.absolute()) for name, path in environ_files.items()},
            }
        )
        # The files are removed again at the very end. But nobody may find them while the other parts stop.
        stack.callback(parts.ready_file.remove)

    def _code_watcher(self) -> contextlib.AbstractContextManager[object]:
        # Only --reload needs watchfiles.
        from deferred_middleware.server.apps.code_watcher import CodeWatcher

        return CodeWatcher(
            {served.service: served.directory or Path.cwd() for served in self._config.served.apps},
            lambda service, files: self._events.put(_CodeChanged(service=service, files=files)),
            patterns=self._config.reload_include,
            ignored=[path for path in (self._config.data_dir, self._config.ready_file) if path is not None],
        )

    def _wait_until_all_serve(self, parts: ServerParts) -> bool:
        """Wait until every service answers; return false if a signal asks for the end before that."""
        waiting = set(parts.processes.services)
        while waiting:
            event = self._handle_event(parts)
            if event is None:
                return False
            if isinstance(event, ProcessReady):
                waiting.discard(event.service)
        return True

    def _handle_event(self, parts: ServerParts) -> ProcessEvent | _CodeChanged | None:
        """Wait for the next event, handle it, and return it; return None if it asks for the end."""
        event = self._events.get()
        if event is None or isinstance(event, _StopRequested):
            return None
        if isinstance(event, _StoreFailed):
            raise event.error
        if isinstance(event, StartFailed):
            raise AppStartError(event.message, event.traceback)
        if isinstance(event, _CodeChanged):
            names = ", ".join(os.path.relpath(path) for path in event.files)
            logger.info("Service %r is started again, because of changes in %s.", event.service, names)
            # An attempt that begins without a process would wait for the next process, however long that takes.
            parts.scheduler.suspend_service(event.service)
            parts.processes.restart(event.service)
        elif parts.processes.is_serving(event.service):
            parts.scheduler.resume_service(event.service)
        return event

    @contextlib.contextmanager
    def _killing_at_second_signal(self) -> Iterator[None]:
        """While this is entered, a signal kills the app processes at once."""

        def watch() -> None:
            while (event := self._events.get()) is not None:
                if isinstance(event, _StopRequested) and self._parts is not None:
                    self._parts.processes.kill()

        watcher = threading.Thread(target=watch, name="second-signal")
        watcher.start()
        try:
            yield
        finally:
            self._events.put(None)
            watcher.join()

    def _stop(self, signum: int) -> None:
        self._events.put(_StopRequested(signum=signum))


def _admin_server(app: WSGIApplication, listener: socket.socket) -> contextlib.AbstractContextManager[None]:
    # A duplicate, because waitress closes its socket before the listener's owner does.
    server = AppServer(app, listener.dup(), threads=_ADMIN_THREADS, max_body_bytes=MAX_HTTP_BODY_BYTES)
    return serving(server, thread="admin")


def _stop_scheduler(scheduler: Scheduler) -> None:
    try:
        released = scheduler.stop(_STOP_GRACE_SECONDS)
    except (ServerError, sqlite3.Error) as error:
        logger.error("The tasks that were claimed could not be released; they run again at the next start: %s", error)
        return
    if released:
        print_line(
            f"{released} task{'s' if released > 1 else ''} did not finish in time; they run again at the next start."
        )
