"""Flask: tasks run as requests of the app.

The extension adds a route under which the queue delivers tasks, so that ``before_request``, ``teardown_request``, error
handlers, ``g`` and ``current_app`` are there for tasks as for any view::

    from deferred_middleware.contrib.flask import Deferred

    app = Flask(__name__)
    Deferred(app)
    app.wsgi_app = wrap_wsgi_app(app.wsgi_app)

or ``deferred = Deferred()`` and ``deferred.init_app(app)`` in an app factory. Use it *instead of*
``DeferredMiddleware``, which runs tasks beneath Flask.

What a task raises goes through the app's error handlers, but their response is for nobody: the status that the queue
gets is always the one of the task's outcome. A ``before_request`` function that answers with a page keeps the task
from running; then the queue gets an error and tries again. Flask-WTF's CSRF protection has to be told that the queue
sends no token: ``csrf.exempt(deferred.view)``.

Of any other request the extension waits at its end for what ``defer_async`` started. With ``DEFERRED_COALESCE`` that
leaves together, and not at all if a view raises and no error handler answers for it; one for the status 500 does not.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask, Response, got_request_exception, has_request_context, request

from deferred_middleware.contrib.mounting import TaskGuard, run_mounted
from deferred_middleware.enqueue import batch
from deferred_middleware.execution.handler import TaskHandler, report_in

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings

ENDPOINT = "deferred_middleware"
"""The endpoint of the route, as ``request.endpoint`` has it while a task runs."""


class Deferred:
    """The extension; an app's is at ``app.extensions["deferred_middleware"]``.

    Args:
        app: the app, or None to call :meth:`init_app` later.
        settings: the settings, by default those of the environment.
        hooks: objects that are told what happens, see :mod:`deferred_middleware.config.hooks`.

    Raises:
        SettingsError: as :class:`~deferred_middleware.DeferredMiddleware` does.
    """

    def __init__(
        self, app: Flask | None = None, *, settings: Settings | None = None, hooks: Iterable[object] = ()
    ) -> None:
        self._handler = TaskHandler.installed(settings, hooks)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Let ``app`` run tasks."""
        prefix = self._handler.prefix
        # Not merged: a slash too many would be a redirect, which the queue doesn't follow.
        app.add_url_rule(
            f"{prefix}<path:label>", ENDPOINT, self.view, methods=["POST"], strict_slashes=True, merge_slashes=False
        )
        for url in self._handler.settings.legacy_urls:
            app.add_url_rule(url, ENDPOINT, self.view, methods=["POST"], strict_slashes=True)
        app.wsgi_app = TaskGuard(app.wsgi_app, self._handler)  # type: ignore[method-assign]
        # Flask logs what a view raises; what a task raised has been logged, with the call.
        app.logger.addFilter(_is_news)
        got_request_exception.connect(_forget, app)
        app.extensions[ENDPOINT] = self

    def view(self, label: str = "") -> Response:
        """Run the task of the current request."""
        environ = request.environ
        if "stream" in request.__dict__:
            # Somebody has read the body already, and Flask has kept it.
            environ["wsgi.input"] = io.BytesIO(request.get_data())
        answer = run_mounted(self._handler, environ)
        return Response(answer.body, answer.status, list(answer.headers.items()))


def _forget(app: Flask, exception: BaseException, **extra: object) -> None:
    """Let nothing leave of what was deferred by a view that raises; Flask makes a page of the exception."""
    batch.drop_request(exception)


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether a record is about something else than what a task raised."""
    if not record.exc_info or not has_request_context():
        return True
    report = report_in(request.environ)
    return report is None or report.error is None or record.exc_info[1] is not report.error
