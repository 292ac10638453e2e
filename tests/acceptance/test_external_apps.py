"""The local server with an app that runs elsewhere, under gunicorn."""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.elsewhere import Gunicorn, free_port
from tests.support.repository import ROOT
from tests.support.running import TELL, WAIT_SECONDS, Recorder, Serve, Server

FILES = {
    "main.py": """
import json, os
from google.appengine.api import modules, wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer
import work

def handle(environ, start_response):
    if environ["PATH_INFO"] == "/defer":
        wanted = json.loads(environ["wsgi.input"].read())
        defer(work.note, wanted["what"], _target=wanted.get("target"))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"modules": sorted(modules.get_modules()), "pid": os.getpid()}).encode()]

app = wrap_wsgi_app(DeferredMiddleware(handle))
""",
    "work.py": TELL
    + """
from deferred_middleware import current_task

def note(what):
    environ = {k: v for k, v in current_task().environ.items() if isinstance(v, str)}
    tell(what=what, service=os.environ["GAE_SERVICE"], pid=os.getpid(), environ=environ)
""",
}


Start = Callable[[Server, str, int], Gunicorn]


@pytest.fixture
def gunicorn(recorder: Recorder) -> Iterator[Start]:
    """Return a function that starts gunicorn on a port for one of a server's services."""
    started: list[Gunicorn] = []

    def start(server: Server, service: str, port: int) -> Gunicorn:
        started.append(Gunicorn(server, service, port, recorder))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_tasks_go_both_ways_also_after_a_restart(serve: Serve, recorder: Recorder, gunicorn: Start) -> None:
    """The local app and the app under gunicorn run each other's tasks, also after a restart of the server."""
    port = free_port()
    server = serve(
        FILES,
        services=["default", f"background=http://127.0.0.1:{port}"],
        arguments=[f"--port={free_port()}", f"--admin-port={free_port()}"],
    )
    elsewhere = gunicorn(server, "background", port)
    pid = json.loads(elsewhere.request("GET", "/")[1])["pid"]
    assert pid not in server.app_processes()
    for _ in range(2):
        server.post("/defer", {"what": "there", "target": "background"})
        told = recorder.next()
        assert (told["what"], told["service"], told["pid"]) == ("there", "background", pid)
        assert told["environ"]["HTTP_X_APPENGINE_QUEUENAME"] == "default"
        elsewhere.defer("stays")
        told = recorder.next()
        assert (told["what"], told["service"], told["pid"]) == ("stays", "background", pid)
        elsewhere.defer("back", "default")
        told = recorder.next()
        assert (told["what"], told["service"]) == ("back", "default")
        assert told["pid"] in server.app_processes()
        assert json.loads(elsewhere.request("GET", "/")[1])["modules"] == ["background", "default"]
        assert server.stop() == 0
        server.start()


def test_the_default_service_may_be_elsewhere(serve: Serve, recorder: Recorder, gunicorn: Start) -> None:
    """A server without an app of its own is the task queue of an app that runs elsewhere."""
    port = free_port()
    server = serve(FILES, apps=[], services=[f"default=http://127.0.0.1:{port}"])
    assert server.app_processes() == []
    assert server.services == {"default": f"http://127.0.0.1:{port}"}
    elsewhere = gunicorn(server, "default", port)
    elsewhere.defer("hello")
    assert recorder.next()["what"] == "hello"
    assert server.stop() == 0


def test_a_task_waits_for_an_app_that_is_not_there(serve: Serve, recorder: Recorder, gunicorn: Start) -> None:
    """If the app doesn't answer, the attempt fails and the task is retried."""
    port = free_port()
    server = serve(FILES, services=["default", f"background=http://127.0.0.1:{port}"])
    server.post("/defer", {"what": "late", "target": "background"})
    deadline = time.monotonic() + WAIT_SECONDS
    while not (task := json.loads(server.command("tasks", "--json").stdout)["tasks"][0])["retry_count"]:
        assert time.monotonic() < deadline, server.output
    shown = server.command("show", f"default/{task['name']}").stdout
    assert f"nothing answers at http://127.0.0.1:{port}; is the app running there?" in shown
    gunicorn(server, "background", port)
    environ = recorder.next()["environ"]
    assert int(environ["HTTP_X_APPENGINE_TASKRETRYCOUNT"]) >= 1
    assert environ["HTTP_X_APPENGINE_TASKEXECUTIONCOUNT"] == "0"
    assert environ["HTTP_X_APPENGINE_TASKRETRYREASON"] == "Instance Unavailable"


def test_nobody_else_can_send_it_tasks(serve: Serve, recorder: Recorder, gunicorn: Start) -> None:
    """The app elsewhere runs only signed tasks; the queue's headers alone are not enough."""
    port = free_port()
    server = serve(FILES, services=["default", f"background=http://127.0.0.1:{port}"])
    elsewhere = gunicorn(server, "background", port)
    forged = {"X-AppEngine-QueueName": "default", "X-AppEngine-TaskName": "forged", "User-Agent": "AppEngine-Google"}
    assert elsewhere.request("POST", "/_cb/deferred/work/note", "forged", **forged)[0] == 403
    elsewhere.defer("signed")
    assert recorder.next()["what"] == "signed"


