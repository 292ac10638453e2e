"""The app in which the local server runs the tasks of benchmarks/local_queue.py, and a bare app."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from google.appengine.api import wrap_wsgi_app

from deferred_middleware import DeferredMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Read before wrap_wsgi_app() replaces os.environ with a separate one for each request.
_ENVIRON = dict(os.environ)


def _pages(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Return the environment, which a process that enqueues from outside needs."""
    body = json.dumps(_ENVIRON).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


_wrapped: WSGIApplication = wrap_wsgi_app(DeferredMiddleware(_pages))


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer ``/bare`` as cheaply as possible. Pass every other request to the app that runs the tasks."""
    if environ["PATH_INFO"] != "/bare":
        return _wrapped(environ, start_response)
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]
