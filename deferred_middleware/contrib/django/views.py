"""The view to which the queue posts tasks."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from deferred_middleware.contrib.mounting import run_mounted
from deferred_middleware.execution.handler import TaskHandler, report_in

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


@functools.cache
def task_handler() -> TaskHandler:
    """Return the task handler of the process, made on the first call, when the settings are installed."""
    return TaskHandler.installed(None, ())


@csrf_exempt  # the queue has no token; the handler authenticates its requests
def run_task(request: HttpRequest) -> HttpResponse:
    """Run the task of a request. Raises what the task raised."""
    environ: WSGIEnvironment = request.environ  # type: ignore[attr-defined] # a WSGIRequest
    # A Django request is readable: it continues after what a middleware has read, or returns a request.body again.
    environ["wsgi.input"] = request
    answer = run_mounted(task_handler(), environ)
    return HttpResponse(answer.body, status=answer.status_int, headers=dict(answer.headers))


# LoginRequiredMiddleware (Django 5.1) would redirect the queue to the login page.
run_task.login_required = False  # type: ignore[attr-defined]


def is_not_logged_yet(record: logging.LogRecord) -> bool:
    """Return False for a log record about the exception of a task, which the handler has logged."""
    environ = getattr(getattr(record, "request", None), "environ", None)
    report = None if environ is None else report_in(environ)
    if report is None or report.error is None:
        return True
    return bool(record.exc_info) and record.exc_info[1] is not report.error  # type: ignore[index]
