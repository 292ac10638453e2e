"""Run deferred calls inside your own WSGI stack.

:class:`DeferredMiddleware` is the innermost layer, so the layers around it run for tasks as for any other request. It
answers the requests under ``/_cb/deferred/``. It passes every other request to the wrapped app unchanged, with the same
``environ``, the same ``start_response`` and the same iterable::

    app.wsgi_app = wrap_wsgi_app(Timing(DeferredMiddleware(app.wsgi_app)))

There is one exception: if an enqueue of ``defer_async`` has not ended when the app returns, the middleware wraps the
iterable in another one, which waits for the enqueue at its end.

.. caution::

    The body of a task is a pickle. Anybody who can make the app load a pickle controls the process. On App Engine
    standard, the middleware trusts the headers with which the platform marks the request of a task, because the
    platform removes them from all other requests. Other servers don't remove them. There tasks have to be signed, and
    without ``DEFERRED_SECRET_KEYS`` the middleware can't be created.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deferred_middleware.engines.request_scope import keeping_request
from deferred_middleware.enqueue import request_end
from deferred_middleware.enqueue.request_end import FAILED, UNDER_WAY
from deferred_middleware.errors.text import shortened
from deferred_middleware.execution.handler import TaskHandler
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from deferred_middleware.config.hooks import AnyHook
    from deferred_middleware.config.settings import Settings


class DeferredMiddleware:
    """A WSGI app that runs tasks, and passes every other request to ``app``.

    Args:
        app: the WSGI app to wrap.
        settings: the settings, by default those of the environment. Settings given here become the process's: ``defer``
            uses them from then on, so that it sends tasks to the URLs at which this middleware expects them.
        hooks: objects that are called when something happens to a task; see :class:`deferred_middleware.Hook`.
            They become the process's too.

    Raises:
        SettingsError: the warm-up module can't be found, or there is no secret key although one is needed.
        TypeError: ``app`` can't be called, or a hook has none of the methods of a hook.
    """

    def __init__(
        self, app: WSGIApplication, *, settings: Settings | None = None, hooks: Iterable[AnyHook] = ()
    ) -> None:
        if not callable(app):
            raise TypeError(f"DeferredMiddleware wraps a WSGI app, not {app!r}")
        if _is_asgi(app):
            raise TypeError(
                f"DeferredMiddleware wraps a WSGI app, and {shortened(app)} is an ASGI app; give the framework's WSGI "
                "app, or convert this one, such as with a2wsgi.ASGIMiddleware"
            )
        self._wrap(app, TaskHandler.installed(settings, hooks))

    def _wrap(self, app: WSGIApplication, handler: TaskHandler) -> None:
        if handler.settings.coalesce:
            from deferred_middleware.enqueue.batch import coalescing

            app = coalescing(app)
        if handler.sweeper is not None:
            app = handler.sweeper.around(app)
        self._app = app
        self._handler = handler
        self._prefix = self._handler.prefix
        self._warms_up = handler.settings.warmup_module is not None
        # Nearly all requests are for the app, and one comparison recognizes them.
        ours = (*handler.starts, *([protocol.WARMUP_PATH] if self._warms_up else []))
        self._prefixes: str | tuple[str, ...] = ours if len(ours) > 1 else self._prefix
        self._has_one_prefix = len(ours) == 1

    @keeping_request
    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Run the task of the request, or pass the request to the app."""
        path = environ.get("PATH_INFO", "")
        if path.startswith(self._prefixes):
            if self._has_one_prefix or path.startswith(self._prefix) or self._handler.runs(path):
                return self._handler(environ, start_response)
            if self._warms_up and path == protocol.WARMUP_PATH:
                return self._warm_up(environ, start_response)
        try:
            iterable = self._app(environ, start_response)
        except BaseException:
            if UNDER_WAY or FAILED:
                request_end.settle_request()
            raise
        if UNDER_WAY or FAILED:
            return request_end.wait_after(iterable)
        return iterable

    def _warm_up(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer App Engine's warm-up request: import the warm-up module, and pass the request to the app.

        An app without a handler for such requests answers with 404. This method then answers with 200 instead.
        """
        self._handler.warm_up()
        started: list[tuple[Any, ...]] = []

        def start(*args: Any) -> Any:
            started.append(args)
            if str(args[0]).startswith("404"):
                return lambda data: None
            return start_response(*args)

        iterable = self._app(environ, start)
        if not (started and str(started[-1][0]).startswith("404")):
            return iterable
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []


def _is_asgi(app: object) -> bool:
    """Tell whether an app is called as ``await app(scope, receive, send)`` (https://asgi.readthedocs.io)."""
    while isinstance(app, functools.partial):
        app = app.func
    # The app's class is looked at, because a proxy or a mock has any attribute.
    called = app if isinstance(app, (types.FunctionType, types.MethodType)) else getattr(type(app), "__call__", None)  # noqa: B004
    function = called.__func__ if isinstance(called, types.MethodType) else called
    if not isinstance(function, types.FunctionType):
        return False
    code = function.__code__
    names = [name for name in code.co_varnames[: code.co_argcount] if name != "self"]
    return inspect.iscoroutinefunction(function) or names[:3] == ["scope", "receive", "send"]
