"""The middleware that answers the requests of tasks, and the manual of the Django glue.

In ``settings.py``::

    INSTALLED_APPS = [..., "deferred_middleware.contrib.django"]
    MIDDLEWARE = ["deferred_middleware.contrib.django.middleware.TaskMiddleware", ...]    # the first one
    DEFERRED = {"BACKGROUND_MODULE": "background"}    # settings, in addition to the environment's

In ``urls.py``::

    urlpatterns = [path("", include("deferred_middleware.contrib.django.urls")), ...]

Use it *instead of* ``DeferredMiddleware``, which runs tasks outside of Django. Only the view for tasks is exempt from
CSRF protection and from login. It raises what a task raises, so that ``ATOMIC_REQUESTS`` rolls back. The queue always
gets the status of the task's outcome. If a layer of the site fails after the task is done, such as the commit of
``ATOMIC_REQUESTS``, the attempt has failed, and the queue retries the task.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import webob
from django.conf import settings
from django.core.signals import got_request_exception
from django.http import HttpRequest, HttpResponse

from deferred_middleware.config.process import current_settings
from deferred_middleware.contrib.django.views import TaskResponse, is_not_logged_yet, on_exception, task_handler
from deferred_middleware.contrib.mounting import ensure_report, response_after_layers
from deferred_middleware.engines.request_scope import keeping_request
from deferred_middleware.enqueue import batch, request_end
from deferred_middleware.errors import SecretKeyMissingError
from deferred_middleware.errors.loggers import get_logger

logger: logging.Logger = get_logger("deferred_middleware")

GetResponse = Callable[[HttpRequest], HttpResponse]


class TaskMiddleware:
    """Sends the task handler's response to the queue, whatever the other middlewares returned. Put it first.

    At the end of any other request it waits for the calls that ``defer_async`` started. With ``DEFERRED_COALESCE`` the
    request's calls are enqueued together at its end, and are dropped if the view raises and no middleware answers.

    Without a secret key, a site with ``DEBUG`` starts nevertheless. Then a warning says what to do, and the view for
    tasks raises the error.

    Raises:
        SettingsError: at the start of the site, if the task handler can't be made.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: GetResponse) -> None:
        self._get_response = get_response
        self._coalesce = current_settings().coalesce
        self._runs = _runs_task()
        got_request_exception.connect(on_exception, dispatch_uid=__name__)
        # Django logs the exception of a view. That of a task, or of a layer around it, is logged with the task's call.
        logging.getLogger("django.request").addFilter(is_not_logged_yet)

    @keeping_request
    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass the request on. If it delivers a task, return the task handler's response."""
        environ = getattr(request, "environ", {})
        path = environ.get("PATH_INFO", "")
        report = ensure_report(environ) if self._runs(path) else None
        response: HttpResponse | None = None
        raised: Exception | None = None
        try:
            with batch.RequestBatch() if self._coalesce else contextlib.nullcontext():
                response = self._get_response(request)
        except Exception as error:  # with DEBUG_PROPAGATE_EXCEPTIONS
            if report is None or report.response is None:
                raise
            raised = error
        finally:
            # Calls that defer_async started in the request, and for which nobody has waited.
            if request_end.UNDER_WAY or request_end.FAILED:
                request_end.settle_request()
        answer: webob.Response | None = None
        if response is None:
            assert report is not None  # else the exception is raised
            answer = response_after_layers(task_handler(), report, path, raised=raised)
        elif report is not None:
            location = response.headers.get("Location")
            answer = response_after_layers(task_handler(), report, path, response.status_code, location)
        if answer is not None:
            return TaskResponse(answer)
        assert response is not None  # without it, there is an answer
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Drop the calls that a view deferred before it raised; then Django turns the exception into a response."""
        batch.drop_request(exception)


def _runs_task() -> Callable[[str], bool]:
    """Return the function that tells whether a path is that of a task."""
    try:
        return task_handler().runs
    except SecretKeyMissingError as error:
        if not settings.DEBUG:
            raise
        logger.warning(
            "Tasks can't be deferred or run in this process, because DEFERRED_SECRET_KEYS is not set. Start the site "
            "with `deferred-middleware serve %s`, or start this command with `deferred-middleware exec` while a local "
            "server runs.",
            (settings.WSGI_APPLICATION or "MODULE.CALLABLE").replace(".application", ":application"),
        )
        logger.debug("The task handler can't be made: %s", error)
        return lambda path: False
