"""A WSGI middleware of the app's own: gives each request an ID, times it, and logs one line about it.

It wraps :class:`deferred_middleware.DeferredMiddleware`, so it handles a task in the same way as a page: a task has an
ID, its response has an ``X-Request-Id`` header, and the log has a line such as ::

    5f2c81d09a3e POST /_cb/deferred/tasks/make_thumbnail 200 41 ms
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from werkzeug.wsgi import ClosingIterator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ENVIRON_KEY = "gallery.request_id"

_log = logging.getLogger("gallery.requests")
_request_id: ContextVar[str] = ContextVar("gallery.request_id", default="")


def current_request_id() -> str:
    """Return the ID of the current request, which may be a task's. Empty outside of a request."""
    return _request_id.get()


class RequestLog:
    """WSGI middleware: ``RequestLog(app)``. ``clock`` returns monotonic seconds."""

    def __init__(self, app: WSGIApplication, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Run the wrapped app with a request ID. Log once the whole response has been sent."""
        started_seconds = self._clock()
        request_id = uuid.uuid4().hex[:12]
        environ[ENVIRON_KEY] = request_id
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        sent_status = "-"

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            nonlocal sent_status
            sent_status = status.partition(" ")[0]
            return start_response(status, [*headers, ("X-Request-Id", request_id)], exc_info)

        logged = False

        def finish() -> None:
            nonlocal logged
            if not logged:
                logged = True
                milliseconds = (self._clock() - started_seconds) * 1000
                _log.info("%s %s %s %s %.0f ms", request_id, method, path, sent_status, milliseconds)

        token = _request_id.set(request_id)
        try:
            body = self._app(environ, start)
            close = getattr(body, "close", None)
            return ClosingIterator(_then(body, finish), [close, finish] if close else [finish])
        except BaseException:
            finish()
            raise
        finally:
            _request_id.reset(token)


def _then(body: Iterable[bytes], finish: Callable[[], None]) -> Iterator[bytes]:
    """Call ``finish`` after the last part of the body, because the SDK never closes it (runtime/middlewares.py)."""
    try:
        for part in body:  # noqa: UP028 - `yield from` would close the body a second time
            yield part
    finally:
        finish()
