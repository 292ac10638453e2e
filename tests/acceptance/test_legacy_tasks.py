"""Tasks of ``google.appengine.ext.deferred`` on the local server, with the SDK's own library and unmodified apps."""

from __future__ import annotations

import http.client
import os
import pickle
from collections.abc import Iterator

import pytest

from tests.support.elsewhere import Gunicorn, free_port
from tests.support.running import TELL, Recorder, Serve

FILES = {
    "main.py": """
import json, os
from google.appengine.api import wrap_wsgi_app
from google.appengine.ext import deferred
from deferred_middleware import DeferredMiddleware, Settings
import work

def handle(environ, start_response):
    if environ["PATH_INFO"] == "/defer":
        wanted = json.loads(environ["wsgi.input"].read())
        deferred.defer(getattr(work, wanted["what"]), wanted["argument"], **wanted.get("options", {}))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [b"null"]

app = wrap_wsgi_app(DeferredMiddleware(handle, settings=Settings(legacy_urls=("/_ah/queue/deferred", "/old/*"))))
""",
    "work.py": TELL
    + """
from deferred_middleware import current_task

class Shop:
    def __init__(self, name):
        self.name = name

    def note(self):
        tell(what=self.name)

def note(what):
    tell(what=what[:10], size=len(what), service=os.environ["GAE_SERVICE"], label=current_task().label)

def fail_once(what):
    tell(what=what, retries=current_task().retry_count)
    if current_task().retry_count == 0:
        raise ValueError(what)
""",
}


@pytest.fixture
def elsewhere() -> Iterator[list[Gunicorn]]:
    """Stop the apps in the list at the end."""
    started: list[Gunicorn] = []
    yield started
    for one in started:
        one.stop()


def test_they_run_at_the_legacy_urls(serve: Serve, recorder: Recorder) -> None:
    """They run at each legacy URL, with a large payload too, and are retried as on App Engine."""
    server = serve(FILES, services=("default", "background"))
    server.post("/defer", {"what": "note", "argument": "plain"})
    assert recorder.next() == {"what": "plain", "size": 5, "service": "default", "label": "work/note"}
    server.post("/defer", {"what": "note", "argument": "x" * 200_000})
    assert recorder.next()["size"] == 200_000
    server.post(
        "/defer", {"what": "note", "argument": "there", "options": {"_url": "/old/a%20b", "_target": "background"}}
    )
    assert recorder.next()["service"] == "background"
    server.post("/defer", {"what": "fail_once", "argument": "again", "options": {"_name": "named"}})
    assert [recorder.next()["retries"] for _ in range(2)] == [0, 1]
    assert server.stop() == 0


def test_nobody_else_can_have_one_run(serve: Serve, recorder: Recorder) -> None:
    """A request from outside is refused, with and without the headers of the task queue."""
    server = serve(FILES)
    host = server.services["default"].removeprefix("http://")
    body = pickle.dumps((os.system, ("touch forged",), {}))
    for headers in (
        {},
        {"X-AppEngine-QueueName": "default", "X-AppEngine-TaskName": "forged"},
        {"X-AppEngine-QueueName": "default", "X-AppEngine-TaskName": "forged", "X-Deferred-Signature": "v1;"},
    ):
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("POST", "/_ah/queue/deferred", body, headers)
        assert connection.getresponse().status == 403
        connection.close()
    assert recorder.is_silent(0.2)
    assert server.stop() == 0


def test_an_app_that_requires_signatures_refuses_them(serve: Serve, recorder: Recorder) -> None:
    """With DEFERRED_REQUIRE_SIGNATURE the task stays in the queue, as it would on App Engine."""
    server = serve(FILES, environ={"DEFERRED_REQUIRE_SIGNATURE": "true"})
    server.post("/defer", {"what": "note", "argument": "unsigned"})
    server.wait_for_output("it has no signature")
    assert recorder.is_silent(0.2)
    assert server.stop() == 0


def test_they_run_in_an_app_that_runs_elsewhere(serve: Serve, recorder: Recorder, elsewhere: list[Gunicorn]) -> None:
    """An app under gunicorn gets them too, and refuses those of others."""
    port = free_port()
    server = serve(FILES, apps=[], services=[f"default=http://127.0.0.1:{port}"])
    elsewhere.append(Gunicorn(server, "default", port, recorder))
    assert elsewhere[0].request("POST", "/defer", {"what": "note", "argument": "plain"})[0] == 200
    assert recorder.next()["what"] == "plain"
    forged = {"X-AppEngine-QueueName": "default", "X-AppEngine-TaskName": "forged"}
    assert elsewhere[0].request("POST", "/_ah/queue/deferred", "forged", **forged)[0] == 403
    assert server.stop() == 0
