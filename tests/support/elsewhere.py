"""An app that runs outside the local server: under gunicorn, started as a developer starts it."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.repository import ROOT
from tests.support.running import WAIT_SECONDS, Recorder, Server


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Gunicorn:
    """The app under gunicorn, with the environment from the local server's environment file."""

    def __init__(
        self,
        server: Server,
        service: str,
        port: int,
        recorder: Recorder,
        *,
        directory: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.port = port
        directory = directory or server.directory
        self._log = directory / "gunicorn.log"
        environ_file = json.loads(server.ready_file.read_text())["environ_files"][service]
        words = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--threads=4", *arguments, "main:app"]
        command = f". {shlex.quote(environ_file)} && exec {shlex.join(words)}"
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "RECORDER": recorder.path}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(["sh", "-c", command], cwd=directory, env=environ, stdout=log, stderr=log)

    def request(self, method: str, path: str, content: object = None, **headers: str) -> tuple[int, bytes]:
        """Make a request; repeat it until gunicorn accepts connections."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
            try:
                connection.request(method, path, json.dumps(content), headers)
                response = connection.getresponse()
                return response.status, response.read()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self._log.read_text()
                # gunicorn doesn't announce that it is ready, so poll; the wait also detects that the process ended.
                with pytest.raises(subprocess.TimeoutExpired):
                    self.process.wait(0.02)
            finally:
                connection.close()

    def defer(self, what: str, target: str | None = None) -> None:
        """Make the app enqueue a call."""
        status, body = self.request("POST", "/defer", {"what": what, "target": target})
        assert status == 200, body.decode() + self._log.read_text()

    @property
    def output(self) -> str:
        """The output of the process."""
        return self._log.read_text()

    def stop(self) -> None:
        """Stop the process, and wait for its end."""
        self.process.terminate()
        self.process.wait(WAIT_SECONDS)
