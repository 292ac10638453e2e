"""App processes: each is started, watched, started again when it dies, and stopped.

An :class:`AppProcess` keeps one service of the app running. A thread of its own starts the process, waits until the
process reports that it serves, waits for its end, and starts it again: at once if the code has changed, or else after a
pause that doubles from :data:`MIN_PAUSE_SECONDS` to :data:`MAX_PAUSE_SECONDS` while the process keeps dying. Its events
go to a callback:

    process = AppProcess(config, on_event=events.put)
    process.start()
    events.get()        # ProcessReady(service="default"), or StartFailed(…)
    process.restart()
    process.stop()

If a process fails before it has ever served, it is not started again: a person has to correct a mistake. If a process
fails to start after its code has changed, it is started again at the next change. Until then, requests get an error
page.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from deferred_middleware.server.apps.app_server import STOP_GRACE_SECONDS
from deferred_middleware.server.apps.error_page import ErrorPage, serving_error_page
from deferred_middleware.server.apps.spawn import (
    AppProcessConfig,
    SpawnedApp,
    StartResult,
    describe_end,
    kill_group,
    peek_status,
)
from deferred_middleware.server.delivery.attempt_result import ProcessEnd
from deferred_middleware.server.delivery.channel_socket import ChannelSocket

MIN_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 10.0
# If a process served this long before it died, it is started again after the shortest pause.
_SETTLED_SECONDS = 10.0
_KILL_AFTER_SECONDS = STOP_GRACE_SECONDS + 3.0

logger: Final = logging.getLogger(__name__)


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


@dataclass(frozen=True, kw_only=True)
class ProcessStatus:
    """How a process stands: its ID, whether it serves and since when, and how often it was started."""

    pid: int | None
    is_serving: bool
    starts: int
    since: float | None


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run of the process: how it started and ended, how long it served, whether a change of the code caused it."""

    start: StartResult
    end: str
    served_seconds: float
    after_change: bool


class Deliveries(Protocol):
    """Who delivers tasks to the processes of a service. The thread that keeps the service running calls it."""

    def process_serves(self, channel: ChannelSocket, kill: Callable[[str], None]) -> None:
        """Deliver over ``channel`` from now on. Call ``kill`` with a reason if the process can't be trusted."""

    def process_ended(self, channel: ChannelSocket, end: ProcessEnd) -> None:
        """Find out what became of the deliveries, and close the channel."""


