"""App processes: start one, learn whether it serves, start it again when it dies, stop it.

An :class:`AppProcess` keeps one service of the app running. One thread of its own starts the process, waits until it
says that it serves, waits for its end, and starts it again, after a pause that doubles from :data:`MIN_PAUSE_SECONDS`
to :data:`MAX_PAUSE_SECONDS` while it keeps dying. What happens is told to a callback:

    process = AppProcess(config, on_event=events.put)
    process.start()
    events.get()        # ProcessReady(service="default"), or StartFailed(…)
    process.stop()

A process that fails before it has ever served is not started again: that is a mistake to be told to a person.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deferred_middleware.server.appserver import STOP_GRACE_SECONDS, AppServerConfig
from deferred_middleware.server.processends import ProcessEnds

MIN_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 10.0
START_TIMEOUT_SECONDS = 120.0
"""How long an app may take to be imported."""
_SETTLED_SECONDS = 10.0
"""A process that served this long before it died is started again after the shortest pause."""
_KILL_AFTER_SECONDS = STOP_GRACE_SECONDS + 3.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProcessReady:
    """An app process serves for the first time."""

    service: str


@dataclass(frozen=True, kw_only=True)
class StartFailed:
    """An app process could not start. ``message`` is a sentence for a person, ``traceback`` may be empty."""

    service: str
    message: str
    traceback: str


ProcessEvent = ProcessReady | StartFailed


@dataclass(frozen=True, kw_only=True)
class AppProcessConfig:
    """How to run one service. ``environ`` is the whole environment of the process; ``listener`` stays the caller's."""

    app: str
    service: str
    threads: int
    listener: socket.socket
    environ: Mapping[str, str]
    delivery_token: str
    api_ticket: str
    default_hostname: str
    directory: Path | None = None
    start_timeout_seconds: float = START_TIMEOUT_SECONDS


@dataclass(frozen=True, kw_only=True)
class _Start:
    """How one start ended: ``failure`` is ``None`` if the process serves."""

    failure: str | None = None
    traceback: str = ""


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
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"app-{config.service}")

    @property
    def pid(self) -> int | None:
        """The process's ID, or ``None`` while there is none."""
        with self._lock:
            return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Begin; whether it serves is told to the callback."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask the process to finish the requests that run, and to end; return at once."""
        self._stopping.set()
        self._signal(signal.SIGTERM, group=False)

    def kill(self) -> None:
        """End the process, and what it started, at once."""
        self._stopping.set()
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
        while not self._stopping.is_set():
            process, status = self._spawn()
            with open(status, "rb") as stream:
                start = self._wait_until_ready(process, stream.fileno())
            ready_at = time.monotonic()
            if start.failure is None:
                if has_served:
                    _logger.info("Service %r is running again.", service)
                else:
                    has_served = True
                    self._on_event(ProcessReady(service=service))
                end = _describe_end(self._wait_for_end(process))
                self._ends.note(service, end, intended=self._stopping.is_set())
            else:
                _kill_group(process)
                end = start.failure
                self._wait_for_end(process)
                if not has_served and not self._stopping.is_set():
                    self._on_event(StartFailed(service=service, message=end, traceback=start.traceback))
                    return
            if self._stopping.is_set():
                return
            settled = start.failure is None and time.monotonic() - ready_at >= _SETTLED_SECONDS
            deaths = 1 if settled else deaths + 1
            seconds = pause_seconds(deaths)
            if start.failure is None:
                _logger.error("The app process of service %r %s; it is started again in %.1f s.", service, end, seconds)
            else:
                _logger.error("Service %r can't be started again: %s Next try in %.1f s.", service, end, seconds)
            self._stopping.wait(seconds)

    def _spawn(self) -> tuple[subprocess.Popen[bytes], int]:
        config = self._config
        reading, writing = os.pipe()
        try:
            listener_fd = config.listener.fileno()
            process = subprocess.Popen(
                [sys.executable, "-m", "deferred_middleware.server.appserver"],
                stdin=subprocess.PIPE,
                env=dict(config.environ),
                pass_fds=(listener_fd, writing),
                # Ctrl-C at the terminal must not reach it, and what it starts must be found to be ended.
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with self._lock:
            self._process = process
        if self._stopping.is_set():
            self._signal(signal.SIGTERM, group=False)
        told = AppServerConfig(
            app=config.app,
            directory=str(config.directory) if config.directory is not None else "",
            service=config.service,
            threads=config.threads,
            socket_fd=listener_fd,
            status_fd=writing,
            delivery_token=config.delivery_token,
            api_ticket=config.api_ticket,
            default_hostname=config.default_hostname,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(told.to_line())
            process.stdin.flush()
        except BrokenPipeError:
            _logger.debug("The app process of service %r ended before it was told what to serve.", config.service)
        return process, reading

    def _wait_until_ready(self, process: subprocess.Popen[bytes], status_fd: int) -> _Start:
        config = self._config
        deadline = time.monotonic() + config.start_timeout_seconds
        line = b""
        while not line.endswith(b"\n"):
            left_seconds = deadline - time.monotonic()
            # A stop needs no looking at: it ends the process, and with it the pipe.
            if left_seconds <= 0 or not select.select([status_fd], [], [], left_seconds)[0]:
                return _Start(
                    failure=f"{config.app} was not imported within {config.start_timeout_seconds:.0f} s; "
                    "what it does while it is imported has to end."
                )
            data = os.read(status_fd, 65536)
            if not data:
                end = _describe_end(_peek_status(process))
                return _Start(
                    failure=f"The app process of service {config.service!r} {end} while {config.app} was imported."
                )
            line += data
        event = json.loads(line)
        if event["event"] == "ready":
            return _Start()
        return _Start(failure=event["message"], traceback=event["traceback"])

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> int:
        # Wait without reaping: as long as its ID is taken, its group's can't be anybody else's.
        _peek_status(process)
        with self._lock:
            _kill_group(process)
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


def _peek_status(process: subprocess.Popen[bytes]) -> int:
    """Wait until ``process`` has ended; return its status as ``Popen.returncode`` has it.

    Where the system can, it is left to be reaped, so that its ID stays its own.
    """
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return process.wait()
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if ended is None:
        return 0
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def pause_seconds(deaths: int) -> float:
    """Return how long to wait before the next start, after the process died ``deaths`` times in a row."""
    return min(MAX_PAUSE_SECONDS, MIN_PAUSE_SECONDS * 2.0 ** min(deaths - 1, 16))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End ``process``, which is not reaped yet, and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # The latter is what macOS says of a group of zombies.
        _logger.debug("Nothing is left of process %d.", process.pid)


def _describe_end(returncode: int) -> str:
    """Say how a process ended: ``ended with status 3``, ``was killed by signal 9 (SIGKILL)``."""
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        name = f" ({signal.Signals(-returncode).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-returncode}{name}"
