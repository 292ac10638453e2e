"""The middleware that goes first: it answers for the tasks that run inside all the others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from deferred_middleware.config.process import current_settings
from deferred_middleware.contrib.django.views import is_news, task_handler
from deferred_middleware.contrib.mounting import answer_instead, expect_report
from deferred_middleware.enqueue import batch, request_end

GetResponse = Callable[[HttpRequest], HttpResponse]


class TaskMiddleware:
    """Gives the queue the answer that a task's outcome calls for, whatever the layers in between made of it.

    Of any other request it waits for what ``defer_async`` started. With ``DEFERRED_COALESCE`` that leaves together, and
    not at all if the view raises and no middleware answers for it.

    The first in ``MIDDLEWARE``. Raises :class:`~deferred_middleware.SettingsError` when the site starts and the handler
    of tasks can't be made, for want of a secret key, say.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: GetResponse) -> None:
        self._get_response = get_response
        settings = current_settings()
        self._prefix = f"{settings.url_prefix}/"
        self._legacy = frozenset(settings.legacy_urls)
        self._coalesce = settings.coalesce
        task_handler()
        # Django logs what a view raises; what a task raised has been logged, with the call.
        logging.getLogger("django.request").addFilter(is_news)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass the request on, and give a task's answer."""
        environ = getattr(request, "environ", {})
        path = environ.get("PATH_INFO", "")
        is_task = path.startswith(self._prefix) or path in self._legacy
        report = expect_report(environ) if is_task else None
        try:
            with batch.RequestBatch() if self._coalesce else contextlib.nullcontext():
                response = self._get_response(request)
        finally:
            # What defer_async started in the request and nobody has waited for.
            if request_end.UNDER_WAY or request_end.FAILED:
                request_end.settle_request()
        answer = None if report is None else answer_instead(response.status_code, report, path)
        if answer is None:
            return response
        return HttpResponse(answer.body, status=answer.status_int, headers=dict(answer.headers))

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Forget what a view has deferred that raises; Django makes a response of the exception afterwards."""
        batch.drop_request(exception)
