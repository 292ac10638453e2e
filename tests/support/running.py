"""A running server for the acceptance tests: the real command, in real processes, on its own port.

def test_something(serve, recorder):
    server = serve(APP_SOURCE, services=["default", "background"])
    server.post("/add", {"url": "/work"})
    assert recorder.next()["path"] == "/work"
    assert server.stop() == 0
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import ROOT

WAIT_SECONDS = 60.0
_MARK = "DEFERRED_ACCEPTANCE_TEST"
# How the names of variables begin that the SDK's stubs set.
_OF_THE_SDK = ("HTTP_", "SERVER_", "REQUEST_", "APPLICATION_ID", "AUTH_DOMAIN", "CURRENT_", "DEFAULT_VERSION_", "API_")


class Recorder:
    """Receives reports from the apps under test: ``tell(…)`` in an app sends JSON to the ``RECORDER`` socket."""

    def __init__(self) -> None:
        # A socket's path can have about 100 characters; pytest's directories are longer.
        self._directory = tempfile.mkdtemp(prefix="dm")
        self.path = os.path.join(self._directory, "s")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)

    def next(self, timeout_seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """Return the next report; raise :class:`TimeoutError` if none arrives."""
        self._socket.settimeout(timeout_seconds)
        told: dict[str, Any] = json.loads(self._socket.recv(1 << 20))
        return told

    def is_silent(self, seconds: float) -> bool:
        """Return whether no report arrives for ``seconds``."""
        return not select.select([self._socket], [], [], seconds)[0]

    def close(self) -> None:
        """Close the socket and remove it."""
        self._socket.close()
        shutil.rmtree(self._directory)


# The first lines of the apps under test.
TELL = """
import json, os, socket

def tell(**told):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(json.dumps(told).encode(), os.environ["RECORDER"])
"""


class Server:
    """One ``deferred-middleware serve`` process, or another ``command``. You can start it again after it ended."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        program: Sequence[str] = ("-m", "deferred_middleware"),
        command: str = "serve",
    ) -> None:
        self.directory = directory
        self.data_dir = directory / ".deferred"
        self.ready_file = directory / "ready.json"
        self.services: dict[str, str] = {}
        self.admin = ""
        self.cloud_tasks = ""
        self._log = directory / "server.log"
        self._mark = uuid.uuid4().hex
        # What the SDK keeps in the tests' own process is not in a developer's shell.
        shell = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_SDK)}
        self._environ = {**shell, "PYTHONPATH": str(ROOT), **environ, _MARK: self._mark}
        self._command = [sys.executable, *program, command, *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process ID of the queue process."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """The process's standard output and standard error."""
        return self._log.read_text()

    def start(self) -> Server:
        """Start the process and wait until it is ready; if it ends first, fail with its output."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self, *, stdin: int = subprocess.DEVNULL, stdout: int | None = None) -> None:
        """Start the process without waiting; ``stdout`` is a file descriptor to use instead of the log."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                env=self._environ,
                stdin=stdin,
                stdout=log if stdout is None else stdout,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait for the ready file and read the server's addresses from it."""
        assert self._process is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.ready_file.exists():
            # No portable call waits for a file to appear, so poll; the wait also detects that the process ended.
            try:
                status = self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"not ready after {WAIT_SECONDS} s:\n{self.output}"
            else:
                pytest.fail(f"the server ended with status {status}:\n{self.output}")
        ready = json.loads(self.ready_file.read_text())
        self.services, self.admin, self.cloud_tasks = ready["services"], ready["admin"], ready["cloud_tasks"]

    def wait_for_output(self, text: str, *, times: int = 1) -> None:
        """Wait until the output contains ``text`` ``times`` times; fail if the process ends first."""
        assert self._process is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while self.output.count(text) < times:
            # No portable call waits for a file to change, so poll; the wait also detects that the process ended.
            try:
                status = self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"no {text!r} after {WAIT_SECONDS} s:\n{self.output}"
            else:
                pytest.fail(f"the server ended with status {status}:\n{self.output}")

    def get(self, path: str, *, service: str = "default", headers: Mapping[str, str] | None = None) -> str:
        """Return the body of a service's response, which must have status 200."""
        return self._request("GET", path, None, service, headers)

    def post(self, path: str, content: object, *, service: str = "default") -> str:
        """Post ``content`` as JSON; return the body of the response, which must have status 200."""
        return self._request("POST", path, json.dumps(content).encode(), service, None)

    def _request(
        self, method: str, path: str, body: bytes | None, service: str, headers: Mapping[str, str] | None
    ) -> str:
        host, _, port = self.services[service].removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        assert response.status == 200, f"{response.status} {text}\n{self.output}"
        return text

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another ``deferred-middleware`` command in the server's directory, as a developer does."""
        return subprocess.run(
            [sys.executable, "-m", "deferred_middleware", *arguments],
            cwd=self.directory,
            env={name: value for name, value in self._environ.items() if name != _MARK},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process group, as the terminal does for Ctrl-C."""
        os.killpg(self.pid, signum)

    def wait(self, timeout_seconds: float = WAIT_SECONDS) -> int:
        """Wait until the process ends by itself; return its exit status."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout_seconds} s:\n{self.output}")

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Stop the server, and return its exit status; fail if any of its processes is left."""
        self.send_signal(signum)
        status = self.wait()
        assert self.processes() == [], f"processes are left:\n{self.output}"
        return status

    def kill(self) -> None:
        """Kill the queue process, as ``kill -9`` does, and wait until all processes that it started have ended."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        for pid in self.processes():
            await_end(pid)
        assert self.processes() == []
        self.ready_file.unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """Return the IDs of the server's own process and all processes that it started, if they still run."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue  # it has ended, or belongs to another user
        return found

    def app_processes(self) -> list[int]:
        """Return the IDs of the processes that run the app. Each leads a process group, which has its guard too."""
        return [pid for pid in self.processes() if pid != self.pid and os.getpgid(pid) == pid]

    def discard(self) -> None:
        """Kill whatever still runs after a test."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


Serve = Callable[..., Server]


def signal_thread(pid: int, thread_id: int, signum: signal.Signals) -> None:
    """Send a signal to one thread of a process. The kernel may give a process's signals to any of its threads."""
    if ctypes.CDLL(None, use_errno=True).tgkill(pid, thread_id, signum) != 0:
        raise OSError(ctypes.get_errno(), "tgkill")


def await_end(pid: int, timeout_seconds: float = WAIT_SECONDS) -> None:
    """Wait until process ``pid``, which doesn't have to be a child, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], timeout_seconds)[0], f"process {pid} still runs"
    finally:
        os.close(descriptor)
