"""The page that a service answers with while its changed code can't be imported.

The queue process serves it, because there is no app process then. Tasks don't get it: they wait for an app process.
"""

from __future__ import annotations

import contextlib
import html
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from deferred_middleware.server.apps.app_server import AppServer, serving

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_THREADS = 2
_STOP_GRACE_SECONDS = 1.0
_NEXT = "The service starts again when its code changes."
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{message}</title>
<style>body {{ font: 16px sans-serif; margin: 2em }} pre {{ background: #f4f4f4; overflow: auto; padding: 1em }}</style>
<h1>The code of service {service} can&rsquo;t be imported</h1>
<p>{message}</p>
<pre>{traceback}</pre>
<p>{next}</p>
</html>
"""


class ErrorPage:
    """A WSGI app that answers every request with 500 and the traceback: as HTML for browsers, as text for others."""

    def __init__(self, service: str, message: str, traceback: str) -> None:
        text = f"The code of service {service} can't be imported.\n{message}\n\n{traceback}\n{_NEXT}\n"
        page = _PAGE.format(
            service=html.escape(service), message=html.escape(message), traceback=html.escape(traceback), next=_NEXT
        )
        self._text, self._html = (content.encode("utf-8", "backslashreplace") for content in (text, page))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the page."""
        is_browser = "text/html" in environ.get("HTTP_ACCEPT", "")
        body = self._html if is_browser else self._text
        headers = [
            ("Content-Type", f"text/{'html' if is_browser else 'plain'}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response("500 Internal Server Error", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


@contextlib.contextmanager
def serving_error_page(page: ErrorPage, listener: socket.socket) -> Iterator[None]:
    """Answer with ``page`` on ``listener``, which stays open, while this is entered."""
    # A duplicate, because the server closes its socket.
    server = AppServer(page, listener.dup(), threads=_THREADS)
    with serving(server, thread="error-page", grace_seconds=_STOP_GRACE_SECONDS):
        yield
