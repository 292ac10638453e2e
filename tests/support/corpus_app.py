"""The corpus's apps, for a real server in a separate process. Importing this module creates the apps.

``python -m tests.support.corpus_app waitress 5`` serves :func:`app` with waitress on the listening socket 5. Pass
``wsgiref`` instead of ``waitress`` to serve it with wsgiref. For gunicorn, use ``tests.support.corpus_app:app``. Each
of the corpus's places has an app. The ``Host`` header of a request selects it. Each answer has a header with the number
of task runs, and another with the number of imports and unpickled names.
"""

from __future__ import annotations

import asyncio
import importlib
import os
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

# Only these events count. Logging a traceback opens source files and compiles lines of them.
_LOADING = ("import", "pickle.find_class")
_apps = {host_of(place): app_at(place) for place in PLACES}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answer with the host's app and report what it did; at ``/ran`` report the task runs since the last ``/ran``."""
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
        """Read the rest of the request. Closing earlier would reset the connection and lose the answer."""
        while self.rfile.read(65_536):
            pass
        super().finish()


async def _serve_with_tornado(listening: socket.socket) -> None:
    # Imported by name, because the type checker also runs where only the package's own dependencies are.
    container: Any = importlib.import_module("tornado.wsgi").WSGIContainer(app)
    server: Any = importlib.import_module("tornado.httpserver").HTTPServer(container)
    listening.setblocking(False)
    server.add_sockets([listening])
    await asyncio.Event().wait()


def main(name: str, descriptor: str) -> None:
    """Serve on a listening socket until killed."""
    listening = socket.socket(fileno=int(descriptor))
    if name == "waitress":
        import waitress

        waitress.serve(app, sockets=[listening], threads=4)
    if name == "cheroot":
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")  # as systemd hands over a socket, which is 3
        if listening.fileno() != 3:
            os.dup2(listening.fileno(), 3)
        importlib.import_module("cheroot.wsgi").Server(listening.getsockname(), app).start()
    if name == "tornado":
        asyncio.run(_serve_with_tornado(listening))
    server = wsgiref.simple_server.WSGIServer(listening.getsockname(), _Quiet, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.server_name, server.server_port = "localhost", listening.getsockname()[1]
    server.setup_environ()
    server.set_app(app)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
