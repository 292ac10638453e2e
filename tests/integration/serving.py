"""The corpus's apps as a real server serves them, and the server's process as a test starts and asks it.

``python -m serving waitress 5`` and ``python -m serving wsgiref 5`` serve :func:`app` on the listening socket 5;
gunicorn takes it as ``serving:app``. There is an app for each of the corpus's places, told apart by the ``Host`` of a
request. Each answer tells in a header how often the task ran, and in another how much was imported and unpickled.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import wsgiref.simple_server
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sample
from corpus import PLACES, app_at
from watching import watch

import deferred_middleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ROOT = Path(deferred_middleware.__file__).parents[1]
OLD_GUNICORN = ROOT / ".venvs" / "gunicorn-21.2"
TIMEOUT_SECONDS = 60.0
GUNICORN = ["-m", "gunicorn", "--worker-class=gthread", "--threads=4", "--log-level=warning", "serving:app"]
COMMANDS = {
    "gunicorn": [*GUNICORN, "--bind=fd://{fd}"],
    "gunicorn 21.2": [*GUNICORN, "--bind=fd://{fd}"],
    "waitress": ["-m", "serving", "waitress", "{fd}"],
    "wsgiref": ["-m", "serving", "wsgiref", "{fd}"],
}
FOLDING = ("gunicorn 21.2", "wsgiref")
"""The servers that take an underscore in a header's name for a hyphen."""

# Not what a log does that shows a traceback: it opens source files, and parses lines of them.
_LOADING = ("import", "pickle.find_class")
_apps = {f"place{index}": app_at(place) for index, place in enumerate(PLACES)}


def host_of(place: str) -> str:
    """Return the host at which the app of a place answers."""
    return f"place{PLACES.index(place)}"


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answer with the app of the host, and tell what it did; at ``/ran`` tell how often a task has run since."""
    if environ["PATH_INFO"] == "/ran":
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Ran", str(len(sample.ran)))])
        sample.ran.clear()
        return [b""]
    before = len(sample.ran)

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        told = [("X-Ran", str(len(sample.ran) - before)), ("X-Seen", str(sum(event in _LOADING for event, _ in seen)))]
        return start_response(status, [*headers, *told])

    with watch() as seen:
        return list(_apps.get(environ.get("HTTP_HOST", ""), _apps["place0"])(environ, start))


class RunningServer:
    """One of :data:`COMMANDS` as a process."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self._log = log
        paths = [*(str(OLD_GUNICORN) for _ in range(name == "gunicorn 21.2")), *sys.path]
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listening, log.open("wb") as output:
            self.port = listening.getsockname()[1]
            # It listens already, so that there is nothing to wait for: who connects too early waits in line.
            self._process = subprocess.Popen(
                [sys.executable, *(part.format(fd=listening.fileno()) for part in COMMANDS[name])],
                pass_fds=[listening.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GAE_ENV": "standard"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        """What it has written."""
        return self._log.read_text()

    def ask(self, request: bytes) -> bytes:
        """Send a request, whatever it looks like, and return all that is answered until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_SECONDS) as connection:
            answer = bytearray()
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65_536):
                    answer += piece
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has heard enough
        return bytes(answer)

    def ran(self) -> int:
        """Return how often a task has run since this was asked."""
        answer = self.ask(b"GET /ran HTTP/1.1\r\nHost: place0\r\nConnection: close\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")), (answer, self.output)
        return int(answer.lower().partition(b"x-ran: ")[2].split(b"\r\n")[0])

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(TIMEOUT_SECONDS)


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""

    def finish(self) -> None:
        """Read what is left of the request: to close before would reset the connection, and lose the answer."""
        while self.rfile.read(65_536):
            pass
        super().finish()


def main(name: str, descriptor: str) -> None:
    """Serve on a listening socket until killed."""
    listening = socket.socket(fileno=int(descriptor))
    if name == "waitress":
        import waitress

        waitress.serve(app, sockets=[listening], threads=4)
    server = wsgiref.simple_server.WSGIServer(listening.getsockname(), _Quiet, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.server_name, server.server_port = "localhost", listening.getsockname()[1]
    server.setup_environ()
    server.set_app(app)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
