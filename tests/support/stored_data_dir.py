"""A whole data directory with tasks and entities: one version of the local server writes it, another version opens it.

``python -m tests.support.stored_data_dir FILE`` starts a server, lets it fill its directory, kills it and packs the
directory. So the file also has a write-ahead log that was not checkpointed. It has no address of the machine.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support.running import TELL, Recorder, Server

APP = (
    TELL
    + """
import random

from google.appengine.api import namespace_manager, wrap_wsgi_app
from google.appengine.ext import ndb

from deferred_middleware import DeferredMiddleware, PermanentTaskFailure, current_task, defer

LONG = "more than a task holds " * 6000
NOISE = random.Random(1).randbytes(104_000)

class Note(ndb.Model):
    text = ndb.TextProperty()
    number = ndb.IntegerProperty()

def work(what, *more):
    tell(ran=what, namespace=namespace_manager.get_namespace(), tenant=current_task().environ.get("HTTP_X_TENANT"))

def check_long(text):
    work("compressed" if text == LONG else "compressed, wrong")

def check_noise(noise):
    work("in the datastore" if noise == NOISE else "in the datastore, wrong")

def fail():
    tell(failed=current_task().name)
    raise PermanentTaskFailure("it was not to be")

@ndb.transactional(xg=True)
def commit():
    Note(id="committed", text="by a transaction", number=7).put()
    defer(work, "of a transaction", _transactional=True)

def fill():
    Note(id="n", text="caf\\u00e9", number=2**40).put()
    defer(work, "with a header", _headers={"X-Tenant": "a"}, _name="its-own-name")
    defer(check_long, LONG)
    defer(check_noise, NOISE)
    namespace_manager.set_namespace("tenant")
    defer(work, "in a namespace")
    namespace_manager.set_namespace("")
    commit()
    defer(fail, _queue="failing")

def pages(environ, start_response):
    body = "filled"
    if environ["PATH_INFO"] == "/fill":
        fill()
    elif environ["PATH_INFO"] == "/notes":
        body = json.dumps({note.key.id(): [note.text, note.number] for note in Note.query()})
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body.encode()]

app = wrap_wsgi_app(DeferredMiddleware(pages))
"""
)
QUEUE_YAML = "queue:\n- name: default\n  rate: 100/s\n- name: failing\n  rate: 100/s\n"
FILES = {"main.py": APP, "queue.yaml": QUEUE_YAML}
NOT_PACKED = ("server.json", "server.lock", ".gitignore", "-shm", "tasks.sqlite.lock")
"""The ends of the names of files that are of one run, or of one machine."""


def main(file: str) -> None:
    """Write the packed directory to ``file``."""
    with tempfile.TemporaryDirectory() as temporary:
        directory, recorder = Path(temporary), Recorder()
        for name, content in FILES.items():
            (directory / name).write_text(content)
        arguments = ["main:app", "--port=0", "--admin-port=0", f"--ready-file={directory / 'ready.json'}"]
        server = Server(directory, arguments, {"RECORDER": recorder.path})
        try:
            server.start()
            assert server.command("pause", "default").returncode == 0
            server.get("/fill")
            assert "failed" in recorder.next()
            server.wait_for_output("dead letter")
            server.kill()
        finally:
            server.discard()
            recorder.close()
        with tarfile.open(file, "w:gz") as packed:
            for path in sorted(server.data_dir.iterdir()):
                if path.is_file() and not path.name.endswith(NOT_PACKED):
                    packed.add(path, path.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
