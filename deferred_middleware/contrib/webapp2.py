"""webapp2: tasks run as requests of the app, in which ``webapp2.get_request()`` and ``get_app()`` work.

    from deferred_middleware.contrib.webapp2 import Deferred

    app = webapp2.WSGIApplication([("/", MainPage)])
    application = wrap_wsgi_app(Deferred(app))

Use it *instead of* ``DeferredMiddleware``, which runs tasks outside of webapp2, where its request globals aren't set.

At the end of any other request it waits for the calls that ``defer_async`` started. With ``DEFERRED_COALESCE`` the
request's calls are enqueued together at its end. They are dropped if a handler raises an exception other than webob's
HTTP exceptions, which ``abort()`` raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import webapp2

from deferred_middleware.contrib.mounting import TaskGuard, note_layer_failure
from deferred_middleware.enqueue import batch
from deferred_middleware.execution.handler import TaskHandler, report_in

if TYPE_CHECKING:
    from deferred_middleware.config.hooks import AnyHook
    from deferred_middleware.config.settings import Settings


class Webapp2Deferred(TaskGuard):
    """A WSGI app around webapp2's, to which it adds the route for tasks, before all other routes.

    Args:
        app: the ``webapp2.WSGIApplication``.
        settings: the settings, by default those of the environment.
        hooks: objects whose methods are called on events, see :class:`deferred_middleware.Hook`.

    Raises:
        SettingsError: as :class:`~deferred_middleware.DeferredMiddleware` does.
    """

    def __init__(self, app: Any, *, settings: Settings | None = None, hooks: Iterable[AnyHook] = ()) -> None:
        handler = TaskHandler.installed(settings, hooks)
        # A SimpleRoute's template is a regular expression. A Route's template gives angle brackets a meaning.
        urls = (f"{handler.prefix}*", *handler.settings.unnamed_urls)
        paths = [re.escape(url[:-1]) + ".*" if url.endswith("*") else re.escape(url) for url in urls]
        route = webapp2.SimpleRoute(f"(?:{'|'.join(paths)})", _make_handler_class(handler))
        app.router.match_routes.insert(0, route)
        handle_in_app = app.handle_exception

        def handle_exception(request: Any, response: Any, error: Exception) -> Any:
            # webapp2 turns every exception of a handler into a response.
            if not isinstance(error, webapp2.HTTPException):
                batch.drop_request(error)
                note_layer_failure(request.environ, error)
            return handle_in_app(request, response, error)

        app.handle_exception = handle_exception
        super().__init__(app, handler)


def handler_class() -> Any:
    """Return a handler class that runs tasks with the settings of the process, for a route that the app adds itself."""
    return _make_handler_class(TaskHandler.installed(None, ()))


def _make_handler_class(handler: TaskHandler) -> Any:
    class DeferredHandler(webapp2.RequestHandler):  # type: ignore[misc] # webapp2 has no types
        """Runs the task of the current request."""

        def dispatch(self) -> Any:
            """Answer the request of any method."""
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


Deferred = Webapp2Deferred
"""The name to import; :class:`Webapp2Deferred` tells it from the other frameworks' glue."""
