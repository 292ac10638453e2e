"""An app that runs elsewhere than in the local server: under gunicorn, as a person starts it."""

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
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Gunicorn:
    """The app under gunicorn, with what the server's file sets in its environment."""

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
        """Make a request; it is made again as long as gunicorn isn't there yet."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
            try:
                connection.request(method, path, json.dumps(content), headers)
                response = connection.getresponse()
                return response.status, response.read()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, self._log.read_text()
                # Nothing announces it; its end is waited for meanwhile.
                with pytest.raises(subprocess.TimeoutExpired):
                    self.process.wait(0.02)
            finally:
                connection.close()

    def defer(self, what: str, target: str | None = None) -> None:
        """Have it enqueue a call."""
        status, body = self.request("POST", "/defer", {"what": what, "target": target})
        assert status == 200, body.decode() + self._log.read_text()

    @property
    def output(self) -> str:
        """What it has written."""
        return self._log.read_text()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self.process.terminate()
        self.process.wait(WAIT_SECONDS)
