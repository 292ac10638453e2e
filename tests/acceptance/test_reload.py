"""``deferred-middleware serve --reload``: the app's code changes while tasks run and wait."""

from __future__ import annotations

import http.client
import json
import signal
from pathlib import Path

import pytest

from tests.support.running import TELL, WAIT_SECONDS, Recorder, Serve, Server

APP = (
    TELL
    + """
import threading
from google.appengine.api import taskqueue, wrap_wsgi_app
from version import VERSION

def handle(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/add":
        taskqueue.add(**json.loads(environ["wsgi.input"].read()))
    elif path.startswith("/tasks/"):
        headers = {k: v for k, v in environ.items() if k.startswith("HTTP_X_APPENGINE_TASK")}
        tell(version=VERSION, pid=os.getpid(), headers=headers, service=os.environ["GAE_SERVICE"])
        if path == "/tasks/hang" and VERSION == "old":
            threading.Event().wait()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [VERSION.encode()]

app = wrap_wsgi_app(handle)
"""
)
OLD = "VERSION = 'old'\n"
NEWER = "VERSION = 'newer'\n"
ONE = {"main.py": APP, "version.py": OLD}
# The test can break the worker's code while the other service still enqueues.
TWO = {
    "web/app.yaml": "runtime: python312\n",
    "web/main.py": APP,
    "web/version.py": OLD,
    "worker/app.yaml": "runtime: python312\nservice: worker\n",
    "worker/main.py": APP,
    "worker/version.py": OLD,
}
RELOAD = ["--reload"]


def edit(server: Server, name: str, text: str, *, until: str) -> None:
    """Write a file of the app, and wait until the server prints the outcome."""
    before = server.output.count(until)
    (server.directory / name).write_text(text)
    server.wait_for_output(until, times=before + 1)


def ask(server: Server, service: str, accept: str) -> tuple[int, str]:
    """Return the status and the body of a service's answer."""
    connection = http.client.HTTPConnection(server.services[service].removeprefix("http://"), timeout=WAIT_SECONDS)
    try:
        connection.request("GET", "/", headers={"Accept": accept})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def is_untouched(headers: dict[str, str]) -> bool:
    """Return whether the headers are those of a first attempt."""
    counts = (headers["HTTP_X_APPENGINE_TASKRETRYCOUNT"], headers["HTTP_X_APPENGINE_TASKEXECUTIONCOUNT"])
    return counts == ("0", "0") and not {"HTTP_X_APPENGINE_TASKPREVIOUSRESPONSE"} & headers.keys()


def test_an_edit_starts_the_app_again(serve: Serve, recorder: Recorder) -> None:
    """After an edit, each service that has the code serves requests and tasks with the new code in a new process."""
    server = serve(ONE, services=["default", "background"], arguments=RELOAD)
    assert server.get("/") == server.get("/", service="background") == "old"
    before = set(server.app_processes())
    (server.directory / "version.py").write_text(NEWER)
    for service in ("default", "background"):
        server.wait_for_output(f"Service {service!r} is started again, because of changes in version.py.")
        server.wait_for_output(f"Service {service!r} is running again.")
        assert server.get("/", service=service) == "newer"
        server.post("/add", {"url": "/tasks/work"}, service=service)
        assert recorder.next()["version"] == "newer"
    assert not before & set(server.app_processes())
    assert server.stop() == 0


def test_a_task_in_flight_is_not_lost_nor_charged(serve: Serve, recorder: Recorder) -> None:
    """If an edit interrupts a task, the task runs again without a counted attempt, even if it allows no retry."""
    queues = "queue:\n- name: once\n  retry_parameters:\n    task_retry_limit: 0\n"
    server = serve({**ONE, "queue.yaml": queues}, arguments=RELOAD)
    server.post("/add", {"url": "/tasks/hang", "queue_name": "once"})
    first = recorder.next()
    assert first["version"] == "old"
    edit(server, "version.py", NEWER, until="Service 'default' is running again.")
    again = recorder.next()
    assert (again["version"], again["pid"] == first["pid"]) == ("newer", False)
    assert is_untouched(again["headers"])
    assert recorder.is_silent(0.5)
    assert server.stop() == 0


