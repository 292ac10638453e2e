"""Measure how much the middleware slows down a request that is not a task.

Run ``python benchmarks/passthrough.py``. The bar: at most 1.2 times the time of a WSGI class that only compares a path
prefix.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import webob
import webob.dec
from interleave import measure
from recording import Arguments, Recording

from deferred_middleware import DeferredMiddleware, Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BAR = 1.2


def bare(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer every request with two bytes."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


class PrefixOnly:
    """The minimum that a middleware for one path prefix does."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Compare the prefix, and pass the request on."""
        if environ["PATH_INFO"].startswith("/_cb/deferred/"):
            raise NotImplementedError
        return self.app(environ, start_response)


@webob.dec.wsgify.middleware
def wsgified(request: webob.Request, app: WSGIApplication) -> Any:
    """Compare the prefix in the way of a webob middleware."""
    if request.path_info.startswith("/_cb/deferred/"):
        raise NotImplementedError
    return app


def client(app: WSGIApplication) -> Callable[[], object]:
    """Return a function that makes one request to ``app``."""

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        return None

    base = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/photos/123",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost:8080",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }

    def request() -> object:
        return b"".join(app(dict(base), start_response))

    return request


def main() -> int:
    """Print the table, and return 1 if the bar is missed."""
    options = Arguments(__doc__, rounds=(60, 6), calls=(5000, 500)).parse()
    recording = Recording()

    settings = Settings(secret_keys=("not a secret, for a benchmark only",))  # type: ignore[arg-type] # a text will do
    contenders = {
        "bare app": client(bare),
        "prefix comparison": client(PrefixOnly(bare)),
        "DeferredMiddleware": client(DeferredMiddleware(bare, settings=settings)),
        "webob wsgify": client(wsgified(bare)),
    }
    from google.appengine.api import wrap_wsgi_app

    contenders["wrap_wsgi_app"] = client(wrap_wsgi_app(bare))
    medians = recording.table(
        "A request that is not a task",
        "µs",
        measure(contenders, rounds=options.rounds, calls=options.calls),
        ours=["DeferredMiddleware"],
        reference="prefix comparison",
    )
    ratio = medians["DeferredMiddleware"] / medians["prefix comparison"]
    recording.goal("DeferredMiddleware against the prefix comparison", ratio, at_most=BAR, unit="times")
    return recording.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
