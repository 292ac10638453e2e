"""End to end: a real app defers a call, which runs later inside the app's own middlewares."""

from __future__ import annotations

import http.client
import inspect
import re
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.running import TELL, WAIT_SECONDS, Recorder, Serve, Server

ROOT = Path(__file__).parents[2]

# A plain WSGI app: POST /defer/<what>/<argument> defers a function of the module "chores".
MAIN = (
    TELL
    + """
import threading
from google.appengine.api import wrap_wsgi_app
from google.appengine.ext import ndb
from deferred_middleware import DeferredMiddleware, defer
import chores

class Counting:
    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        environ["app.seen"] = environ.get("app.seen", 0) + 1
        return self.app(environ, start_response)

def pages(environ, start_response):
    _, verb, what, argument = environ["PATH_INFO"].split("/")
    try:
        if verb == "thread":
            thread = threading.Thread(target=defer, args=(getattr(chores, what), argument))
            thread.start()
            thread.join()
        elif verb == "transaction":
            def transaction():
                defer(chores.look, "transaction", _transactional=True)
                if what == "fail":
                    raise ndb.Rollback
            ndb.transaction(transaction)
        elif verb == "queue":
            defer(getattr(chores, what), argument, _queue="nope")
        else:
            retry = {"min_backoff_seconds": 0.01, "max_backoff_seconds": 0.05}
            defer(getattr(chores, what), argument, _retry_options=retry)
        status, answer = "200 OK", b"ok"
    except Exception as error:
        status, answer = "500 Oops", f"{type(error).__mro__} {error}".encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]

app = wrap_wsgi_app(Counting(DeferredMiddleware(pages)))
"""
)

CHORES = (
    TELL
    + """
import asyncio
from google.appengine.api import taskqueue
from google.appengine.ext import ndb
from deferred_middleware import PermanentTaskFailure, SingularTaskFailure, current_task

def look(argument):
    task = current_task()
    tell(
        argument=argument,
        service=os.environ["GAE_SERVICE"],
        middleware=task.environ["app.seen"],
        label=task.label,
        attempt=task.attempt,
        queue=task.queue,
        path=task.request.path,
        previous=task.previous_response,
    )

async def look_later(argument):
    await asyncio.sleep(0.01)
    look(argument)

class Note(ndb.Model):
    text = ndb.StringProperty()

@ndb.tasklet
def tasklet(argument):
    key = yield Note(text=argument).put_async()
    note = yield key.get_async()
    look(note.text)

class Mailer:
    def __send(self, argument):
        look(argument)

    send = __send

mailer = Mailer().send

def third_time(argument):
    look(argument)
    if current_task().attempt < 3:
        raise ValueError(argument)

def not_yet(argument):
    look(argument)
    if current_task().attempt < 2:
        raise SingularTaskFailure(argument)

def never(argument):
    look(argument)
    raise PermanentTaskFailure(argument)

def leaves(argument):
    look(argument)
    if current_task().attempt < 2:
        raise SystemExit(3)

def chain(argument):
    from deferred_middleware import defer
    look(argument)
    if argument != "stop":
        defer(chain, "stop")
"""
)


@pytest.fixture
def server(serve: Serve) -> Server:
    """Run the app above as two services; the default one defers to the background one."""
    return serve(
        {"main.py": MAIN, "chores.py": CHORES},
        services=["default", "background"],
        environ={"DEFERRED_BACKGROUND_MODULE": "background"},
    )


def test_a_call_runs_in_the_background_inside_the_middlewares(server: Server, recorder: Recorder) -> None:
    """The call runs once, in the background service, and the app's own middleware sees its request."""
    server.post("/defer/look/hello", None)

    assert recorder.next() == {
        "argument": "hello",
        "service": "background",
        "middleware": 1,
        "label": "chores/look",
        "attempt": 1,
        "queue": "default",
        "path": "/_cb/deferred/chores/look",
        "previous": None,
    }
    assert recorder.is_silent(0.5)


@pytest.mark.parametrize("what", ["look_later", "tasklet", "mailer"])
def test_calls_of_every_kind_run(server: Server, recorder: Recorder, what: str) -> None:
    """A coroutine, a tasklet and a private method run to their end."""
    server.post(f"/defer/{what}/hello", None)

    assert recorder.next()["argument"] == "hello"


def test_a_thread_of_a_request_can_defer(server: Server, recorder: Recorder) -> None:
    """A thread that a request starts can defer, although ``wrap_wsgi_app`` has replaced ``os.environ``."""
    server.post("/thread/look/hello", None)

    if sys.version_info < (3, 13):
        assert recorder.next()["service"] == "background"
    else:
        # On these Pythons the SDK's hook into threading has no effect (runtime/thread_hooks.py), and the log says so.
        server.wait_for_output("was not enqueued to queue 'default': its target")


def test_a_task_that_defers_stays_in_its_service(server: Server, recorder: Recorder) -> None:
    """If a task of the background service defers a call, the call runs there too."""
    server.post("/defer/chain/start", None)

    assert [recorder.next()["service"] for _ in range(2)] == ["background", "background"]


