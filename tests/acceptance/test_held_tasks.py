"""A task whose transaction is not committed yet: people can see it, and why it doesn't run."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import urllib.request

from tests.support.running import TELL, WAIT_SECONDS, Recorder, Serve

MAIN = (
    TELL
    + """
from google.appengine.api import taskqueue, wrap_wsgi_app
from google.appengine.ext import ndb

class Letter(ndb.Model):
    pass

def write():
    Letter(id="one").put()
    taskqueue.add(url="/told", transactional=True)

def pages(environ, start_response):
    if environ["PATH_INFO"] == "/write":
        ndb.transaction(write, retries=0)
    elif environ["PATH_INFO"] == "/told":
        tell(told=True)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return [b""]

app = wrap_wsgi_app(pages)
"""
)
WHY = "It is held until the datastore transaction that enqueued it is committed."


def test_a_held_task_says_why_it_waits(serve: Serve, recorder: Recorder) -> None:
    """While the datastore can't write the commit, commands, page and API show the task, and why; then it runs."""
    server = serve({"main.py": MAIN})
    other = sqlite3.connect(server.data_dir / "datastore.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # the server's own write waits for this one to end
    request = threading.Thread(target=server.post, args=("/write", None))
    try:
        request.start()
        deadline = time.monotonic() + WAIT_SECONDS
        while (shown := server.command("show", "1")).returncode:
            assert time.monotonic() < deadline, shown.stderr
        assert f"\nstate          held\nwaits          {WHY}\n" in shown.stdout
        (listed,) = json.loads(server.command("tasks", "--json").stdout)["tasks"]
        assert (listed["id"], listed["state"], listed["why"]) == (1, "held", WHY)
        with urllib.request.urlopen(f"{server.admin}/tasks/1", timeout=WAIT_SECONDS) as page:
            assert WHY in page.read().decode()
        assert "held until its transaction is committed" in server.command("delete", "1").stderr
    finally:
        other.execute("ROLLBACK")
        other.close()
        request.join(WAIT_SECONDS)

    assert recorder.next() == {"told": True}
    assert server.command("drain").returncode == 0
    assert "\nstate          succeeded\n" in server.command("show", "1").stdout
