import os

os.environ["DATASTORE_EMULATOR_HOST"] = "127.0.0.1:1"  # so that the client asks for no credentials
os.environ["GOOGLE_CLOUD_PROJECT"] = "page"

from types import SimpleNamespace
from typing import Any

from google.cloud import ndb


def send_invoice(order_id: int) -> None:
    pass


def site(environ: Any, start_response: Any) -> list[bytes]:
    return []


order_id = 7
app = SimpleNamespace(wsgi_app=site)


def check(tasks: Any) -> None:
    assert [task.name for task in tasks.enqueued] == ["invoice-7"]
    task = tasks.enqueued[0]
    tasks.app = app.wsgi_app
    assert tasks.run(task).status == 200
