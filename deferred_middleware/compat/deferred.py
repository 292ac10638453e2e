"""The names and signatures of ``google.appengine.ext.deferred``, implemented by this package.

    from deferred_middleware.compat import deferred

    deferred.defer(send_welcome, user_id, _countdown=60)

Tasks are signed and have explicit URLs, and a task whose payload can't be unpickled is retried instead of dropped.
``docs/migrating-from-deferred.rst`` lists the differences.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from google.appengine.ext.deferred import PermanentTaskFailure, SingularTaskFailure
from google.appengine.ext.deferred.deferred import Error, invoke_member, run_from_datastore

from deferred_middleware.calls import payload
from deferred_middleware.calls.call import Call, call
from deferred_middleware.calls.callables import AnyCallable, check_kind
from deferred_middleware.compat.sdk_task import SdkTask
from deferred_middleware.config import process
from deferred_middleware.enqueue.api import enqueue
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.execution.handler import REPORT_KEY, FinishingResponse, TaskHandler, TaskReport, report_in
from deferred_middleware.execution.legacy import resolved
from deferred_middleware.wire import overflow, protocol

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
    "invoke_member",
    "run",
    "run_from_datastore",
    "serialize",
    "set_log_level",
]

logger: Final = get_logger("deferred_middleware")

_Headers = list[tuple[str, str]]
_TEXT: Final = ("Content-Type", "text/plain")
_QUEUE_KEY: Final = protocol.environ_key(protocol.QUEUE_NAME_HEADER)
_METHOD_TYPES: Final = (types.MethodType, types.BuiltinMethodType)


def set_log_level(log_level: int) -> None:
    """Set the level of the log line for a task that succeeded. Call it before the middleware or handler is made."""
    settings = dataclasses.replace(process.current_settings(), log_level=log_level)
    process.install_settings(settings)


def defer(obj: AnyCallable, /, *args: Any, **kwargs: Any) -> taskqueue.Task:
    """Defer a call. Options and errors are those of :func:`deferred_middleware.defer`.

    As in the older library, ``_countdown`` may be a text such as ``"5"``, and an ``_eta`` without a time zone is local
    time, without a warning.
    """
    eta, countdown = kwargs.get("_eta"), kwargs.get("_countdown")
    if isinstance(countdown, str):
        # An unreadable text is left to the check of the option.
        with contextlib.suppress(ValueError):
            kwargs["_countdown"] = float(countdown)
    if isinstance(eta, datetime.datetime) and eta.utcoffset() is None:
        # A time that is out of the system's range is left to the check of the option.
        with contextlib.suppress(ValueError, OverflowError, OSError):
            kwargs["_eta"] = eta.astimezone()
    return SdkTask(enqueue(call(obj, *args, **kwargs)))


def serialize(obj: AnyCallable, /, *args: Any, **kwargs: Any) -> bytes:
    """Return the payload of a call. All keyword arguments are passed to the call; none is an option.

    Raises what :func:`defer` raises for a callable or an argument that can't be pickled.
    """
    check_kind(obj)
    prepared = Call(func=obj, args=args, kwargs=kwargs)
    return payload.dumps(prepared, process.current_settings().pickle_protocol)


def _curry_callable(obj: AnyCallable, /, *args: Any, **kwargs: Any) -> tuple[AnyCallable, tuple[Any, ...], Any]:
    """Return what the older library pickles for a call: a callable with its arguments.

    A method becomes ``invoke_member`` with the object and the method's name. Raises :class:`ValueError` if ``obj``
    can't be called.
    """
    if not callable(obj):
        raise ValueError("obj must be callable")
    owner = getattr(obj, "__self__", None) if isinstance(obj, _METHOD_TYPES) else None
    if owner is None or isinstance(owner, types.ModuleType):
        return obj, args, kwargs
    return invoke_member, (owner, obj.__name__, *args), kwargs


def run(data: bytes) -> Any:
    """Run the call of a trusted payload, and return its result. It reads every body that this library writes.

    Raises what the call raises, and :class:`~deferred_middleware.errors.TaskContentError` if the payload can't be read.
    That is not a permanent failure, because another version of the app may be able to read it.
    """
    settings = process.current_settings()
    reference = overflow.Reference.parse(data, settings.max_payload_bytes)
    if reference is not None:
        data = overflow.fetch(reference)
    found, _ = resolved(payload.content_of(data, settings, legacy=True), settings)
    result = Call.of(found).run()
    if reference is not None:
        overflow.finish(reference, None)
    return result


class Handler:
    """Runs tasks at a URL of the app: as a WSGI app, or with :meth:`post` inside a framework's view.

    As in the older library, :meth:`__call__` calls :meth:`post`, and that calls :meth:`run_from_request`, so a subclass
    can override them.
    """

    def __init__(self) -> None:
        self._made: tuple[Settings, TaskHandler] | None = None

    def run_from_request(self, environ: WSGIEnvironment) -> tuple[str, http.HTTPStatus, _Headers]:
        """Run the task of a request; return body, status and headers of the response. Raises what the task raised."""
        report = report_in(environ) or TaskReport()
        request = {"PATH_INFO": "", **environ, REPORT_KEY: report}
        # The older library asks for the task's name only. A signature covers the queue, so a missing one is no way in.
        request.setdefault(_QUEUE_KEY, "default")
        if isinstance(request.get("CONTENT_LENGTH"), int):
            request["CONTENT_LENGTH"] = str(request["CONTENT_LENGTH"])
        report.response = response = self._handler().answer(request)
        if isinstance(response, FinishingResponse):
            response.finish()  # the caller sends a copy
        if report.error is not None:
            raise report.error
        return _parts_of(response)

    def post(self, environ: WSGIEnvironment) -> tuple[str, http.HTTPStatus, _Headers]:
        """Run the task of a request; return body, status and headers of the response.

        Raises what the task raised, unless the task is not to be retried as a failure: ``SingularTaskFailure``,
        ``PermanentTaskFailure``, ``RetryLater`` and a last attempt have a response.
        """
        report = report_in(environ) or TaskReport()
        try:
            return self.run_from_request({**environ, REPORT_KEY: report})
        except Exception as error:
            if error is report.error and report.response is not None:
                if isinstance(error, (SingularTaskFailure, PermanentTaskFailure)) or report.response.status_int == 200:
                    return _parts_of(report.response)
                raise
            # An override raised it.
            if isinstance(error, SingularTaskFailure):
                logger.debug("a task asked for another attempt", exc_info=True)
                return "retry requested", http.HTTPStatus.REQUEST_TIMEOUT, [_TEXT]
            if isinstance(error, PermanentTaskFailure):
                logger.exception("a task failed for good")
                outcome = (protocol.OUTCOME_HEADER, protocol.PERMANENT_FAILURE)
                return "failed for good", http.HTTPStatus.OK, [_TEXT, outcome]
            raise

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Run the task of a request, as a WSGI app. Every exception of the task has a response."""
        if environ["REQUEST_METHOD"] != "POST":
            return self._handler().answer(environ)(environ, start_response)
        report = report_in(environ) or TaskReport()
        environ[REPORT_KEY] = report
        try:
            text, status, headers = self.post(environ)
        except Exception as error:
            if error is not report.error or report.response is None:
                raise
            text, status, headers = _parts_of(report.response)
        body = text.encode()
        start_response(f"{status.value} {status.phrase}", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def _handler(self) -> TaskHandler:
        settings = process.current_settings()
        if self._made is None or self._made[0] is not settings:
            self._made = settings, TaskHandler.installed(None, ())
        return self._made[1]


def _parts_of(response: webob.Response) -> tuple[str, http.HTTPStatus, _Headers]:
    headers = [(name, value) for name, value in response.headers.items() if name.lower() != "content-length"]
    return response.text.strip(), http.HTTPStatus(response.status_int), headers


application: Handler = Handler()
"""A handler, for routes that need a WSGI app."""
