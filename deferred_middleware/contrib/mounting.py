"""What the frameworks' glue has in common: the handler as a route of the framework, and a guard around the framework.

A framework's layers may answer in the place of the task's handler (a login page, a maintenance page), or change its
answer (an error page with status 200). Either would make the queue drop a task that did not run. So the guard answers
for tasks: with what their outcome calls for, and with an error when there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import webob

from deferred_middleware.enqueue import request_end
from deferred_middleware.execution.handler import REPORT_KEY, TaskHandler, TaskReport, report_in
from deferred_middleware.execution.middleware import DeferredMiddleware

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("deferred_middleware")


def run_mounted(handler: TaskHandler, environ: WSGIEnvironment) -> webob.Response:
    """Run the task of a framework's request and return the answer; raise what the task raised.

    Raising lets the framework do with it what it does with any view's exception (roll back, report, clean up). The
    guard gives the answer all the same.
    """
    report = expect_report(environ)
    response = report.response = handler.answer(environ)
    if isinstance(report.error, Exception):
        raise report.error
    return response


def expect_report(environ: WSGIEnvironment) -> TaskReport:
    """Return where what becomes of the task is noted, for whoever around the request waits to hear it."""
    report = report_in(environ)
    if report is None:
        report = environ[REPORT_KEY] = TaskReport()
    return report


class TaskGuard(DeferredMiddleware):
    """A WSGI app around a framework's, which answers for the tasks that ``handler`` runs inside it.

    Other requests go to ``app`` as through :class:`~deferred_middleware.DeferredMiddleware`.
    """

    def __init__(self, app: WSGIApplication, handler: TaskHandler) -> None:
        self._wrap(app, handler)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on, and give a task's answer whatever became of it on the way."""
        path = environ.get("PATH_INFO", "")
        if not path.startswith(self._prefix) and path not in self._legacy:
            return super().__call__(environ, start_response)
        report = expect_report(environ)
        try:
            answer = _collect(self._app, environ)
        except Exception as error:
            if report.response is None:
                raise
            if error is not report.error:
                logger.exception("a layer around %.200r failed; the task's own outcome stands", path)
            answer = report.response
        finally:
            # What the framework's layers have started; for what the task has, its handler has waited.
            if request_end.UNDER_WAY or request_end.FAILED:
                request_end.settle_request()
        return (answer_instead(answer.status_int, report, path) or answer)(environ, start_response)


def answer_instead(status: int, report: TaskReport, path: str) -> webob.Response | None:
    """Return what the queue is to hear in place of the framework's answer, or None if that may stand.

    It may if it has no 2xx ``status``, so that the task is tried again.
    """
    if report.response is not None:
        return report.response
    if 200 <= status < 300:
        logger.error("a layer of the app answered %.200r with %d; the task did not run", path, status)
        return webob.Response(status=500, text="the task did not run\n", content_type="text/plain")
    return None


def _collect(app: WSGIApplication, environ: WSGIEnvironment) -> webob.Response:
    """Return what ``app`` answers, once it has answered all of it."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written = bytearray()

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        started.append((status, headers))
        return written.extend

    iterable = app(environ, start_response)
    try:
        for part in iterable:
            written += part
    finally:
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
    status, headers = started[-1]
    return webob.Response(status=status, headerlist=list(headers), body=bytes(written))
