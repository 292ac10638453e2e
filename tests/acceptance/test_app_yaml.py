"""``deferred-middleware serve`` applies the settings in App Engine's ``app.yaml`` files to the app processes."""

from __future__ import annotations

import json

import pytest

from tests.support.running import TELL, Recorder, Serve

APP = (
    TELL
    + """
import sys
from google.appengine.api import taskqueue, wrap_wsgi_app
from kind import KIND

def handle(environ, start_response):
    if environ["PATH_INFO"] == "/add":
        taskqueue.add(**json.loads(environ["wsgi.input"].read()))
    elif environ["PATH_INFO"] == "/environ":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [json.dumps({**os.environ, "CWD": os.getcwd(), "KIND": KIND}).encode()]
    else:
        tell(service=os.environ["GAE_SERVICE"], kind=KIND, path=environ["PATH_INFO"], pid=os.getpid())
        if environ["PATH_INFO"] == "/ask":
            taskqueue.add(url="/answer", target="local.default")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b""]

app = wrap_wsgi_app(handle)
"""
)
# Two services in separate folders, whose modules have the same names.
FILES = {
    "web/app.yaml": "runtime: python312\nenv_variables:\n  COLOR: blue\n  GAE_SERVICE: mine\n  GREETING: hello\n",
    "web/main.py": APP,
    "web/kind.py": "KIND = 'web'\n",
    "web/queue.yaml": "queue:\n- name: mail\n",
    "worker/worker.yaml": "runtime: python312\nservice: background\nentrypoint: gunicorn -b :$PORT tasks:app\n"
    "instance_class: F4\n",
    "worker/tasks.py": APP,
    "worker/kind.py": "KIND = 'worker'\n",
}
APPS = ["web/app.yaml", "worker/worker.yaml"]


def test_two_files_are_two_services_that_exchange_tasks(serve: Serve, recorder: Recorder) -> None:
    """Each app.yaml becomes a service with its own process and modules, and a task runs in the service it names."""
    server = serve(FILES, apps=APPS)
    assert list(server.services) == ["default", "background"]
    server.post("/add", {"url": "/ask", "target": "local.background"})
    asked, answered = recorder.next(), recorder.next()
    assert (asked["service"], asked["kind"], asked["path"]) == ("background", "worker", "/ask")
    assert (answered["service"], answered["kind"], answered["path"]) == ("default", "web", "/answer")
    assert {asked["pid"], answered["pid"]} == set(server.app_processes())
    assert server.stop() == 0


def test_variables_and_folder_are_the_files(serve: Serve) -> None:
    """A service gets its file's variables and folder; the server's own variables override the file's."""
    server = serve(FILES, apps=APPS, environ={"GREETING": "from the shell"})
    web = json.loads(server.get("/environ"))
    worker = json.loads(server.get("/environ", service="background"))
    assert (web["COLOR"], web["GAE_SERVICE"], web["GREETING"]) == ("blue", "default", "hello")
    assert (worker.get("COLOR"), worker["GAE_SERVICE"], worker["GREETING"]) == (None, "background", "from the shell")
    assert (web["CWD"], worker["CWD"]) == (str(server.directory / "web"), str(server.directory / "worker"))
    assert "web/app.yaml sets GAE_SERVICE; the local server's own value is used instead." in server.output
    assert "worker/worker.yaml: not used by the local server: instance_class." in server.output
    assert "tasks:app (worker/worker.yaml)" in server.output


def test_the_queue_yaml_beside_the_default_services_file_holds(serve: Serve, recorder: Recorder) -> None:
    """Without --queue-yaml, the server uses the queue.yaml beside the default service's app.yaml."""
    server = serve(FILES, apps=["worker/worker.yaml", "web/app.yaml"])
    server.post("/add", {"url": "/work", "queue_name": "mail"})
    assert recorder.next()["path"] == "/work"
    assert json.loads(server.command("queues", "--json").stdout)["queues"][-1]["name"] == "mail"


def test_a_file_stands_beside_an_app(serve: Serve) -> None:
    """One command line can mix ``module:callable`` and app.yaml; the services keep its order."""
    simple = (
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [__name__.encode()]\n"
    )
    server = serve({**FILES, "simple.py": simple}, apps=["worker/worker.yaml", "simple:app"])
    assert list(server.services) == ["background", "default"]
    assert server.get("/") == "simple"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"app.yaml": "runtime: python312\nentrypoint: python main.py\n"},
            "deferred-middleware: app.yaml, line 2: the entrypoint 'python main.py' can't be served here",
        ),
        ({"app.yaml": "runtime: python312\n"}, "deferred-middleware: No module named 'main' in the current directory"),
        ({"app.yaml": "runtime: python312\nservice: web\n"}, "App Engine needs a service called 'default'"),
    ],
)
def test_a_file_that_can_not_be_served(make_server: Serve, files: dict[str, str], expected: str) -> None:
    """If an app.yaml can't be served, the server prints one sentence and exits with status 1."""
    server = make_server(files, apps=["app.yaml"])
    server.launch()
    assert server.wait() == 1
    assert expected in server.output
    assert "Traceback" not in server.output
