"""The view that the task queue posts to."""

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
    """Return the process's handler, made when the first task comes: then the settings are there."""
    return TaskHandler.installed(None, ())


@csrf_exempt  # the queue has no token; its request is authenticated by the handler
def run_task(request: HttpRequest) -> HttpResponse:
    """Run the task of a request; raise what it raised."""
    environ: WSGIEnvironment = request.environ  # type: ignore[attr-defined] # a WSGIRequest
    # Reads on from where a middleware left off, or from the beginning if one has read request.body.
    environ["wsgi.input"] = request
    answer = run_mounted(task_handler(), environ)
    return HttpResponse(answer.body, status=answer.status_int, headers=dict(answer.headers))


# LoginRequiredMiddleware (Django 5.1) would send the queue to the login page.
run_task.login_required = False  # type: ignore[attr-defined]


def is_news(record: logging.LogRecord) -> bool:
    """Tell whether a log record is about something else than what a task raised: that has been logged already."""
    environ = getattr(getattr(record, "request", None), "environ", None)
    report = None if environ is None else report_in(environ)
    if report is None or report.error is None:
        return True
    return bool(record.exc_info) and record.exc_info[1] is not report.error  # type: ignore[index]
