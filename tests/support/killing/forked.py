"""A server that is killed and started again many times, from a process that has imported everything already."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.running import WAIT_SECONDS, await_end


class Forked:
    """A server of ``deferred-middleware COMMAND`` in ``directory``, started by the fork server."""

    def __init__(self, directory: Path, command: str, *arguments: str) -> None:
        self.data_dir = directory / ".deferred"
        self._ready_file = directory / "ready.json"
        self._log = directory / "server.log"
        program = [sys.executable, "-m", "tests.support.killing.forkserver", command]
        with self._log.open("wb") as log:
            self._forks = subprocess.Popen(
                [*program, f"--ready-file={self._ready_file}", *arguments],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.pid = 0
        self.admin = ""
        self.cloud_tasks = ""

    def start(self) -> None:
        """Start a server and wait until it is ready."""
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write("start\n")
        self._forks.stdin.flush()
        line = self._forks.stdout.readline()
        assert line, self._log.read_text()
        self.pid = int(line)
        until = time.monotonic() + WAIT_SECONDS
        while not self._ready_file.exists():
            # No portable event announces a new file.
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.005)
        ready = json.loads(self._ready_file.read_text())
        self.admin, self.cloud_tasks = ready["admin"], ready["cloud_tasks"]

    def kill(self) -> None:
        """Kill the server with ``kill -9``."""
        os.kill(self.pid, signal.SIGKILL)
        await_end(self.pid)
        self._ready_file.unlink()

    def stop(self) -> None:
        """Stop the server in the orderly way."""
        os.kill(self.pid, signal.SIGTERM)
        await_end(self.pid)

    def close(self) -> None:
        """Stop all processes."""
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._forks.stdin.close()
        self._forks.wait()
        self._forks.stdout.close()