def test_a_log_does_not_get_the_secrets(serve: Serve) -> None:
    """If the output isn't a terminal, it names a file with the app's secrets, which only the user can read."""
    server = serve(FILES, services=["default", f"background=http://127.0.0.1:{free_port()}"])
    path = Path(json.loads(server.ready_file.read_text())["environ_files"]["background"])
    assert path == server.data_dir / "background.env"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "run:  . .deferred/background.env" in server.output
    secret = (server.data_dir / "secret.key").read_text().strip()
    assert secret in path.read_text()
    assert secret not in server.output
    assert "HTTP_X_APPENGINE_API_TICKET" not in server.output


def test_a_terminal_gets_them_ready_to_paste(make_server: Serve) -> None:
    """If the output is a terminal, it has a command line that sets the variables."""
    server = make_server(FILES, services=["default", f"background=http://127.0.0.1:{free_port()}"])
    ours, theirs = os.openpty()
    try:
        server.launch(stdout=theirs)
        server.wait_until_ready()
        written = b""
        while b"Ctrl-C stops it." not in written:
            assert select.select([ours], [], [], WAIT_SECONDS)[0]
            written += os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (server.data_dir / "background.env").read_text().strip() in written.decode()


DEAD_LETTERS = {
    "main.py": """
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer
import work

def handle(environ, start_response):
    if environ["PATH_INFO"] == "/defer":
        defer(work.once_mended, "x", _retry_options={"task_retry_limit": 3})
    start_response("200 OK", [])
    return [b""]

inner = DeferredMiddleware(handle)

def elsewhere(environ, start_response):
    # The local server keeps its own dead letters; those of an app that runs elsewhere are logged in full.
    environ.pop("deferred_middleware.local_server", None)
    return inner(environ, start_response)

app = wrap_wsgi_app(elsewhere)
""",
    "work.py": TELL
    + """
from deferred_middleware import PermanentTaskFailure, current_task

def once_mended(what):
    mended = os.path.exists("mended")
    tell(what=what, mended=mended, retry_limit=current_task().retry_limit, version=os.environ["GAE_VERSION"])
    if not mended:
        raise PermanentTaskFailure("broken")
""",
}


def test_commands_reach_the_server_with_the_variables(serve: Serve, recorder: Recorder) -> None:
    """With an app's variables, the commands retry a dead letter from the server's log and sweep the datastore."""
    services = ["default", f"background=http://127.0.0.1:{free_port()}"]
    server = serve(DEAD_LETTERS, services=services, arguments=["--no-task-lines"])
    server.post("/defer", None)
    assert recorder.next()["mended"] is False
    server.wait_for_output("dead letter: ")
    (server.directory / "mended").touch()

    def command(*words: str) -> str:
        line = f". .deferred/background.env && {shlex.join([sys.executable, '-m', 'deferred_middleware', *words])}"
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            ["sh", "-c", line], cwd=server.directory, env=environ, check=True, text=True, stdout=subprocess.PIPE
        ).stdout

    assert "dead letter 1: enqueued as" in command("replay", "server.log")
    assert recorder.next() == {"what": "x", "mended": True, "retry_limit": 3, "version": "local"}
    assert command("sweep") == "0 expired entities removed.\n"


CONTEXTVARS = FILES["main.py"].replace("(handle))", "(handle), use_legacy_context_mode=False)")
READS_NO_ENVIRON = """
import os
os.environ["READ_GAE_CONTEXT_FROM_OS_ENVIRON"] = "false"
"""


def test_an_app_without_the_legacy_context_mode(serve: Serve, recorder: Recorder, gunicorn: Start) -> None:
    """An app whose requests have no ``os.environ`` of their own enqueues and runs tasks, with and without a target."""
    port = free_port()
    files = {**FILES, "main.py": CONTEXTVARS}
    elsewhere = gunicorn(serve(files, services=["default", f"background=http://127.0.0.1:{port}"]), "background", port)
    for target, service in ((None, "background"), ("background", "background"), ("default", "default")):
        elsewhere.defer("it", target)
        assert recorder.next()["service"] == service


def test_an_app_that_reads_headers_alone_is_told(serve: Serve, gunicorn: Start) -> None:
    """If the SDK may not read ``os.environ`` either, nothing is enqueued and the error says why."""
    port = free_port()
    files = {**FILES, "main.py": READS_NO_ENVIRON + CONTEXTVARS}
    elsewhere = gunicorn(serve(files, services=["default", f"background=http://127.0.0.1:{port}"]), "background", port)
    assert elsewhere.request("POST", "/defer", {"what": "it"})[0] == 500
    assert "work/note was not enqueued" in elsewhere.output
    assert "the app's hostname is not known here (DEFAULT_VERSION_HOSTNAME)" in elsewhere.output
