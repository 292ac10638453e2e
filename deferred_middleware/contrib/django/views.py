"""The view to which the queue posts tasks."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import webob
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from deferred_middleware.contrib.mounting import is_logged_by_us, note_layer_failure, run_mounted
from deferred_middleware.execution.handler import FinishingResponse, TaskHandler, report_in

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


@functools.cache
def task_handler() -> TaskHandler:
    """Return the task handler of the process, made on the first call, when the settings are installed."""
    return TaskHandler.installed(None, ())


@csrf_exempt  # the queue has no token; the handler authenticates its requests
def run_task(request: HttpRequest) -> HttpResponse:
    """Run the task of a request. Raises what the task raised, or what the commit of its transaction raised.

    The view begins the transactions of ``ATOMIC_REQUESTS`` itself. So it sees a commit that fails, even if a middleware
    of the site turns the exception into a response.
    """
    environ: WSGIEnvironment = request.environ  # type: ignore[attr-defined] # a WSGIRequest
    # A Django request is readable: it continues after what a middleware has read, or returns a request.body again.
    environ["wsgi.input"] = request
    try:
        with contextlib.ExitStack() as stack:
            for alias in connections:
                if connections.settings[alias]["ATOMIC_REQUESTS"]:
                    stack.enter_context(transaction.atomic(using=alias))
            return TaskResponse(run_mounted(task_handler(), environ))
    except Exception as error:
        note_layer_failure(environ, error)
        raise


for _alias in connections:
    run_task = transaction.non_atomic_requests(using=_alias)(run_task)

# LoginRequiredMiddleware (Django 5.1) would redirect the queue to the login page.
run_task.login_required = False  # type: ignore[attr-defined] # Django reads it


def is_not_logged_yet(record: logging.LogRecord) -> bool:
    """Return False for a log record about the exception of a task or of a layer around it, which our log has."""
    environ = getattr(getattr(record, "request", None), "environ", None)
    report = None if environ is None else report_in(environ)
    return not is_logged_by_us(report, record.exc_info[1] if record.exc_info else None)


def on_exception(sender: object, request: HttpRequest | None = None, **kwargs: object) -> None:
    """Notice an exception that Django turns into a response, as that of a layer if it is not the task's."""
    environ = getattr(request, "environ", None)
    if environ is not None:
        note_layer_failure(environ, sys.exc_info()[1])


class TaskResponse(HttpResponse):
    """The response of the task handler as one of Django's."""

    def __init__(self, answer: webob.Response) -> None:
        super().__init__(answer.body, status=answer.status_int, headers=dict(answer.headers))
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        """Return the content for the server. The payload of a task that is done is removed now."""
        if isinstance(self._answer, FinishingResponse):
            self._answer.finish()
        return super().__iter__()
