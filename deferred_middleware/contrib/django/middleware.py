"""The middleware that goes first: it answers for the tasks that run inside all the others."""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from deferred_middleware import pending
from deferred_middleware.contrib.django.views import is_news, task_handler
from deferred_middleware.contrib.mounting import answer_instead, await_delivery
from deferred_middleware.settings import current_settings

GetResponse = Callable[[HttpRequest], HttpResponse]


class TaskMiddleware:
    """Gives the queue the answer that a task's outcome calls for, whatever the layers in between made of it.

    The first in ``MIDDLEWARE``. Raises :class:`~deferred_middleware.SettingsError` when the site starts and the handler
    of tasks can't be made, for want of a secret key, say.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: GetResponse) -> None:
        self._get_response = get_response
        self._prefix = f"{current_settings().url_prefix}/"
        task_handler()
        # Django logs what a view raises; what a task raised has been logged, with the call.
        logging.getLogger("django.request").addFilter(is_news)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass the request on, and give a task's answer."""
        environ = getattr(request, "environ", None)
        if environ is None or not environ.get("PATH_INFO", "").startswith(self._prefix):
            try:
                return self._get_response(request)
            finally:
                # What defer_async started in the request and nobody has waited for.
                if pending.UNDER_WAY or pending.FAILED:
                    pending.settle_request()
        delivery = await_delivery(environ)
        response = self._get_response(request)
        answer = answer_instead(response.status_code, delivery, environ["PATH_INFO"])
        if answer is None:
            return response
        return HttpResponse(answer.body, status=answer.status_int, headers=dict(answer.headers))
