"""A server whose database is damaged, before its start or while it runs, goes on with what can be read."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tests.support.running import TELL, WAIT_SECONDS, Recorder, Serve, Server

APP = (
    TELL
    + """
import json
from google.appengine.api import taskqueue, wrap_wsgi_app

def handle(environ, start_response):
    if environ["PATH_INFO"] == "/add":
        queue = json.loads(environ["wsgi.input"].read())
        taskqueue.Queue(queue).add([
            taskqueue.Task(name=f"{queue}-{number}", url="/work", payload="x" * 500) for number in range(100)
        ])
    else:
        tell(ran=environ["HTTP_X_APPENGINE_TASKNAME"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return []

app = wrap_wsgi_app(handle)
"""
)
QUEUES = ("one", "two")
QUEUE_YAML = "queue:\n- name: one\n  rate: 500/s\n- name: two\n  rate: 500/s\n"
PAGE_BYTES = 4096


def with_waiting_tasks(make_server: Serve) -> Server:
    """Start a server with 100 tasks in each of two paused queues."""
    server = make_server({"main.py": APP, "queue.yaml": QUEUE_YAML}).start()
    for queue in QUEUES:
        assert server.command("pause", queue).returncode == 0
        server.post("/add", queue)
    return server


def damage(server: Server, table: str) -> Path:
    """Overwrite a page of a table, in the file of a server that has no log; return the file."""
    path = next(server.directory.rglob("tasks.sqlite"))
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        # The root page has the numbers of the leaves, two to a number of tasks; the last four bytes of the header are
        # the rightmost leaf's.
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    with path.open("r+b") as stream:
        stream.seek((root - 1) * PAGE_BYTES)
        header = stream.read(12)
        assert header[0] == 5, "the table has one page only"
        leaf = int.from_bytes(header[8:12], "big")
        stream.seek((leaf - 1) * PAGE_BYTES)
        stream.write(b"\xff" * PAGE_BYTES)
    return path


def ran_after_resuming(server: Server, recorder: Recorder) -> set[str]:
    """Resume the queues, wait until nothing waits, and return the names of the tasks that ran."""
    for queue in QUEUES:
        done = server.command("resume", queue)
        # The server may be starting again at this moment.
        until = time.monotonic() + WAIT_SECONDS
        while done.returncode and time.monotonic() < until:
            time.sleep(0.2)
            done = server.command("resume", queue)
        assert done.returncode == 0, done.stderr
    ran: set[str] = set()
    while not recorder.is_silent(3):
        ran.add(recorder.next()["ran"])
    return ran


def test_damage_while_the_server_was_stopped(make_server: Serve, recorder: Recorder) -> None:
    """All tasks that can be read run, one error says what is lost, and the next start says nothing."""
    server = with_waiting_tasks(make_server)
    assert server.stop() == 0
    path = damage(server, "payloads")
    server.start()
    ran = ran_after_resuming(server, recorder)
    (told,) = [line for line in server.output.splitlines() if "was damaged" in line]
    lost = re.search(r"Lost tasks whose names are known: (\d+)", told)
    assert lost
    assert "before: 200" in told
    assert len(ran) == 200 - int(lost[1])
    # Only a page was damaged.
    assert len(ran) > 150
    assert list(path.parent.glob("tasks.sqlite.damaged-*"))
    assert server.stop() == 0
    server.start()
    assert "damaged" not in server.output
    assert json.loads(server.command("tasks", "--json", "--state", "ready").stdout)["tasks"] == []
    assert server.stop() == 0


def test_damage_while_the_server_runs(make_server: Serve, recorder: Recorder) -> None:
    """The first touch is reported once, and the server goes on with all that can be read."""
    server = with_waiting_tasks(make_server)
    assert server.stop() == 0
    server.start()
    damage(server, "payloads")
    ran = ran_after_resuming(server, recorder)
    assert server.output.count("This server does so now") == 1, server.output
    (told,) = [line for line in server.output.splitlines() if "was damaged" in line]
    lost = re.search(r"Lost tasks whose names are known: \d+ \((.*?)\)", told)
    assert lost
    # A lost one may have been read before the damage.
    everything = {f"{queue}-{number}" for queue in QUEUES for number in range(100)}
    assert everything - ran <= {name.partition("/")[2] for name in lost[1].split(", ")}
    assert server.stop() == 0


def test_a_file_that_is_cut_off(make_server: Serve) -> None:
    """A database that lacks its end is refused with a sentence."""
    server = with_waiting_tasks(make_server)
    assert server.stop() == 0
    path = next(server.directory.rglob("tasks.sqlite"))
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 3 * PAGE_BYTES)
    server.launch()
    assert server.wait() == 1
    assert "Traceback" not in server.output
    assert "tasks.sqlite is cut off" in server.output.splitlines()[-1]
