"""The names and signatures of ``google.appengine.ext.deferred``, implemented by this package.

    from deferred_middleware.compat import deferred

    deferred.defer(send_welcome, user_id, _countdown=60)

Tasks are signed and have explicit URLs, and a task whose payload can't be unpickled is retried instead of dropped.
``docs/migrating-from-deferred.rst`` lists the differences.
"""

from __future__ import annotations

import dataclasses
import http
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from google.appengine.ext.deferred import PermanentTaskFailure, SingularTaskFailure
from google.appengine.ext.deferred.deferred import Error

from deferred_middleware.calls import payload
from deferred_middleware.calls.call import Call, call
from deferred_middleware.calls.callables import AnyCallable, check_kind
from deferred_middleware.compat.sdk_task import SdkTask
from deferred_middleware.config import process
from deferred_middleware.enqueue.api import enqueue
from deferred_middleware.execution.handler import REPORT_KEY, FinishingResponse, TaskHandler, TaskReport
from deferred_middleware.execution.legacy import resolved

if TYPE_CHECKING:
    import webob
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from google.appengine.api import taskqueue

    from deferred_middleware.config.settings import Settings

__all__ = [
    "Error",
    "Handler",
    "PermanentTaskFailure",
    "SingularTaskFailure",
    "application",
    "defer",
    "run",
    "serialize",
    "set_log_level",
]

_Headers = list[tuple[str, str]]


def set_log_level(log_level: int) -> None:
    """Set the level of the log line for a task that succeeded. Call it before the middleware or handler is made."""
    settings = dataclasses.replace(process.current_settings(), log_level=log_level)
    process.install_settings(settings)


def defer(obj: AnyCallable, /, *args: Any, **kwargs: Any) -> taskqueue.Task:
    """Defer a call. Options and errors are those of :func:`deferred_middleware.defer`."""
    return SdkTask(enqueue(call(obj, *args, **kwargs)))


def serialize(obj: AnyCallable, /, *args: Any, **kwargs: Any) -> bytes:
    """Return the payload of a call. All keyword arguments are passed to the call; none is an option.

    Raises what :func:`defer` raises for a callable or an argument that can't be pickled.
    """
    check_kind(obj)
    prepared = Call(func=obj, args=args, kwargs=kwargs)
    return payload.dumps(prepared, process.current_settings().pickle_protocol)


def run(data: bytes) -> Any:
    """Run the call of a trusted payload, and return its result.

    Raises what the call raises, and :class:`~deferred_middleware.errors.TaskContentError` if the payload can't be read.
    That is not a permanent failure, because another version of the app may be able to read it.
    """
    settings = process.current_settings()
    found, _ = resolved(payload.content_of(data, settings, legacy=True), settings)
    return Call.of(found).run()


class Handler:
    """Runs tasks at a URL of the app: as a WSGI app, or with :meth:`post` inside a framework's view."""

    def __init__(self) -> None:
        self._made: tuple[Settings, TaskHandler] | None = None

    def run_from_request(self, environ: WSGIEnvironment) -> tuple[str, http.HTTPStatus, _Headers]:
        """Run the task of a request; return body, status and headers of the response. Raises what the task raised."""
        answer, report = self._answer(environ)
        if report.error is not None:
            raise report.error
        return answer

    def post(self, environ: WSGIEnvironment) -> tuple[str, http.HTTPStatus, _Headers]:
        """Run the task of a request; return body, status and headers of the response.

        Raises what the task raised, except for ``SingularTaskFailure`` and ``PermanentTaskFailure``, which have a
        response.
        """
        answer, report = self._answer(environ)
        if report.error is None or isinstance(report.error, (SingularTaskFailure, PermanentTaskFailure)):
            return answer
        raise report.error

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Run the task of a request, as a WSGI app. Every exception of the task has a response."""
        return self._handler()(environ, start_response)

    def _answer(self, environ: WSGIEnvironment) -> tuple[tuple[str, http.HTTPStatus, _Headers], TaskReport]:
        report = TaskReport()
        response: webob.Response = self._handler().answer({"PATH_INFO": "", **environ, REPORT_KEY: report})
        if isinstance(response, FinishingResponse):
            response.finish()
        headers = [(name, value) for name, value in response.headers.items() if name.lower() != "content-length"]
        return (response.text.strip(), http.HTTPStatus(response.status_int), headers), report

    def _handler(self) -> TaskHandler:
        settings = process.current_settings()
        if self._made is None or self._made[0] is not settings:
            self._made = settings, TaskHandler.installed(None, ())
        return self._made[1]


application = Handler()
"""A handler, for routes that need a WSGI app."""
