"""A child process that leads a process group of its own: wait for its end, end it, and say how it ended.

One start of an app process: what it is told, and what becomes of it.

spawned = SpawnedApp(config)
spawned.tell()
spawned.wait_until_ready()      # Start(), or Start(failure="…", traceback="…")
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
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deferred_middleware.server.apps.app_server import AppServerConfig
from deferred_middleware.server.config.served import START_TIMEOUT_SECONDS

_logger = logging.getLogger(__name__)


def peek_status(process: subprocess.Popen[bytes]) -> int:
    """Wait until ``process`` has ended; return its status as ``Popen.returncode`` has it.

    Where the system can, it is left to be reaped, so that its ID stays its own.
    """
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return process.wait()
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if ended is None:
        return 0
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End ``process``, which is not reaped yet, and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # The latter is what macOS says of a group of zombies.
        _logger.debug("Nothing is left of process %d.", process.pid)


def describe_end(returncode: int) -> str:
    """Say how a process ended: ``ended with status 3``, ``was killed by signal 9 (SIGKILL)``."""
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        name = f" ({signal.Signals(-returncode).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-returncode}{name}"


@dataclass(frozen=True, kw_only=True)
class AppProcessConfig:
    """How to run one service. ``environ`` is the whole environment of the process; ``listener`` stays the caller's.

    ``directory`` is where the app is found and runs; without one it is this process's own.
    """

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
class Start:
    """How one start ended: ``failure`` is ``None`` if the process serves."""

    failure: str | None = None
    traceback: str = ""


class SpawnedApp:
    """A process that was started for the app of ``config``."""

    def __init__(self, config: AppProcessConfig) -> None:
        self._config = config
        self._status_fd, self._told_fd = os.pipe()
        self._listener_fd = config.listener.fileno()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deferred_middleware.server.apps.app_server"],
                stdin=subprocess.PIPE,
                env=dict(config.environ),
                pass_fds=(self._listener_fd, self._told_fd),
                # Ctrl-C at the terminal must not reach it, and what it starts must be found to be ended.
                start_new_session=True,
            )
        except BaseException:
            os.close(self._status_fd)
            raise
        finally:
            os.close(self._told_fd)

    def tell(self) -> None:
        """Tell the process what to serve."""
        config = self._config
        told = AppServerConfig(
            app=config.app,
            directory=str(config.directory) if config.directory is not None else "",
            service=config.service,
            threads=config.threads,
            socket_fd=self._listener_fd,
            status_fd=self._told_fd,
            delivery_token=config.delivery_token,
            api_ticket=config.api_ticket,
            default_hostname=config.default_hostname,
        )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(told.to_line())
            self.process.stdin.flush()
        except BrokenPipeError:
            _logger.debug("The app process of service %r ended before it was told what to serve.", config.service)

    def wait_until_ready(self) -> Start:
        """Wait until it serves, or can't; to be called once."""
        config = self._config
        deadline = time.monotonic() + config.start_timeout_seconds
        line = b""
        with open(self._status_fd, "rb", buffering=0) as status:
            while not line.endswith(b"\n"):
                left_seconds = deadline - time.monotonic()
                # A stop needs no looking at: it ends the process, and with it the pipe.
                if left_seconds <= 0 or not select.select([status], [], [], left_seconds)[0]:
                    return Start(
                        failure=f"{config.app} was not imported within {config.start_timeout_seconds:.0f} s; "
                        "what it does while it is imported has to end."
                    )
                data = os.read(status.fileno(), 65536)
                if not data:
                    end = describe_end(peek_status(self.process))
                    return Start(
                        failure=f"The app process of service {config.service!r} {end} while {config.app} was imported."
                    )
                line += data
        event = json.loads(line)
        if event["event"] == "ready":
            return Start()
        return Start(failure=event["message"], traceback=event["traceback"])
