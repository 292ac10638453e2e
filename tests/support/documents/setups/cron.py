import importlib
from typing import Any

from webob import Request


def check(tasks: Any) -> None:
    tasks.app = importlib.import_module("daily").app.wsgi_app
    assert Request.blank("/cron/reports").get_response(tasks.app).status_code == 403
    asked = Request.blank("/cron/reports", headers={"X-Appengine-Cron": "true"})
    assert asked.get_response(tasks.app).status_code == 200
    assert tasks.run().status == 200