@pytest.mark.parametrize(
    ("what", "attempts", "previous", "logged"),
    [
        ("third_time", [1, 2, 3], [None, 500, 500], 1),
        ("leaves", [1, 2], [None, 500], 1),
        ("not_yet", [1, 2], [None, 408], 0),
        ("never", [1], [None], 1),
    ],
)
def test_a_failure_is_what_it_says(
    server: Server, recorder: Recorder, what: str, attempts: list[int], previous: list[int | None], logged: int
) -> None:
    """An error is logged and retried, SingularTaskFailure retried quietly, PermanentTaskFailure logged and dropped."""
    server.post(f"/defer/{what}/hello", None)

    seen = [recorder.next() for _ in attempts]
    assert recorder.is_silent(0.5)
    assert [task["attempt"] for task in seen] == attempts
    assert [task["previous"] for task in seen] == previous
    assert server.output.count("ERROR deferred_middleware: task ") == logged
    assert server.output.count("Traceback") == logged


def test_a_transaction_decides_about_its_call(server: Server, recorder: Recorder) -> None:
    """A call deferred in a transaction runs if the transaction commits, and does not run if it is rolled back."""
    server.post("/transaction/fail/x", None)
    assert recorder.is_silent(0.5)

    server.post("/transaction/commit/x", None)
    assert recorder.next()["argument"] == "transaction"


def test_an_unknown_queue_is_the_callers_error(server: Server) -> None:
    """If the queue is unknown, nothing is enqueued; the error, of the SDK's class and ours, names the queue."""
    host, _, port = server.services["default"].removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
    connection.request("POST", "/queue/look/x")
    text = connection.getresponse().read().decode()
    connection.close()

    assert "taskqueue.UnknownQueueError" in text
    assert "chores/look was not enqueued to queue 'nope': the queue does not exist." in text


def test_a_call_that_this_version_lacks_waits_for_one_that_has_it(serve: Serve, recorder: Recorder) -> None:
    """If this version lacks a task's function, the task is retried until a version that has the function runs it."""
    added = "\ndef added(argument):\n    look(argument)\n"
    fails = "\ndef added(argument):\n    raise ValueError('not yet')\n"
    server = serve({"main.py": MAIN, "chores.py": CHORES + fails})
    server.post("/defer/added/hello", None)
    server.wait_for_output("ValueError: not yet")

    deploy(server, CHORES)
    server.wait_for_output("CallableNotFoundError: this version of the app lacks something that the task needs")
    assert recorder.is_silent(0)
    deploy(server, CHORES + added)

    assert recorder.next()["argument"] == "hello"


def deploy(server: Server, chores: str) -> None:
    """Restart the app with another version of its module ``chores``."""
    server.stop()
    (server.directory / "chores.py").write_text(chores)
    server.start()


def test_a_wrong_setting_stops_the_start(make_server: Serve) -> None:
    """If a variable has a wrong value, the start fails with one sentence that names it, and leaves no process."""
    server = make_server({"main.py": MAIN, "chores.py": CHORES}, environ={"DEFERRED_LOG_LEVEL": "LOUD"})
    server.launch()

    assert server.wait() == 1
    # On Python 3.10, one of Google's libraries prints a warning about the Python version first.
    assert "DEFERRED_LOG_LEVEL='LOUD' can't be used: it takes one of DEBUG, INFO," in server.output.splitlines()[-1]
    assert "Traceback" not in server.output
    assert server.processes() == []


def test_a_stranger_can_not_run_a_pickle(server: Server, recorder: Recorder) -> None:
    """A request from outside is refused, even if it has every header of a task."""
    import pickle

    host, _, port = server.services["background"].removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
    headers = {
        "X-AppEngine-QueueName": "default",
        "X-AppEngine-TaskName": "task1",
        "X-Appengine-User-IP": "0.1.0.2",
        "User-Agent": "AppEngine-Google; (+http://code.google.com/appengine)",
    }
    connection.request("POST", "/_cb/deferred/builtins/print", pickle.dumps((print, ("run!",), {})), headers)
    status = connection.getresponse().status
    connection.close()

    assert status == 403
    assert "run!" not in server.output


def test_the_readmes_example_runs(serve: Serve) -> None:
    """The README's first example works as the README says: it welcomes each user who signs up."""
    readme = (ROOT / "README.rst").read_text()
    found = re.search(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", readme)
    assert found
    assert "deferred-middleware serve main:app" in readme
    server = serve(inspect.cleandoc(found.group(1)))

    host, _, port = server.services["default"].removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
    connection.request("POST", "/signup/ann")
    assert connection.getresponse().status == 202
    connection.close()

    server.wait_for_output("welcome to main ann")


def test_the_wheel_has_what_the_package_needs(tmp_path: Path) -> None:
    """A built wheel holds every module, the store's schema and the marker for type checkers."""
    import subprocess

    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())

    package = ROOT / "deferred_middleware"
    wanted = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
    assert wanted | {"deferred_middleware/py.typed", "deferred_middleware/server/store/schema.sql"} <= names
    assert not any(name.startswith(("tests", "examples")) for name in names)
