"""The app whose tasks benchmarks/dashboard.py runs while it loads pages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from google.appengine.api import wrap_wsgi_app

from deferred_middleware import DeferredMiddleware, call, defer_many

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def work(number: int) -> None:
    """Do nothing: the way to the function is what takes time."""


def _pages(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Enqueue as many tasks as the query says."""
    number = int(parse_qs(environ["QUERY_STRING"])["n"][0])
    from dashboard_app import work as importable

    if not defer_many([call(importable, one) for one in range(number)], _queue="busy").ok:
        raise RuntimeError("some tasks were not enqueued")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


app: WSGIApplication = wrap_wsgi_app(DeferredMiddleware(_pages))
