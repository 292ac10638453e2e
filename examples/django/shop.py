"""A Django site in one module: a task confirms an order after its transaction has committed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from google.appengine.api import wrap_wsgi_app

# Before the app is set up, because it reads them. A real site has them in settings.py.
settings.configure(
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only-for-trying-it-out"),
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["deferred_middleware.contrib.django"],
    MIDDLEWARE=["deferred_middleware.contrib.django.middleware.TaskMiddleware"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(os.environ.get("SHOP_DATABASE", "shop.sqlite")),
            "ATOMIC_REQUESTS": True,
        }
    },
    DEFERRED={"LOG_LEVEL": "INFO"},
)
django.setup()

from deferred_middleware.contrib.django import defer_on_commit  # noqa: E402 - after the setup, as with Django's apps

with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT, confirmed INTEGER)")


def order(request: HttpRequest, item: str) -> HttpResponse:
    """Store an order, and defer its confirmation until the transaction commits."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (item, confirmed) VALUES (%s, 0)", [item])
        defer_on_commit(confirm, cursor.lastrowid)
    return HttpResponse(status=202)


def orders(request: HttpRequest) -> HttpResponse:
    """Show the orders, and whether they are confirmed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT item, confirmed FROM orders")
        return JsonResponse({item: bool(confirmed) for item, confirmed in cursor.fetchall()})


def confirm(order_id: int) -> None:
    """Confirm an order. A second delivery changes nothing."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE orders SET confirmed = 1 WHERE id = %s", [order_id])


urlpatterns: list[Any] = [
    path("", include("deferred_middleware.contrib.django.urls")),
    path("order/<item>", order),
    path("", orders),
]

app = wrap_wsgi_app(get_wsgi_application())
