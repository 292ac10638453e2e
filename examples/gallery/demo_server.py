"""The local server of the demonstration, which starts, watches and stops it as a separate process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

GALLERY: Final = Path(__file__).resolve().parent
SERVICES: Final = ("default", "background")
ADMIN_PORT: Final = 8000
START_SECONDS: Final = 120
STOP_SECONDS: Final = 20
LOG_LINES_SHOWN: Final = 25


class DemoError(Exception):
    """The reason why the demonstration can't continue. The message is for the person at the terminal."""


class Interrupted(Exception):
    """A signal asked the demonstration to end. ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


class StopSignals:
    """Records the signals that ask for the end. They take effect only in :meth:`pause` and :meth:`check`.

    An exception at an arbitrary point could come between the start of a process and its assignment to a variable. Then
    the process would keep running.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._writable, False)
        signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has arrived."""
        if self.received is not None:
            raise Interrupted(self.received)

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds``. If a signal arrives before, raise :class:`Interrupted`."""
        self.check()
        select.select([self._readable], [], [], seconds)
        self.check()


class LocalServer:
    """``deferred-middleware serve`` for the gallery: its addresses, its log, and whether it is running."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, data_dir: Path) -> None:
        self._process = process
        self._log = log
        self._data_dir = data_dir
        self.addresses: dict[str, str] = {}
        """The services' addresses, once the server is ready."""
        self.page = ""
        """The address of the page with the queues and tasks, once the server is ready."""

    def check_alive(self) -> None:
        """If the server has ended, raise :class:`DemoError` with the end of its log."""
        status = self._process.poll()
        if status is not None:
            raise DemoError(f"the local server ended with status {status}.\n{self.log_end()}")

    def wait_until_ready(self, ready_file: Path, signals: StopSignals) -> None:
        """Wait until every service answers. Raise :class:`DemoError` if that doesn't happen."""
        deadline = time.monotonic() + START_SECONDS
        while not ready_file.exists():
            self.check_alive()
            if time.monotonic() > deadline:
                raise DemoError(f"the local server was not ready after {START_SECONDS} s.\n{self.log_end()}")
            signals.pause(0.05)
        ready = json.loads(ready_file.read_text())
        self.addresses, self.page = dict(ready["services"]), ready["admin"]

    def call(self, *arguments: str) -> None:
        """Enqueue a call with ``deferred-middleware call``. Raise :class:`DemoError` if that doesn't succeed."""
        command = [sys.executable, "-m", "deferred_middleware", "call", "--data-dir", str(self._data_dir), *arguments]
        done = subprocess.run(command, cwd=GALLERY, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        if done.returncode:
            raise DemoError(f"{' '.join(command[2:])} ended with status {done.returncode}: {done.stderr.strip()}")

    def log_end(self) -> str:
        """Return the last lines of the server's log."""
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(["Its last words were:", *(f"    {line}" for line in lines)]) if lines else "It said nothing."

    def log_line(self, fragment: str) -> str | None:
        """Return the first line of the log that contains ``fragment``."""
        lines = self._log.read_text(errors="replace").splitlines()
        return next((line for line in lines if fragment in line), None)

    def stop(self) -> None:
        """End the server and all processes that it started."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Its app processes end by themselves when it is gone.
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def local_server(data_dir: Path, port: int, signals: StopSignals) -> Iterator[LocalServer]:
    """Run the gallery as two services during the block. Its files are in ``data_dir``."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    ready_file, log = data_dir / "ready.json", data_dir / "server.log"
    ready_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "deferred_middleware", "serve", "main:app"]
    for service in SERVICES:
        command += ["--service", service]
    command += ["--port", str(port), "--admin-port", str(ADMIN_PORT if is_free(ADMIN_PORT) and port else 0)]
    command += ["--data-dir", str(data_dir), "--ready-file", str(ready_file)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=GALLERY,
            env={**os.environ, "DEFERRED_BACKGROUND_MODULE": "background"},  # the same as in app.yaml
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C then reaches only this process, which stops the server in order
        )
    server = LocalServer(process, log, data_dir)
    try:
        server.wait_until_ready(ready_file, signals)
        yield server
    finally:
        server.stop()


def is_free(port: int) -> bool:
    """Tell whether a server could listen on ``port`` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
