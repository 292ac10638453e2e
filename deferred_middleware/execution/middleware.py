"""Run deferred calls inside your own WSGI stack.

:class:`DeferredMiddleware` is the innermost layer: what is wrapped around it runs for tasks as for any other request.
It answers the requests under ``/_cb/deferred/`` and hands every other one to the wrapped app untouched: the same
``environ``, the same ``start_response``, the same iterable::

    app.wsgi_app = wrap_wsgi_app(Timing(DeferredMiddleware(app.wsgi_app)))

Only where ``defer_async`` has something under way when the app returns, the iterable is wrapped in one that waits for
it at its end.

.. caution::

    A task's body is a pickle, and whoever gets one run owns the process. On App Engine standard the middleware believes
    the headers by which the platform marks a task's request, because it takes them from everybody else's. Other servers
    don't; there tasks have to be signed, and without ``DEFERRED_SECRET_KEYS`` the middleware refuses to be made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deferred_middleware.enqueue import batch, request_end
from deferred_middleware.enqueue.request_end import FAILED, UNDER_WAY
from deferred_middleware.execution.handler import TaskHandler
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from deferred_middleware.config.settings import Settings


class DeferredMiddleware:
    """A WSGI app that runs the tasks and passes every other request to ``app``.

    Args:
        app: the WSGI app to wrap.
        settings: the settings, by default those of the environment. What is given here becomes the process's: ``defer``
            uses it from then on, so that tasks are posted where this middleware waits for them.
        hooks: objects that are told what happens, see :mod:`deferred_middleware.config.hooks`. They become the
        process's too.

    Raises:
        SettingsError: the warm-up module is not there to import, or there is no secret key where one is needed.
        TypeError: ``app`` can't be called, or a hook has none of the hooks' methods.
    """

    def __init__(self, app: WSGIApplication, *, settings: Settings | None = None, hooks: Iterable[object] = ()) -> None:
        if not callable(app):
            raise TypeError(f"DeferredMiddleware wraps a WSGI app, not {app!r}")
        self._around(app, TaskHandler.installed(settings, hooks))

    def _around(self, app: WSGIApplication, handler: TaskHandler) -> None:
        self._app = batch.coalescing(app) if handler.settings.coalesce else app
        self._handler = handler
        self._prefix = self._handler.prefix
        self._legacy = frozenset(handler.settings.legacy_urls)
        self._warms_up = handler.settings.warmup_module is not None
        # One look tells that a request is none of ours, as nearly all are.
        ours = (self._prefix, *self._legacy, *([protocol.WARMUP_PATH] if self._warms_up else []))
        self._beginnings: str | tuple[str, ...] = ours if len(ours) > 1 else self._prefix

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Run the task that ``environ`` delivers, or pass the request on."""
        path = environ.get("PATH_INFO", "")
        if path.startswith(self._beginnings):
            if path.startswith(self._prefix) or path in self._legacy:
                return self._handler.answer(environ)(environ, start_response)
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
        """Answer App Engine's warm-up request: import the warm-up module, and let the app do what it does itself.

        An app that knows nothing of such requests answers 404; then the answer is ours.
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