class AppProcess:
    """Keeps one service of the app running in a process of its own.

    ``on_event`` is called by the thread that keeps it running. Tasks are delivered by ``deliveries``.
    """

    def __init__(
        self,
        config: AppProcessConfig,
        *,
        on_event: Callable[[ProcessEvent], None],
        deliveries: Deliveries | None = None,
    ) -> None:
        self._config = config
        self._on_event = on_event
        self._deliveries = deliveries
        # Guards the process, which only the thread starts and reaps, and whether it serves.
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        # Why the process was killed because of its deliveries, if it was.
        self._kill_reason: str | None = None
        self._starts = 0
        self._ready_since: float | None = None
        self._stopping = threading.Event()
        # Set when the code is not the code that the process was started with.
        self._changed = threading.Event()
        # Set together with either of them; it ends the thread's wait for the next start.
        self._interrupted = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"app-{config.service}")
        # Only the thread uses these three: whether the process has ever served, how many processes that served have
        # ended, and which failure was logged last.
        self._has_served = False
        self._ends = 0
        self._logged_failure = StartResult()

    @property
    def pid(self) -> int | None:
        """The process's ID, or ``None`` while there is none."""
        with self._lock:
            return self._process.pid if self._process is not None else None

    @property
    def is_serving(self) -> bool:
        """Whether the process serves requests and is not about to be restarted."""
        with self._lock:
            return self._is_ready and not self._changed.is_set()

    @property
    def status(self) -> ProcessStatus:
        """How the process stands, for people."""
        with self._lock:
            is_serving = self.is_serving and self._process is not None
            return ProcessStatus(
                pid=self.pid,
                is_serving=is_serving,
                starts=self._starts,
                since=self._ready_since if is_serving else None,
            )

    def start(self) -> None:
        """Start the process; an event says whether it serves."""
        self._thread.start()

    def restart(self) -> None:
        """Have the process finish its requests, and start it again with the code as it is now."""
        # Under the lock, so that the signal does not go to a process that has the new code already.
        with self._lock:
            self._changed.set()
            self._interrupted.set()
            self._signal(signal.SIGTERM, group=False)
            process = self._process
        if process is not None:
            timer = threading.Timer(_KILL_AFTER_SECONDS, self._kill_if_running, args=(process,))
            timer.daemon = True
            timer.start()

    def request_stop(self) -> None:
        """Ask the process to finish its requests and to end; return at once."""
        self._stopping.set()
        self._interrupted.set()
        self._signal(signal.SIGTERM, group=False)

    def kill(self) -> None:
        """Kill the process and everything that it started."""
        self._stopping.set()
        self._interrupted.set()
        self._signal(signal.SIGKILL, group=True)

    def stop(self) -> None:
        """Ask the process to end, kill it if it does not, and return when it has ended."""
        self.request_stop()
        if self._thread.ident is None:
            return
        self._thread.join(_KILL_AFTER_SECONDS)
        if self._thread.is_alive():
            logger.warning("The app process of service %r did not stop; it is killed.", self._config.service)
            self.kill()
            self._thread.join()

    def _kill_if_running(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process that was asked to end and has not: a thread of the app may keep it running."""
        with self._lock:
            # If it is another one, this process has been reaped.
            if self._process is process:
                logger.warning("The app process of service %r did not end; it is killed.", self._config.service)
                kill_group(process)

    def _signal(self, signum: signal.Signals, *, group: bool) -> None:
        with self._lock:
            # Under the lock the process is not reaped, so its ID can't belong to another process.
            if self._process is not None:
                # Popen.send_signal would reap a process that has ended.
                try:
                    (os.killpg if group else os.kill)(self._process.pid, signum)
                except ProcessLookupError:
                    logger.debug("The app process of service %r has ended already.", self._config.service)

    def _run(self) -> None:
        try:
            self._keep_running()
        except Exception as error:
            # Nobody waits for this thread, but somebody waits for an event.
            logger.exception("The app process of service %r can't be run.", self._config.service)
            self.kill()
            self._discard()
            message = f"The app process can't be run: {error}"
            self._on_event(StartFailed(service=self._config.service, message=message, traceback=""))

    def _keep_running(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            run = self._run_once()
            if self._stopping.is_set():
                return
            if self._changed.is_set():
                deaths = 0
            elif run.start.failure is None:
                deaths = 1 if run.served_seconds >= _SETTLED_SECONDS else deaths + 1
                seconds = pause_seconds(deaths)
                service = self._config.service
                logger.error(
                    "The app process of service %r %s; it is started again in %.1f s.", service, run.end, seconds
                )
                self._interrupted.wait(seconds)
            elif not self._has_served:
                self._on_event(
                    StartFailed(service=self._config.service, message=run.end, traceback=run.start.traceback)
                )
                return
            elif run.after_change:
                self._log_failure(run.start, "It is started when its code changes again.")
                with self._error_page(run.start):
                    self._interrupted.wait()
            else:
                deaths += 1
                seconds = pause_seconds(deaths)
                self._log_failure(run.start, f"Next try in {seconds:.1f} s.")
                self._interrupted.wait(seconds)

    def _run_once(self) -> _Run:
        """Start the process, and wait for its end."""
        after_change = self._changed.is_set()
        spawned = self._spawn()
        start = spawned.wait_until_ready()
        ready_at = time.monotonic()
        if start.failure is None:
            self._serves(spawned)
            end = describe_end(self._wait_for_end(spawned.process))
            with self._lock:
                reason, self._kill_reason = self._kill_reason, None
            end = f"was ended by the server: {reason}" if reason is not None else end
            self._ended(spawned.channel, end)
        else:
            kill_group(spawned.process)
            self._wait_for_end(spawned.process)
            spawned.channel.close()
            end = start.failure
        return _Run(start=start, end=end, served_seconds=time.monotonic() - ready_at, after_change=after_change)

    def _spawn(self) -> SpawnedApp:
        # Under the lock: a change before this is in the new process's code, and a change after it sets the flag again.
        with self._lock:
            self._changed.clear()
            self._interrupted.clear()
            spawned = SpawnedApp(self._config)
            self._starts += 1
            self._process = spawned.process
        if self._stopping.is_set():
            self._signal(signal.SIGTERM, group=False)
        spawned.send_config()
        return spawned

    def _ended(self, channel: ChannelSocket, how: str) -> None:
        self._ends += 1
        intended = self._stopping.is_set() or self._changed.is_set()
        if self._deliveries is None:
            channel.close()
        else:
            end = ProcessEnd(service=self._config.service, number=self._ends, how=how, intended=intended)
            self._deliveries.process_ended(channel, end)

    def _serves(self, spawned: SpawnedApp) -> None:
        if self._has_served:
            logger.info("Service %r is running again.", self._config.service)
        self._has_served = True
        with self._lock:
            self._is_ready = True
            self._ready_since = time.time()
        if self._deliveries is not None:
            self._deliveries.process_serves(spawned.channel, lambda reason: self._kill_because(spawned.process, reason))
        self._on_event(ProcessReady(service=self._config.service))

    def _kill_because(self, process: subprocess.Popen[bytes], reason: str) -> None:
        """Kill a process that does not keep to the rules of the channel, unless it has ended."""
        with self._lock:
            if self._process is process:
                self._kill_reason = reason
                kill_group(process)

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> int:
        # Wait without reaping: until then, neither its ID nor its group's ID can belong to another process.
        peek_status(process)
        with self._lock:
            self._is_ready = False
            kill_group(process)
            returncode = process.wait()
            self._process = None
        assert process.stdin is not None
        process.stdin.close()
        return returncode

    def _discard(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _error_page(self, start: StartResult) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the service's port answers with an error page."""
        page = ErrorPage(self._config.service, str(start.failure), start.traceback)
        return serving_error_page(page, self._config.listener)

    def _log_failure(self, start: StartResult, what_next: str) -> None:
        """Log why the service can't be started again. Repeated failures are logged without their traceback."""
        is_new = start.traceback and start != self._logged_failure
        shown = f"\n{start.traceback.rstrip()}" if is_new else ""
        service = self._config.service
        logger.error("Service %r can't be started again: %s %s%s", service, start.failure, what_next, shown)
        self._logged_failure = start


def pause_seconds(deaths: int) -> float:
    """Return how long to wait before the next start, after the process died ``deaths`` times in a row."""
    return min(MAX_PAUSE_SECONDS, MIN_PAUSE_SECONDS * 2.0 ** min(deaths - 1, 16))
