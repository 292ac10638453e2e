"""If a server is killed during a commit, both the entity and its task are stored, or neither is."""

from __future__ import annotations

import http.client
import os

import pytest

from tests.support.running import TELL, Recorder, Serve, Server, await_end

MAIN = (
    TELL
    + """
from google.appengine.api import taskqueue, wrap_wsgi_app
from google.appengine.ext import db, ndb

class Letter(ndb.Model):
    _use_cache = False
    _use_memcache = False

class Card(db.Model):
    pass

def pages(environ, start_response):
    _, verb, model, name = environ["PATH_INFO"].split("/")
    answer = b""
    if verb == "write":
        def work():
            Letter(id=name).put() if model == "ndb" else Card(key_name=name).put()
            taskqueue.add(url="/told/%s/%s" % (model, name), transactional=True)
        ndb.transaction(work, retries=0) if model == "ndb" else db.run_in_transaction_custom_retries(0, work)
    elif verb == "exists":
        found = Letter.get_by_id(name) if model == "ndb" else Card.get_by_key_name(name)
        answer = b"yes" if found is not None else b"no"
    else:
        tell(told=name)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]

app = wrap_wsgi_app(pages)
"""
)

# The server's command. Once the file "armed" exists, it kills itself before or after a step of a commit.
CRASHING = """
import os, runpy, signal
from deferred_middleware.server.api.taskqueue_add import DatastoreTransactions
from deferred_middleware.server.api.datastore import DatastoreStub
from deferred_middleware.server.api.entity_file import EntityFile

when, step = os.environ["KILL_AT"].split()
owners = {"stage": DatastoreTransactions, "commit": DatastoreTransactions, "write": EntityFile}
owner = owners.get(step, DatastoreStub)
original = getattr(owner, step)

def crash(self, *args):
    armed = os.path.exists("armed")
    if armed and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(self, *args)
    if armed:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, step, crash)
runpy.run_module("deferred_middleware", run_name="__main__", alter_sys=True)
"""

POINTS = [
    ("after stage", "ndb", False),
    ("before write", "db", False),
    ("after write", "ndb", True),
    ("before commit", "db", True),
]
if os.environ.get("DEFERRED_SOAK"):
    steps = {"before stage": False, "after _commit_in_memory": False, "before _write_file": False, "after commit": True}
    POINTS += [(step, model, there) for step, there in steps.items() for model in ("ndb", "db")]


@pytest.mark.parametrize(("point", "model", "there"), POINTS)
def test_a_kill_in_the_middle_of_a_commit(
    make_server: Serve, recorder: Recorder, point: str, model: str, there: bool
) -> None:
    """After ``kill -9`` during a commit, either the entity exists and its task runs once, or neither exists."""
    files = {"main.py": MAIN, "crashing.py": CRASHING}
    server: Server = make_server(files, environ={"KILL_AT": point}, program=["crashing.py"]).start()
    server.post(f"/write/{model}/before", None)
    assert recorder.next() == {"told": "before"}
    (server.directory / "armed").touch()
    with pytest.raises((AssertionError, http.client.HTTPException, OSError)):
        server.post(f"/write/{model}/during", None)
    server.wait()
    for pid in server.processes():
        await_end(pid)
    server.ready_file.unlink(missing_ok=True)
    (server.directory / "armed").unlink()
    server.start()
    assert server.get(f"/exists/{model}/before") == "yes"
    assert server.get(f"/exists/{model}/during") == ("yes" if there else "no")
    server.post(f"/write/{model}/after", None)
    told = sorted(recorder.next()["told"] for _ in range(2 if there else 1))
    assert told == (["after", "during"] if there else ["after"])
    assert server.stop() == 0
    assert recorder.is_silent(0)
