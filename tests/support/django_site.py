"""A Django site in one module, for the tests of the Django integration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from deferred_middleware import EnqueueFuture, defer_async
from deferred_middleware.contrib.django import defer_on_commit

seen: list[Any] = []
# The results of asynchronous ``defer`` calls that the views did not wait for.
kept: list[EnqueueFuture] = []
# The answers that a middleware of the site gives instead of a view, by path.
answers: dict[str, HttpResponse] = {}


class Noting:
    """A middleware that records paths. Depending on its options it also reads the body, defers calls, or answers."""

    read_body = False
    after: Callable[[HttpResponse], HttpResponse] | None = None
    page: HttpResponse | None = None
    defers = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Record the path."""
        seen.append(("middleware", request.path))
        if self.read_body:
            seen.append(len(request.body))
        response = answers.get("all") or self._get_response(request)
        if self.defers:
            several(request, "quick")
        after = type(self).after
        return response if after is None else after(response)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer an exception of a view with a page, if there is one."""
        return self.page


class NotingHook:
    """A hook that the site's settings name."""

    def on_refused(self, *facts: object) -> None:
        """Record that a request was refused."""
        seen.append("refused")


def signup(request: HttpRequest, user: str) -> HttpResponse:
    """Defer a call when the transaction commits."""
    try:
        with transaction.atomic():
            defer_on_commit(note, user)
            seen.append("before commit")
            if user == "nobody":
                raise LookupError(user)
    except LookupError:
        return HttpResponse(status=404)
    return HttpResponse(status=202)


def several(request: HttpRequest, queue: str) -> HttpResponse:
    """Defer three calls asynchronously. If ``queue`` is "raises", raise an exception afterwards."""
    for number in range(3):
        kept.append(defer_async(note, number, _queue=None if queue == "raises" else queue))
    if queue == "raises":
        raise LookupError(queue)
    return HttpResponse(status=202)


def note(value: object) -> None:
    """Record that the task ran with ``value``."""
    seen.append(("ran", value))


def use_database(value: object) -> None:
    """Write a row, and fail if the value is bad."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO things VALUES (%s)", [str(value)])
    if value == "bad":
        raise ValueError(value)


def refuse_commit(value: object) -> None:
    """Write a row whose reference points nowhere, which the database finds out when the transaction commits."""
    seen.append(("ran", value))
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO parts VALUES (%s)", [str(value)])


def raise_it(error: Exception) -> None:
    """Raise ``error``."""
    raise error


urlpatterns: list[Any] = [
    path("signup/<user>", signup),
    path("several/<queue>", several),
]

SETTINGS: dict[str, Any] = {
    "ROOT_URLCONF": __name__,
    "SECRET_KEY": "of-the-tests",
    "ALLOWED_HOSTS": ["*"],
    "INSTALLED_APPS": ["deferred_middleware.contrib.django"],
    "MIDDLEWARE": [
        "deferred_middleware.contrib.django.middleware.TaskMiddleware",
        f"{__name__}.Noting",
        "django.middleware.csrf.CsrfViewMiddleware",
    ],
    "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "ATOMIC_REQUESTS": True}},
    "DEFERRED": {
        "LOG_LEVEL": "INFO",
        "LEGACY_URLS": ["/_ah/queue/deferred", "/old*"],
        "HOOKS": [f"{__name__}.NotingHook"],
    },
    "TASKS": {
        "default": {
            "BACKEND": "deferred_middleware.contrib.django.backend.DeferredBackend",
            "QUEUES": ["default", "mail"],
            "OPTIONS": {"retry_options": {"task_retry_limit": 1}},
        }
    },
    "USE_TZ": True,
}


def application() -> Any:
    """Set Django up on the first call, and return the site's WSGI app."""
    if not settings.configured:
        settings.configure(**SETTINGS)
        django.setup()
        # At the top of a module these imports would run too early and read the settings before they are configured.
        urlpatterns.append(path("", include("deferred_middleware.contrib.django.urls")))
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE things (value TEXT)")
            cursor.execute("CREATE TABLE wholes (name TEXT PRIMARY KEY)")
            cursor.execute("CREATE TABLE parts (whole TEXT REFERENCES wholes (name) DEFERRABLE INITIALLY DEFERRED)")
    return get_wsgi_application()
