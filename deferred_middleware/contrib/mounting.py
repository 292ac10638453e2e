"""The part that the glue of all frameworks shares: the task handler as a view, and a guard around the framework.

A layer of a framework may answer instead of the task handler (a login page, a maintenance page), or replace the
handler's response (an error page with status 200). Either way the queue would drop a task that has not run or has
failed. So the guard answers the requests of tasks: with the handler's response, or with an error if there is none.

A layer may also fail after the task is done: a commit at the end of the request is refused. Then the work of the task
may be undone, so the attempt has failed. An outcome other than success stands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import webob

from deferred_middleware.engines.request_scope import keeping_request
from deferred_middleware.enqueue import request_end
from deferred_middleware.errors import LayerError
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.errors.text import log_error
from deferred_middleware.execution.handler import REPORT_KEY, TaskHandler, TaskReport, report_in
from deferred_middleware.execution.middleware import DeferredMiddleware
from deferred_middleware.execution.outcomes import Outcome

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger: Final = get_logger("deferred_middleware")


def run_mounted(handler: TaskHandler, environ: WSGIEnvironment) -> webob.Response:
    """Run the task of a framework's request, and return the response. Raises what the task raised.

    So the framework handles the exception as any view's: it rolls back, reports, cleans up. The guard sends the
    response nevertheless.
    """
    report = ensure_report(environ)
    response = report.response = handler.answer(environ)
    if report.error is not None and issubclass(type(report.error), Exception):
        raise report.error
    return response


def ensure_report(environ: WSGIEnvironment) -> TaskReport:
    """Return the report that the task handler fills for the request; one is added to ``environ`` if there is none."""
    report = report_in(environ)
    if report is None:
        report = environ[REPORT_KEY] = TaskReport()
    return report


class TaskGuard(DeferredMiddleware):
    """A WSGI app around a framework's ``app``, in which ``handler`` runs the tasks. It answers the requests of tasks.

    It treats other requests as :class:`~deferred_middleware.DeferredMiddleware` does.
    """

    def __init__(self, app: WSGIApplication, handler: TaskHandler) -> None:
        self._wrap(app, handler)

    @keeping_request
    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request to the app. If it is a task's, send the handler's response, whatever the app returned."""
        path = environ.get("PATH_INFO", "")
        if not self._handler.runs(path):
            return super().__call__(environ, start_response)
        report = ensure_report(environ)
        answer: webob.Response | None = None
        raised: Exception | None = None
        try:
            answer = _complete_response(self._app, environ)
        except Exception as error:
            if report.response is None:
                raise
            raised = error
        finally:
            # The framework's layers may have deferred calls too. The handler has waited for those of the task.
            if request_end.UNDER_WAY or request_end.FAILED:
                request_end.settle_request()
        if answer is None:
            final = response_after_layers(self._handler, report, path, raised=raised)
        else:
            final = response_after_layers(self._handler, report, path, answer.status_int, answer.location)
        response = final or answer
        assert response is not None  # either there is an answer, or the handler's response
        return response(environ, start_response)


def note_layer_failure(environ: WSGIEnvironment, error: BaseException | None) -> None:
    """Keep an exception that the framework has got during the request of a task, unless it is that of the task.

    The framework may answer it with a page of any status.
    """
    report = report_in(environ)
    if report is not None and report.response is not None and error is not None and error is not report.error:
        report.layer_error = report.layer_error or error


def is_logged_by_us(report: TaskReport | None, error: BaseException | None) -> bool:
    """Tell whether our log has ``error``, which the framework is about to log for the request of a task.

    An ``error`` of None stands for a record about the status of the response.
    """
    if report is None:
        return False
    ours = [one for one in (report.error, report.layer_error) if one is not None]
    return bool(ours) if error is None else any(error is one for one in ours)


def response_after_layers(
    handler: TaskHandler,
    report: TaskReport,
    path: str,
    status: int = 500,
    location: str | None = None,
    *,
    raised: BaseException | None = None,
) -> webob.Response | None:
    """Return the response to send to the queue after all layers of the framework; None to send the framework's.

    ``status`` and ``location`` are those of the framework's response, and ``raised`` is an exception that it raised
    instead of returning a response. Without a response of the handler, the framework's is sent unless its status is
    2xx, so that the task is retried. A redirect is logged as an ERROR.
    """
    if report.response is not None:
        error = report.layer_error or (None if raised is report.error else raised)
        if report.outcome is Outcome.DONE:
            if error is None and not 200 <= status < 300:
                error = LayerError(status)
            if error is not None:
                return handler.fail(report, error)
        elif error is not None:
            log_error(
                logger,
                logging.ERROR,
                "a layer around the task %.200r failed; the task keeps its outcome",
                path,
                error=error,
            )
        return report.response
    if 200 <= status < 300:
        logger.error("a layer of the app answered %.200r with %d; the task did not run", path, status)
        return webob.Response(status=500, text="the task did not run\n", content_type="text/plain")
    if 300 <= status < 400:
        logger.error(
            "a layer of the app redirected %.200r with %d to %.200r; the queue does not follow it, so the task did not "
            "run",
            path,
            status,
            location,
        )
    return None


def _complete_response(app: WSGIApplication, environ: WSGIEnvironment) -> webob.Response:
    """Call ``app``, and return its response once the whole body has been read."""
    response = webob.Request(environ).send(app, catch_exc_info=True)
    _ = response.body  # reads the iterable to its end, and closes it
    return response
