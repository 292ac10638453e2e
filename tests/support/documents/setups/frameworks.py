import importlib
import os
from types import SimpleNamespace
from typing import Any

os.environ["DATASTORE_EMULATOR_HOST"] = "127.0.0.1:1"  # so that the client asks for no credentials
os.environ["GOOGLE_CLOUD_PROJECT"] = "page"

import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["deferred_middleware.contrib.django"],
    MIDDLEWARE=["deferred_middleware.contrib.django.middleware.TaskMiddleware"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    ROOT_URLCONF="page",
    STATIC_URL="/static/",
    DEBUG=True,
)
django.setup()

from webob import Request


def Timing(app: Any) -> Any:
    return app


def send_receipt(order: int) -> None:
    pass


def site(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return []


def check(tasks: Any) -> None:
    saved: list[int] = []
    namespace = globals()
    namespace["place"](SimpleNamespace(pk=7, save=lambda: saved.append(7)))
    assert saved == [7]
    assert [str(task.label) for task in tasks.enqueued] == ["page/send_receipt"]
    tasks.app = namespace["application"]
    assert tasks.run().status == 200
    for module in ("flask_app", "flask_beneath", "webapp2_app", "plain_app"):
        found = importlib.import_module(module).app
        tasks.app = getattr(found, "wsgi_app", found)
        assert Request.blank("/signup/ann", method="POST").get_response(tasks.app).status_code == 202
        assert tasks.run().status == 200
