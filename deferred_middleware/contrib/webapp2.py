"""webapp2: a route whose handler runs tasks, with ``webapp2.get_request()`` and ``get_app()`` at hand.

    from deferred_middleware.contrib.webapp2 import route

    app = webapp2.WSGIApplication([route(), ("/", MainPage)])
    application = wrap_wsgi_app(app)

Use it *instead of* ``DeferredMiddleware``, which runs tasks beneath webapp2, where its request globals aren't set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import webapp2

from deferred_middleware.handler import TaskHandler

if TYPE_CHECKING:
    from deferred_middleware.settings import Settings


def route(*, settings: Settings | None = None, hooks: Iterable[object] = ()) -> Any:
    """Return the route under which the queue delivers tasks; put it before routes that match everything.

    Args:
        settings: the settings, by default those of the environment.
        hooks: objects that are told what happens, see :mod:`deferred_middleware.hooks`.

    Raises:
        SettingsError: as :class:`~deferred_middleware.DeferredMiddleware` does.
    """
    handler = TaskHandler.installed(settings, hooks)
    # A SimpleRoute's template is a regular expression; a Route's would read braces and colons in the prefix.
    return webapp2.SimpleRoute(re.escape(handler.prefix) + ".*", _class_of(handler))


def handler_class() -> Any:
    """Return a class of handlers that run tasks, for a route of the app's own; it has the process's settings."""
    return _class_of(TaskHandler.installed(None, ()))


def _class_of(handler: TaskHandler) -> Any:
    class DeferredHandler(webapp2.RequestHandler):  # type: ignore[misc] # webapp2 has no types
        """Runs the task of the current request."""

        def dispatch(self) -> Any:
            """Answer the request, whatever its method."""
            answer = handler.answer(self.request.environ)
            self.response.status = answer.status
            self.response.headers.clear()
            for name, value in answer.headers.items():
                self.response.headers[name] = value
            self.response.body = answer.body
            return self.response

    return DeferredHandler
