"""One start of an app process, which leads a process group of its own.

    spawned = SpawnedApp(config)
    spawned.send_config()
    spawned.wait_until_ready()      # StartResult(), or StartResult(failure="…", traceback="…")

Its end can be waited for without reaping it, its whole group can be killed, and its status can be described.
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
from typing import Final

from deferred_middleware.server.api.connections import ApiConnections
from deferred_middleware.server.apps import entry
from deferred_middleware.server.apps.app_server import AppServerConfig
from deferred_middleware.server.apps.console import is_at_terminal
from deferred_middleware.server.config.handlers import HandlerRule
from deferred_middleware.server.config.served import START_TIMEOUT_SECONDS
from deferred_middleware.server.delivery.channel_socket import ChannelSocket

# realpath, because Python puts the real directory of a script on its path.
_SCRIPT = os.path.realpath(entry.__file__)

logger: Final = logging.getLogger(__name__)


def peek_status(process: subprocess.Popen[bytes]) -> int:
    """Wait until ``process`` has ended; return its status in the form of ``Popen.returncode``.

    Where the system allows it, the process is not reaped, so that its ID is not used again.
    """
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return process.wait()
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if ended is None:
        return 0
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill ``process``, which is not reaped yet, and everything that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # macOS raises PermissionError for a group of zombies.
        logger.debug("The group of process %d has ended already.", process.pid)


def describe_end(returncode: int) -> str:
    """Describe how a process ended: ``ended with status 3``, ``was killed by signal 9 (SIGKILL)``."""
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        name = f" ({signal.Signals(-returncode).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-returncode}{name}"


@dataclass(frozen=True, kw_only=True)
class AppProcessConfig:
    """How to run one service. ``environ`` is the whole environment of the process; the caller closes ``listener``.

    At most ``threads`` requests run at a time, of which at most ``concurrency`` are tasks.
    ``directory`` is where the app is found and runs, by default the current directory. If the queue process writes
    ``task_lines``, the app process leaves out what they say. Its API calls go over ``api_connections``; without these,
    they go over HTTP.
    """

    app: str
    service: str
    threads: int
    concurrency: int
    listener: socket.socket
    environ: Mapping[str, str]
    delivery_token: str
    api_ticket: str
    default_hostname: str
    directory: Path | None = None
    task_lines: bool = False
    handlers: tuple[HandlerRule, ...] = ()
    start_timeout_seconds: float = START_TIMEOUT_SECONDS
    api_connections: ApiConnections | None = None


@dataclass(frozen=True, kw_only=True)
class StartResult:
    """How one start ended: ``failure`` is None if the process serves, or else a sentence for a person."""

    failure: str | None = None
    traceback: str = ""


class SpawnedApp:
    """A process that was started for the app of ``config``, and waits to read its configuration.

    Tasks are delivered over its ``channel``. Whoever has the process closes it.
    """

    def __init__(self, config: AppProcessConfig) -> None:
        self._config = config
        self._status_fd, self._status_write_fd = os.pipe()
        self._listener_fd = config.listener.fileno()
        connections = config.api_connections
        control = connections.control_socket(config.service) if connections is not None else None
        self._api_fd = control.fileno() if control is not None else None
        self._terminal_fd = os.dup(0) if is_at_terminal() else None
        self.channel: ChannelSocket = ChannelSocket(config.concurrency)
        ends = self.channel.ends
        self._channel_fd, self._begun_fd = ends.connection.fileno(), ends.memory
        inherited = (
            self._listener_fd,
            self._status_write_fd,
            self._channel_fd,
            self._begun_fd,
            self._api_fd,
            self._terminal_fd,
        )
        try:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, _SCRIPT],
                stdin=subprocess.PIPE,
                env=dict(config.environ),
                pass_fds=[descriptor for descriptor in inherited if descriptor is not None],
                # Ctrl-C at the terminal must not reach it, and everything it starts must be in one group, to be killed.
                start_new_session=True,
            )
        except BaseException:
            os.close(self._status_fd)
            self.channel.close()
            raise
        finally:
            os.close(self._status_write_fd)
            ends.close()
            if control is not None:
                control.close()
            if self._terminal_fd is not None:
                os.close(self._terminal_fd)

    def send_config(self) -> None:
        """Send the process its configuration."""
        config = self._config
        server_config = AppServerConfig(
            app=config.app,
            directory=str(config.directory) if config.directory is not None else "",
            service=config.service,
            threads=config.threads,
            socket_fd=self._listener_fd,
            status_fd=self._status_write_fd,
            channel_fd=self._channel_fd,
            begun_fd=self._begun_fd,
            api_fd=self._api_fd,
            terminal_fd=self._terminal_fd,
            delivery_token=config.delivery_token,
            api_ticket=config.api_ticket,
            default_hostname=config.default_hostname,
            task_lines=config.task_lines,
            handlers=config.handlers,
        )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(server_config.to_line())
            self.process.stdin.flush()
        except BrokenPipeError:
            logger.debug("The app process of service %r ended before it read its configuration.", config.service)

    def wait_until_ready(self) -> StartResult:
        """Wait until the process serves, or has failed to. Call it once."""
        config = self._config
        deadline = time.monotonic() + config.start_timeout_seconds
        line = b""
        with open(self._status_fd, "rb", buffering=0) as status:
            while not line.endswith(b"\n"):
                left_seconds = deadline - time.monotonic()
                # A stop ends the process and so closes the pipe, which ends this wait.
                if left_seconds <= 0 or not select.select([status], [], [], left_seconds)[0]:
                    return StartResult(
                        failure=f"{config.app} was not imported within {config.start_timeout_seconds:.0f} s; "
                        "check what its modules do when they are imported."
                    )
                data = os.read(status.fileno(), 65536)
                if not data:
                    end = describe_end(peek_status(self.process))
                    return StartResult(
                        failure=f"The app process of service {config.service!r} {end} while {config.app} was imported."
                    )
                line += data
        event = json.loads(line)
        if event["event"] == "ready":
            return StartResult()
        return StartResult(failure=event["message"], traceback=event["traceback"])
