"""The reports of a running server: failures, functions, queue.yaml, cron.yaml, datastore and memcache."""

from __future__ import annotations

import http.client
import json
import re
import time
from urllib.parse import urlencode

import pytest

from tests.support.running import Serve, Server

APP = """
from google.appengine.api import memcache, wrap_wsgi_app
from google.appengine.ext import ndb
from deferred_middleware import DeferredMiddleware, defer
import chores


class Greeting(ndb.Model):
    text = ndb.StringProperty()


def pages(environ, start_response):
    if environ["PATH_INFO"] == "/go":
        defer(chores.send, 5, _retry_options={"task_retry_limit": 0})
        memcache.set("greeting", "hello")
        Greeting(id="one", text="<b>hello</b>").put()
    is_cron = environ.get("HTTP_X_APPENGINE_CRON") == "true"
    start_response("200 OK" if is_cron or environ["PATH_INFO"] == "/go" else "403 Forbidden", [])
    return [b"cron" if is_cron else b"no cron"]


app = wrap_wsgi_app(DeferredMiddleware(pages))
"""
BROKEN = "def send(number):\n    raise ValueError(f'no number {number}')\n"
MENDED = "def send(number):\n    return None\n"


def _admin(server: Server, method: str, path: str, fields: dict[str, str] | None = None) -> str:
    host = server.admin.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request(method, path, urlencode(fields or {}), headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    if answer.status == 303:
        return _admin(server, "GET", answer.headers["Location"])
    assert answer.status == 200, body
    return body


def _press(server: Server, page: str, action: str) -> str:
    """Press the button of the form with this action."""
    token = re.search(r'name="form_token" value="([^"]+)"', page)
    assert token is not None
    assert f'action="{action}"' in page
    return _admin(server, "POST", action, {"form_token": token[1]})


def _until(server: Server, path: str, text: str) -> str:
    """Load a page until it has a text; return it."""
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection(server.admin.removeprefix("http://"), timeout=30)
        connection.request("GET", path)
        page = connection.getresponse().read().decode()
        connection.close()
        if text in page:
            return page
        assert time.monotonic() < deadline, page
        time.sleep(0.1)


@pytest.fixture
def server(serve: Serve) -> Server:
    """A server with an app whose task fails, which follows changes of the code."""
    files = {
        "main.py": APP,
        "chores.py": BROKEN,
        "cron.yaml": "cron:\n- url: /clean\n  schedule: every day 03:30\n",
        "queue.yaml": "queue:\n- name: mail\n  rate: 5/s\n",
    }
    return serve(files, arguments=["--reload"])


def test_edit_save_retry_and_see_the_new_attempt(server: Server) -> None:
    """A failure is shown; after an edit, the retry from the page shows the new attempt beside the old one."""
    server.get("/go")
    _until(server, "/failures", "ValueError")
    page = _until(server, "/failures/1", "no number 5")
    assert "chores.py" in page
    assert "ValueError: no number 5" in server.command("failures").stdout
    (server.directory / "chores.py").write_text(MENDED)
    server.wait_for_output("Service 'default' is running again.")
    _press(server, page, "/failures/1/tasks/1/retry")
    page = _until(server, "/failures/1?task=1", "Attempt 2")
    assert server.command("retry", "--failure", "1").stdout == "0 failed tasks will be tried again.\n"
    assert server.command("retry", "--failure", "77").returncode == 4
    assert "Attempt 1" in page
    assert "None of its tasks is left" in page


def test_a_cron_entry_is_run_with_the_header_of_the_platform(server: Server) -> None:
    """The page's button sends the header; a client from outside can't."""
    page = _admin(server, "GET", "/cron")
    assert "every day 03:30" in page
    assert 'state-succeeded">status 200</span>' in _press(server, page, "/cron/0/run")
    assert "no cron" not in server.command("cron", "--run", "0", "--json").stdout
    assert server.command("cron").stdout.splitlines()[1].split()[:3] == ["0", "/clean", "default"]


def test_the_other_reports(server: Server) -> None:
    """Functions, queue.yaml, datastore and memcache show what there is."""
    server.get("/go")
    _until(server, "/functions", "chores/send")
    assert "chores/send" in server.command("functions", "chores/send").stdout
    assert "rate: 5/s" in _admin(server, "GET", "/queue-yaml")
    (server.directory / "edited.yaml").write_text("queue:\n- name: mail\n  rate: 1/s\n")
    assert server.command("queue-yaml", "edited.yaml").stdout == "Queue mail: rate from 5/s to 1/s.\n"
    assert "line 3" in server.command("queue-yaml").stdout
    assert "Greeting" in _admin(server, "GET", "/datastore")
    page = _admin(server, "GET", "/datastore?kind=Greeting")
    assert "&lt;b&gt;hello" in page
    assert "greeting" in _admin(server, "GET", "/memcache")
    token = json.loads((server.data_dir / "server.json").read_text())["token"]
    assert token not in page
