"""A running server, for the acceptance tests: the real command, real processes, a port of its own.

def test_something(serve, recorder):
    server = serve(APP_SOURCE, services=["default", "background"])
    server.post("/add", {"url": "/work"})
    assert recorder.next()["path"] == "/work"
    assert server.stop() == 0
"""

from __future__ import annotations

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


class Recorder:
    """Hears what the apps under test tell: ``tell(…)`` in an app sends a JSON object to the socket in ``RECORDER``."""

    def __init__(self) -> None:
        # The path of a socket may have about 100 characters, fewer than pytest's directories take.
        self._directory = tempfile.mkdtemp(prefix="dm")
        self.path = os.path.join(self._directory, "s")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)

    def next(self, timeout_seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """Return what is told next; raises :class:`TimeoutError` if nothing is."""
        self._socket.settimeout(timeout_seconds)
        told: dict[str, Any] = json.loads(self._socket.recv(1 << 20))
        return told

    def is_silent(self, seconds: float) -> bool:
        """Return whether nothing is told for as long as ``seconds``."""
        return not select.select([self._socket], [], [], seconds)[0]

    def close(self) -> None:
        """Close the socket and remove it."""
        self._socket.close()
        shutil.rmtree(self._directory)


# What the apps under test begin with.
TELL = """
import json, os, socket

def tell(**told):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(json.dumps(told).encode(), os.environ["RECORDER"])
"""


class Server:
    """One ``deferred-middleware serve``, running or not. It can be started again after it ended."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        program: Sequence[str] = ("-m", "deferred_middleware"),
    ) -> None:
        self.directory = directory
        self.data_dir = directory / ".deferred"
        self.ready_file = directory / "ready.json"
        self.services: dict[str, str] = {}
        self.admin = ""
        self._log = directory / "server.log"
        self._mark = uuid.uuid4().hex
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT), **environ, _MARK: self._mark}
        self._command = [sys.executable, *program, "serve", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process ID of the queue process."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has written to standard output and standard error."""
        return self._log.read_text()

    def start(self) -> Server:
        """Start it and wait until it is ready; fail with its output when it ends instead."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self, *, stdout: int | None = None) -> None:
        """Start it without waiting for anything; ``stdout`` is a file descriptor to use instead of the log."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait for the ready file and read where everything answers."""
        assert self._process is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.ready_file.exists():
            # There is nothing to wait on that announces a file everywhere; the end of the process is waited for.
            try:
                status = self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"not ready after {WAIT_SECONDS} s:\n{self.output}"
            else:
                pytest.fail(f"the server ended with status {status}:\n{self.output}")
        ready = json.loads(self.ready_file.read_text())
        self.services, self.admin = ready["services"], ready["admin"]

    def wait_for_output(self, text: str, *, times: int = 1) -> None:
        """Wait until it has written ``text`` so many times; fail when it ends instead."""
        assert self._process is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while self.output.count(text) < times:
            # A file can't be waited on everywhere; the end of the process is waited for.
            try:
                status = self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"no {text!r} after {WAIT_SECONDS} s:\n{self.output}"
            else:
                pytest.fail(f"the server ended with status {status}:\n{self.output}")

    def get(self, path: str, *, service: str = "default", headers: Mapping[str, str] | None = None) -> str:
        """Return the body of what a service answers with status 200."""
        return self._request("GET", path, None, service, headers)

    def post(self, path: str, content: object, *, service: str = "default") -> str:
        """Post ``content`` as JSON; return the body of what a service answers with status 200."""
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
        """Run another ``deferred-middleware`` command in the server's directory, as a person does."""
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
        """Wait until it has ended by itself; return its status."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout_seconds} s:\n{self.output}")

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Stop it, and return its status; fail if any process of it is left."""
        self.send_signal(signum)
        status = self.wait()
        assert self.processes() == [], f"processes are left:\n{self.output}"
        return status

    def kill(self) -> None:
        """End the queue process at once, as ``kill -9`` does, and wait until everything it started is gone, too."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        for pid in self.processes():
            await_end(pid)
        assert self.processes() == []
        self.ready_file.unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """Return the IDs of all processes that this server started, and its own, that still run."""
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue  # it ended meanwhile, or is somebody else's
        return found

    def app_processes(self) -> list[int]:
        """Return the IDs of the processes that run the app."""
        return [pid for pid in self.processes() if pid != self.pid]

    def discard(self) -> None:
        """End what is left of it, after a test."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


Serve = Callable[..., Server]


def await_end(pid: int, timeout_seconds: float = WAIT_SECONDS) -> None:
    """Wait until process ``pid``, which need not be a child, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], timeout_seconds)[0], f"process {pid} still runs"
    finally:
        os.close(descriptor)
