"""A real server that serves the corpus's apps (``corpus_app.py``), and functions to send requests to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.corpus import PLACES
from tests.support.delivering import APP_ENGINE_STANDARD
from tests.support.repository import ROOT

OLD_GUNICORN = ROOT / ".venvs" / "gunicorn-21.2"
TIMEOUT_SECONDS = 60.0
GUNICORN = [
    "-m",
    "gunicorn",
    "--worker-class=gthread",
    "--threads=4",
    "--log-level=warning",
    "tests.support.corpus_app:app",
]
COMMANDS = {
    "gunicorn": [*GUNICORN, "--bind=fd://{fd}"],
    "gunicorn 21.2": [*GUNICORN, "--bind=fd://{fd}"],
    "waitress": ["-m", "tests.support.corpus_app", "waitress", "{fd}"],
    "wsgiref": ["-m", "tests.support.corpus_app", "wsgiref", "{fd}"],
}
REPLACING = {
    "cheroot": ["-m", "tests.support.corpus_app", "cheroot", "{fd}"],
    "tornado": ["-m", "tests.support.corpus_app", "tornado", "{fd}"],
}
"""Servers that keep the last of two spellings of a header."""
FOLDING = ("gunicorn 21.2", "wsgiref")
"""The servers that convert an underscore in a header's name to a hyphen."""


def host_of(place: str) -> str:
    """Return the host name of a place's app."""
    return f"place{PLACES.index(place)}"


class RunningServer:
    """One of :data:`COMMANDS` or :data:`REPLACING` as a process."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self._log = log
        paths = [*(str(OLD_GUNICORN) for _ in range(name == "gunicorn 21.2")), *sys.path]
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listening, log.open("wb") as output:
            self.port = listening.getsockname()[1]
            # The socket already listens, so no wait is needed: early connections stay in the backlog.
            self._process = subprocess.Popen(
                [sys.executable, *(part.format(fd=listening.fileno()) for part in (COMMANDS | REPLACING)[name])],
                pass_fds=[listening.fileno()],
                # Not this process's own environment: wrap_wsgi_app leaves variables such as HTTP_X_APPENGINE_TASKNAME
                # in it, and wsgiref copies the variables of its process into every request's environ.
                env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths), **APP_ENGINE_STANDARD},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        """The output of the process."""
        return self._log.read_text()

    def ask(self, request: bytes, *, ends: bool = True) -> bytes:
        """Send raw bytes as a request, and return the response up to the end of the connection.

        If ``ends`` is true, our side of the connection is closed, which Tornado takes for the end of the whole.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_SECONDS) as connection:
            answer = bytearray()
            try:
                connection.sendall(request)
                if ends:
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65_536):
                    answer += piece
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server closed the connection before it read the whole request
        return bytes(answer)

    def ran(self) -> int:
        """Return the number of task runs since the last call."""
        answer = self.ask(
            b"GET /ran HTTP/1.1\r\nHost: place0\r\nConnection: close\r\n\r\n", ends=self.name != "tornado"
        )
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")), (answer, self.output)
        return int(answer.lower().partition(b"x-ran: ")[2].split(b"\r\n")[0])

    def stop(self) -> None:
        """Stop the process."""
        self._process.terminate()
        self._process.wait(TIMEOUT_SECONDS)
