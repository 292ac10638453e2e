"""App processes: start one, learn whether it serves, start it again when it dies, stop it.

An :class:`AppProcess` keeps one service of the app running. One thread of its own starts the process, waits until it
says that it serves, waits for its end, and starts it again: after a pause that doubles from :data:`MIN_PAUSE_SECONDS`
to :data:`MAX_PAUSE_SECONDS` while it keeps dying, or at once when its code has changed. What happens is told to a
callback:

    process = AppProcess(config, on_event=events.put)
    process.start()
    events.get()        # ProcessReady(service="default"), or StartFailed(…)
    process.restart()
    process.stop()

A process that fails before it has ever served is not started again: that is a mistake to be told to a person. One that
can't serve with its code as it was changed is started again when it has changed once more.

All app processes of a server: one for each service whose app runs here, started, and stopped, together.

processes = AppProcesses(configs, on_event=events.put, ends=ends)
processes.start()       # what becomes of each is told to on_event
processes.stop()
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from deferred_middleware.server.apps.app_server import STOP_GRACE_SECONDS
from deferred_middleware.server.apps.process_ends import ProcessEnds
from deferred_middleware.server.apps.spawn import (
    AppProcessConfig,
    SpawnedApp,
    Start,
    describe_end,
    kill_group,
    peek_status,
)

MIN_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 10.0
_SETTLED_SECONDS = 10.0
"""A process that served this long before it died is started again after the shortest pause."""
_KILL_AFTER_SECONDS = STOP_GRACE_SECONDS + 3.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProcessReady:
    """An app process serves, for the first time or again."""

    service: str


@dataclass(frozen=True, kw_only=True)
class StartFailed:
    """An app process could not start. ``message`` is a sentence for a person, ``traceback`` may be empty."""

    service: str
    message: str
    traceback: str


ProcessEvent = ProcessReady | StartFailed


class AppProcess:
    """Keeps one service of the app running in a process of its own."""

    def __init__(
        self,
        config: AppProcessConfig,
        *,
        on_event: Callable[[ProcessEvent], None],
        ends: ProcessEnds | None = None,
    ) -> None:
        self._config = config
        self._on_event = on_event
        self._ends = ends if ends is not None else ProcessEnds()
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._stopping = threading.Event()
        # That the code is not what the process was started with.
        self._changed = threading.Event()
        # Set with either of them, for who waits until the next start.
        self._interrupted = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"app-{config.service}")

    @property
    def pid(self) -> int | None:
        """The process's ID, or ``None`` while there is none."""
        with self._lock:
            return self._process.pid if self._process is not None else None

    @property
    def is_serving(self) -> bool:
        """Whether the process answers, and is not about to be started again."""
        with self._lock:
            return self._ready and not self._changed.is_set()

    def start(self) -> None:
        """Begin; whether it serves is told to the callback."""
        self._thread.start()

    def restart(self) -> None:
        """Have the process finish the requests that run, and started again with its code as it is now."""
        # In one step, so that the signal is not for a process that has the new code already.
        with self._lock:
            self._changed.set()
            self._interrupted.set()
            self._signal(signal.SIGTERM, group=False)
            process = self._process
        if process is not None:
            timer = threading.Timer(_KILL_AFTER_SECONDS, self._insist, args=(process,))
            timer.daemon = True
            timer.start()

    def request_stop(self) -> None:
        """Ask the process to finish the requests that run, and to end; return at once."""
        self._stopping.set()
        self._interrupted.set()
        self._signal(signal.SIGTERM, group=False)

    def kill(self) -> None:
        """End the process, and what it started, at once."""
        self._stopping.set()
        self._interrupted.set()
        self._signal(signal.SIGKILL, group=True)

    def stop(self) -> None:
        """Ask the process to end, insist after a while, and return when it is gone."""
        self.request_stop()
        if self._thread.ident is None:
            return
        self._thread.join(_KILL_AFTER_SECONDS)
        if self._thread.is_alive():
            _logger.warning("The app process of service %r did not stop; it is killed.", self._config.service)
            self.kill()
            self._thread.join()

    def _insist(self, process: subprocess.Popen[bytes]) -> None:
        """End a process that was asked to end, and has not: a thread of the app's may keep it."""
        with self._lock:
            # Otherwise it has been reaped.
            if self._process is process:
                _logger.warning("The app process of service %r did not end; it is killed.", self._config.service)
                kill_group(process)

    def _signal(self, signum: signal.Signals, *, group: bool) -> None:
        with self._lock:
            # Under the lock the process has not been reaped, so that its ID can't mean another one.
            if self._process is not None:
                # Not Popen.send_signal: that reaps a process that has ended.
                try:
                    (os.killpg if group else os.kill)(self._process.pid, signum)
                except ProcessLookupError:
                    _logger.debug("The app process of service %r is gone already.", self._config.service)

    def _run(self) -> None:
        try:
            self._keep_running()
        except Exception as error:
            # Nobody waits for this thread's result: whoever waits for the process must be told.
            _logger.exception("Keeping the app process of service %r running failed.", self._config.service)
            self.kill()
            self._forget()
            self._on_event(
                StartFailed(
                    service=self._config.service, message=f"The app process can't be run: {error}", traceback=""
                )
            )

    def _keep_running(self) -> None:
        service = self._config.service
        has_served = False
        deaths = 0
        told = Start()
        while not self._stopping.is_set():
            has_changed = self._changed.is_set()
            spawned = self._spawn()
            start = spawned.wait_until_ready()
            ready_at = time.monotonic()
            if start.failure is None:
                if has_served:
                    _logger.info("Service %r is running again.", service)
                has_served = True
                self._set_ready(True)
                self._on_event(ProcessReady(service=service))
                end = describe_end(self._wait_for_end(spawned.process))
                self._ends.note(service, end, intended=self._stopping.is_set() or self._changed.is_set())
            else:
                kill_group(spawned.process)
                end = start.failure
                self._wait_for_end(spawned.process)
            if self._stopping.is_set():
                return
            if self._changed.is_set():
                deaths = 0
                continue
            if start.failure is not None and not has_served:
                self._on_event(StartFailed(service=service, message=end, traceback=start.traceback))
                return
            if start.failure is not None and has_changed:
                _say_failure(service, start, "It is started when its code changes again.", known=start == told)
                told = start
                self._interrupted.wait()
                continue
            settled = start.failure is None and time.monotonic() - ready_at >= _SETTLED_SECONDS
            deaths = 1 if settled else deaths + 1
            seconds = pause_seconds(deaths)
            if start.failure is None:
                _logger.error("The app process of service %r %s; it is started again in %.1f s.", service, end, seconds)
            else:
                _say_failure(service, start, f"Next try in {seconds:.1f} s.", known=start == told)
                told = start
            self._interrupted.wait(seconds)

    def _spawn(self) -> SpawnedApp:
        # In one step, so that a change is seen either by the new process, or as one since it was started.
        with self._lock:
            self._changed.clear()
            self._interrupted.clear()
            spawned = SpawnedApp(self._config)
            self._process = spawned.process
        if self._stopping.is_set():
            self._signal(signal.SIGTERM, group=False)
        spawned.tell()
        return spawned

    def _set_ready(self, ready: bool) -> None:
        with self._lock:
            self._ready = ready

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> int:
        # Wait without reaping: as long as its ID is taken, its group's can't be anybody else's.
        peek_status(process)
        with self._lock:
            self._ready = False
            kill_group(process)
            returncode = process.wait()
            self._process = None
        assert process.stdin is not None
        process.stdin.close()
        return returncode

    def _forget(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def pause_seconds(deaths: int) -> float:
    """Return how long to wait before the next start, after the process died ``deaths`` times in a row."""
    return min(MAX_PAUSE_SECONDS, MIN_PAUSE_SECONDS * 2.0 ** min(deaths - 1, 16))


def _say_failure(service: str, start: Start, what_then: str, *, known: bool) -> None:
    """Tell why a service can't be started again; where in its code only once, however often it is tried."""
    shown = f"\n{start.traceback.rstrip()}" if start.traceback and not known else ""
    _logger.error("Service %r can't be started again: %s %s%s", service, start.failure, what_then, shown)


class AppProcesses:
    """Keeps the services of ``configs`` running; for the callbacks see :class:`AppProcess`."""

    def __init__(
        self, configs: Iterable[AppProcessConfig], *, on_event: Callable[[ProcessEvent], None], ends: ProcessEnds
    ) -> None:
        self._processes = {config.service: AppProcess(config, on_event=on_event, ends=ends) for config in configs}

    @property
    def services(self) -> set[str]:
        """The names of the services."""
        return set(self._processes)

    def start(self) -> None:
        """Begin."""
        for process in self._processes.values():
            process.start()

    def is_serving(self, service: str) -> bool:
        """Tell whether the process of a service answers, and is not about to be started again."""
        return self._processes[service].is_serving

    def restart(self, service: str) -> None:
        """Have the process of a service started again with its code as it is now."""
        self._processes[service].restart()

    def stop(self) -> None:
        """Ask all to finish what runs, and to end; return when they are gone."""
        for process in self._processes.values():
            process.request_stop()
        for process in self._processes.values():
            process.stop()

    def kill(self) -> None:
        """End all at once."""
        for process in self._processes.values():
            process.kill()
