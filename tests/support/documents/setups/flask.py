import importlib
from typing import Any

from webob import Request


def check(tasks: Any) -> None:
    for name in (
        "flask_shop",
        "flask_factory",
    ):
        found = importlib.import_module(name)
        app = found.create_app() if hasattr(found, "create_app") else found.app
        tasks.app = getattr(app, "wsgi_app", app)
        if name != "flask_factory":
            assert Request.blank("/signup/ann", method="POST").get_response(tasks.app).status_code == 202
            assert tasks.run().status == 200
