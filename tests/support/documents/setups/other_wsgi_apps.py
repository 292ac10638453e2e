import importlib
from typing import Any

from webob import Request


def check(tasks: Any) -> None:
    for name in (
        "bottle_shop",
        "timed_shop",
    ):
        found = importlib.import_module(name)
        tasks.app = getattr(found.app, "wsgi_app", found.app)
        assert Request.blank("/signup/ann", method="POST").get_response(tasks.app).status_code == 202
        assert tasks.run().status == 200
