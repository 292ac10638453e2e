"""The corpus's apps as a real server serves them, in a process of its own: importing this makes the apps.

``python -m tests.support.corpus_app waitress 5`` serves :func:`app` with waitress on the listening socket 5, and
``wsgiref`` in place of ``waitress`` with wsgiref. gunicorn takes it as ``tests.support.corpus_app:app``. There is an
app for each of the corpus's places, told apart by the ``Host`` of a request. Each answer tells in a header how often
the task ran, and in another how much was imported and unpickled.
"""

from __future__ import annotations

import socket
import sys
import wsgiref.simple_server
from typing import TYPE_CHECKING, Any

from tests.support import sample
from tests.support.corpus import PLACES, app_at
from tests.support.serving import host_of
from tests.support.watching import watch

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# Not what a log does that shows a traceback: it opens source files, and parses lines of them.
_LOADING = ("import", "pickle.find_class")
_apps = {host_of(place): app_at(place) for place in PLACES}


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
