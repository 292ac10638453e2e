"""Flask: tasks run as requests of the app.

The extension adds a route for the tasks, so that ``before_request``, ``teardown_request``, error handlers, ``g`` and
``current_app`` work for tasks as for any view::

    from deferred_middleware.contrib.flask import Deferred

    app = Flask(__name__)
    Deferred(app)
    app.wsgi_app = wrap_wsgi_app(app.wsgi_app)

In an app factory, use ``deferred = Deferred()`` and ``deferred.init_app(app)``. Use the extension *instead of*
``DeferredMiddleware``, which runs tasks outside of Flask.

The app's error handlers are called for a task's exception, but their response is discarded: the queue always gets the
status of the task's outcome. If a layer of the app fails after the task is done, such as an ``after_request`` function
that commits, the attempt has failed, and the queue retries the task. If a ``before_request`` function returns a
response, the task doesn't run; the queue gets an error, and retries it. The queue has no CSRF token; with Flask-WTF,
call ``csrf.exempt(deferred.view)``.

At the end of any other request the extension waits for the calls that ``defer_async`` started. With
``DEFERRED_COALESCE`` the request's calls are enqueued together at its end. They are dropped if a view raises an
exception that no error handler answers; an error handler for the status 500 doesn't count.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask, Response, got_request_exception, has_request_context, request
from werkzeug.routing import BaseConverter

from deferred_middleware.contrib.mounting import TaskGuard, is_logged_by_us, note_layer_failure, run_mounted
from deferred_middleware.enqueue import batch
from deferred_middleware.execution.handler import TaskHandler, report_in

if TYPE_CHECKING:
    from deferred_middleware.config.hooks import AnyHook
    from deferred_middleware.config.settings import Settings

ENDPOINT = "deferred_middleware"
"""The endpoint of the route: the value of ``request.endpoint`` while a task runs."""


_ANY_TEXT = "deferred_middleware_any_text"


class _AnyText(BaseConverter):
    """Matches the rest of a path, also an empty one, for a legacy URL that ends with ``*``."""

    regex = ".*?"
    part_isolating = False


class FlaskDeferred:
    """The extension. An app has it as ``app.extensions["deferred_middleware"]``.

    Args:
        app: the app, or None to call :meth:`init_app` later.
        settings: the settings, by default those of the environment.
        hooks: objects whose methods are called on events, see :class:`deferred_middleware.Hook`.

    Raises:
        SettingsError: as :class:`~deferred_middleware.DeferredMiddleware` does.
    """

    def __init__(
        self, app: Flask | None = None, *, settings: Settings | None = None, hooks: Iterable[AnyHook] = ()
    ) -> None:
        self._handler = TaskHandler.installed(settings, hooks)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the route for tasks to ``app``."""
        prefix = self._handler.prefix
        # merge_slashes would redirect a path with a double slash, and the queue doesn't follow redirects.
        app.add_url_rule(
            f"{prefix}<path:label>", ENDPOINT, self.view, methods=["POST"], strict_slashes=True, merge_slashes=False
        )
        app.url_map.converters[_ANY_TEXT] = _AnyText
        for url in self._handler.settings.unnamed_urls:
            rule = f"{url[:-1]}<{_ANY_TEXT}:label>" if url.endswith("*") else url
            app.add_url_rule(rule, ENDPOINT, self.view, methods=["POST"], strict_slashes=True, merge_slashes=False)
        app.wsgi_app = TaskGuard(app.wsgi_app, self._handler)  # type: ignore[method-assign]
        # Flask logs the exception of a view. That of a task, or of a layer around it, is logged with the task's call.
        app.logger.addFilter(_is_not_logged_yet)
        got_request_exception.connect(_on_exception, app)
        app.extensions[ENDPOINT] = self

    def view(self, label: str = "") -> Response:
        """Run the task of the current request."""
        environ = request.environ
        if "stream" in request.__dict__:
            # Another layer has read the body, and Flask has cached it.
            environ["wsgi.input"] = io.BytesIO(request.get_data())
        answer = run_mounted(self._handler, environ)
        return Response(answer.body, answer.status, list(answer.headers.items()))


def _on_exception(app: Flask, exception: BaseException, **extra: object) -> None:
    """Drop the calls that the request deferred, because its view raised; Flask turns the exception into a response.

    If the request is a task's and the exception is not the task's, a layer of the app has failed.
    """
    batch.drop_request(exception)
    note_layer_failure(request.environ, exception)


def _is_not_logged_yet(record: logging.LogRecord) -> bool:
    """Return False for a log record about the exception of a task or of a layer around it, which our log has."""
    if not record.exc_info or not has_request_context():
        return True
    return not is_logged_by_us(report_in(request.environ), record.exc_info[1])


Deferred = FlaskDeferred
"""The name to import; :class:`FlaskDeferred` tells it from the other frameworks' glue."""