def test_a_broken_edit_is_told_and_mended(serve: Serve, recorder: Recorder) -> None:
    """After a syntax error the server prints the traceback and tasks wait; once the error is fixed, they run."""
    server = serve(TWO, apps=["web/app.yaml", "worker/app.yaml"], arguments=RELOAD)
    edit(server, "worker/version.py", "VERSION = = 'broken'\n", until="It is started when its code changes again.")
    assert "SyntaxError: invalid syntax" in server.output
    for accept in ("text/html", "*/*"):
        status, page = ask(server, "worker", accept)
        assert (status, page.startswith("<!doctype html>")) == (500, accept == "text/html")
        assert "SyntaxError: invalid syntax" in page
    assert f'File "{server.directory / "worker" / "version.py"}", line 1' in server.output
    assert server.get("/") == "old"
    server.post("/add", {"url": "/tasks/work", "target": "worker"})
    assert recorder.is_silent(1.0)
    (task,) = json.loads(server.command("tasks", "--json").stdout)["tasks"]
    assert (task["state"], task["retry_count"]) == ("ready", 0)
    edit(server, "worker/version.py", NEWER, until="Service 'worker' is running again.")
    told = recorder.next()
    assert (told["version"], told["service"]) == ("newer", "worker")
    assert is_untouched(told["headers"])
    assert "Service 'default' is started again" not in server.output
    assert server.stop() == 0


def test_it_stops_while_an_app_is_broken(serve: Serve) -> None:
    """While an app is broken, Ctrl-C stops the server at once."""
    server = serve(ONE, arguments=RELOAD)
    edit(server, "version.py", "1 / 0\n", until="It is started when its code changes again.")
    assert "ZeroDivisionError" in server.output
    assert server.stop(signal.SIGINT) == 0


def test_without_reload_an_edit_changes_nothing(serve: Serve) -> None:
    """Without --reload, the server keeps serving the code that it loaded at the start."""
    server = serve(ONE)
    (pid,) = server.app_processes()
    (server.directory / "version.py").write_text(NEWER)
    (server.directory / "queue.yaml").write_text("queue:\n- name: mail\n")
    # The server does watch queue.yaml, so by now it would have noticed a change of the code too.
    server.wait_for_output("queue.yaml is read")
    assert server.get("/") == "old"
    assert server.app_processes() == [pid]


@pytest.mark.parametrize("name", ["new.py", "package/__init__.py"])
def test_a_module_that_was_missing_mends_the_app(serve: Serve, name: str) -> None:
    """If the code imports a module that doesn't exist yet, the app restarts when it appears, also in a new folder."""
    server = serve(ONE, arguments=RELOAD)
    module = Path(name).parts[0].removesuffix(".py")
    edit(server, "version.py", f"from {module} import VERSION\n", until="It is started when its code changes again.")
    (server.directory / name).parent.mkdir(exist_ok=True)
    edit(server, name, NEWER, until="Service 'default' is running again.")
    assert server.get("/") == "newer"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("templates/page.html", RELOAD), ("site.toml", [*RELOAD, "--reload-include=*.toml"])],
)
def test_a_template_is_code_too(serve: Serve, name: str, arguments: list[str]) -> None:
    """The app restarts when a template changes, or a file that --reload-include names."""
    source = APP.replace("from version import VERSION", f"VERSION = open({name!r}).read()")
    server = serve({"main.py": source, name: "old"}, arguments=arguments)
    assert server.get("/") == "old"
    edit(server, name, "newer", until="Service 'default' is running again.")
    assert server.get("/") == "newer"


def test_reload_include_needs_reload(make_server: Serve) -> None:
    """Without --reload, --reload-include is an error."""
    server = make_server(ONE, arguments=["--reload-include=*.toml"])
    server.launch()
    assert server.wait() == 1
    assert "--reload-include says which files --reload watches; add --reload." in server.output
