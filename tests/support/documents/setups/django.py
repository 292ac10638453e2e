from types import SimpleNamespace
from typing import Any

import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["deferred_middleware.contrib.django"],
    MIDDLEWARE=["deferred_middleware.contrib.django.middleware.TaskMiddleware"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    ROOT_URLCONF="page",
    DEBUG=True,
)
django.setup()

received: list[int] = []


def send_receipt(order: int) -> None:
    received.append(order)


def check(tasks: Any) -> None:
    namespace = globals()
    assert namespace["MIDDLEWARE"] == settings.MIDDLEWARE
    assert namespace["INSTALLED_APPS"] == settings.INSTALLED_APPS
    namespace["place"](SimpleNamespace(pk=7, save=lambda: None))
    tasks.app = namespace["application"]
    assert tasks.run().status == 200
    assert received == [7]
