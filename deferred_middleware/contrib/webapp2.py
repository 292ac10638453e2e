"""webapp2: tasks run as requests of the app, with ``webapp2.get_request()`` and ``get_app()`` at hand.

    from deferred_middleware.contrib.webapp2 import Deferred

    app = webapp2.WSGIApplication([("/", MainPage)])
    application = wrap_wsgi_app(Deferred(app))

Use it *instead of* ``DeferredMiddleware``, which runs tasks beneath webapp2, where its request globals aren't set.

Of any other request it waits at its end for what ``defer_async`` started. With ``DEFERRED_COALESCE`` that leaves
together, and not at all if a handler raises anything but one of webob's HTTP exceptions, as ``abort()`` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import webapp2

from deferred_middleware.contrib.mounting import TaskGuard
from deferred_middleware.enqueue import batch
from deferred_middleware.execution.handler import TaskHandler, report_in

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings


class Deferred(TaskGuard):
    """A WSGI app around webapp2's, which has the route under which the queue delivers tasks, before all others.

    Args:
        app: the ``webapp2.WSGIApplication``.
        settings: the settings, by default those of the environment.
        hooks: objects that are told what happens, see :mod:`deferred_middleware.config.hooks`.

    Raises:
        SettingsError: as :class:`~deferred_middleware.DeferredMiddleware` does.
    """

    def __init__(self, app: Any, *, settings: Settings | None = None, hooks: Iterable[object] = ()) -> None:
        handler = TaskHandler.installed(settings, hooks)
        # A SimpleRoute's template is a regular expression; a Route's would read braces and colons in the prefix.
        paths = [re.escape(handler.prefix) + ".*", *map(re.escape, handler.settings.legacy_urls)]
        route = webapp2.SimpleRoute(f"(?:{'|'.join(paths)})", _class_of(handler))
        app.router.match_routes.insert(0, route)
        handle = app.handle_exception

        def handle_exception(request: Any, response: Any, error: Exception) -> Any:
            # webapp2 makes a page of whatever a handler raises.
            if not isinstance(error, webapp2.HTTPException):
                batch.drop_request(error)
            return handle(request, response, error)

        app.handle_exception = handle_exception
        super().__init__(app, handler)


def handler_class() -> Any:
    """Return a class of handlers that run tasks, for a route of the app's own; it has the process's settings."""
    return _class_of(TaskHandler.installed(None, ()))


def _class_of(handler: TaskHandler) -> Any:
    class DeferredHandler(webapp2.RequestHandler):  # type: ignore[misc] # webapp2 has no types
        """Runs the task of the current request."""

        def dispatch(self) -> Any:
            """Answer the request, whatever its method."""
            answer = handler.answer(self.request.environ)
            report = report_in(self.request.environ)
            if report is not None:
                report.response = answer
            self.response.status = answer.status
            self.response.headers.clear()
            for name, value in answer.headers.items():
                self.response.headers[name] = value
            self.response.body = answer.body
            return self.response

    return DeferredHandler
