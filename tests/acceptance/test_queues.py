"""Queues on the local server: queue.yaml, its reload, and a task that kills its process."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.running import WAIT_SECONDS, Serve, Server

APP = """
import os
from google.appengine.api import taskqueue, wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer, current_task

def note(text):
    with open("notes", "a") as stream:
        stream.write(f"{text} {current_task().queue}\\n")

def kill():
    os._exit(3)

def page(environ, start_response):
    path = environ["PATH_INFO"].strip("/").split("/")
    status = "200 OK"
    if path[0] == "note":
        try:
            defer(note, path[2], _queue=path[1])
        except taskqueue.UnknownQueueError:
            status = "409 Conflict"
    elif path[0] == "kill":
        # Not before this has been answered.
        backoff = {"min_backoff_seconds": 0.01, "max_backoff_seconds": 0.1}
        defer(kill, _retry_options=backoff, _name="killer", _countdown=0.5)
    start_response(status, [("Content-Type", "text/plain")])
    return [status.encode()]

app = wrap_wsgi_app(DeferredMiddleware(page))
"""
QUEUES = """queue:
- name: mail
  rate: 100/s
- name: held
  rate: 0/s
"""


def status_of(server: Server, path: str) -> int:
    """Return the status of a page of the app."""
    import http.client

    host, _, port = server.services["default"].removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def wait_for_note(server: Server, text: str) -> None:
    """Wait until a task has written this note."""
    deadline = time.monotonic() + WAIT_SECONDS
    notes = server.directory / "notes"
    while not (notes.exists() and text in notes.read_text().splitlines()):
        assert time.monotonic() < deadline, server.output
        time.sleep(0.02)  # no portable event announces a change of a file, so it is polled until the deadline


def test_queue_yaml_is_obeyed_and_followed(serve: Serve) -> None:
    """The server applies queue.yaml and its changes, holds tasks at a rate of 0, and reports an invalid file."""
    server = serve({"main.py": APP, "queue.yaml": QUEUES})
    assert status_of(server, "/note/mail/one") == 200
    assert status_of(server, "/note/held/two") == 200
    assert status_of(server, "/note/nowhere/three") == 409
    wait_for_note(server, "one mail")

    (server.directory / "queue.yaml").write_text(QUEUES.replace("0/s\n", "x/s\n", 1).replace("100/s", "oops"))
    server.wait_for_output("queue.yaml")
    assert status_of(server, "/note/mail/four") == 200
    wait_for_note(server, "four mail")

    (server.directory / "queue.yaml").write_text(QUEUES.replace("rate: 0/s", "rate: 50/s"))
    wait_for_note(server, "two held")


def test_drain_leaves_a_queue_alone_that_its_rate_pauses(serve: Serve) -> None:
    """If a queue has a rate of 0, ``drain`` doesn't wait for it and says that it skips it."""
    server = serve({"main.py": APP, "queue.yaml": QUEUES})
    assert status_of(server, "/note/held/waits") == 200

    drained = server.command("drain", "--timeout", "60", "--json")

    assert drained.returncode == 0, drained.stdout + drained.stderr
    assert json.loads(drained.stdout)["left_alone"] == ["held"]


@pytest.mark.parametrize("text", ["queue:\n- name: mail\n  rate: oops\n", "queue: [\n"])
def test_a_wrong_queue_yaml_stops_the_start(make_server: Serve, text: str) -> None:
    """If queue.yaml has an error, the start fails with status 1 and one sentence that has the file and line."""
    server = make_server({"main.py": APP, "queue.yaml": text})
    server.launch()

    assert server.wait() == 1
    assert "queue.yaml" in server.output
    assert "Traceback" not in server.output


def test_a_task_that_kills_its_process_is_quarantined(serve: Serve) -> None:
    """If a task kills its process three times, it becomes a dead letter, and the service runs the other tasks."""
    server = serve({"main.py": APP})
    assert status_of(server, "/kill") == 200

    server.wait_for_output("so the task is not retried automatically")
    assert status_of(server, "/note/default/after") == 200
    wait_for_note(server, "after default")
    assert server.output.count("it is started again in") >= 3
    task = json.loads(server.command("show", "default/killer", "--json").stdout)
    assert task["task"]["state"] == "failed"
    assert len(task["task"]["attempts"]) == 3
