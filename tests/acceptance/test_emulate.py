"""``deferred-middleware emulate`` as a person starts it, and the same API beside an app."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.auth.transport import requests as google_requests
from google.cloud import tasks_v2
from google.oauth2 import id_token

from tests.support.cloud_clients import RefusedCallError, client, python_client
from tests.support.emulator import PARENT, Emulator
from tests.support.http_target import HttpTarget, Reply
from tests.support.repository import ROOT
from tests.support.running import Serve

QUEUE = f"{PARENT}/queues/mail"


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    """Prepare an emulator with a queue."""
    emulator = Emulator(tmp_path, f"--queue={QUEUE}")
    yield emulator
    emulator.discard()


@pytest.fixture
def target() -> Iterator[HttpTarget]:
    """Run an HTTP target."""
    with HttpTarget() as target:
        yield target


def test_a_task_in_a_week(emulator: Emulator, target: HttpTarget) -> None:
    """A test lets a week pass at once, waits for the task, and starts over."""
    emulator.start()
    with client("python-grpc", emulator.cloud_tasks) as call:
        emulator.control("clock", {"frozen": True})
        now = emulator.control("clock")["now_seconds"]
        schedule = {"scheduleTime": f"{_rfc3339(now + 7 * 86_400)}"}
        task = {"name": f"{QUEUE}/tasks/one", "httpRequest": {"url": target.url}, **schedule}
        call("CreateTask", {"parent": QUEUE, "task": task})
        assert emulator.control("wait", {"timeout_seconds": 0.2}) == {"empty": False, "tasks": 1}
        assert emulator.control("wait", {"due_only": True}) == {"empty": True, "tasks": 0}
        emulator.control("clock", {"advance_seconds": 7 * 86_400 - 1})
        assert emulator.control("wait", {"timeout_seconds": 0.2})["tasks"] == 1
        emulator.control("clock", {"advance_seconds": 2})
        assert emulator.control("wait", {"queue": QUEUE}) == {"empty": True, "tasks": 0}
        assert len(target.seen) == 1
        with pytest.raises(RefusedCallError, match="existed too recently"):
            call("CreateTask", {"parent": QUEUE, "task": task})
        assert emulator.control("reset") == {"deleted": 1}
        call("CreateTask", {"parent": QUEUE, "task": {**task, "scheduleTime": _rfc3339(now)}})
        assert emulator.control("wait")["empty"]
    assert emulator.stop() == 0


def _rfc3339(seconds: float) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat()


def test_a_frozen_clock_holds_retries_back(emulator: Emulator, target: HttpTarget) -> None:
    """A retry comes when a test says so."""
    target.answer = lambda seen: Reply(status=500 if len(target.seen) == 1 else 200)
    emulator.start()
    emulator.control("clock", {"frozen": True})
    with client("python-grpc", emulator.cloud_tasks) as call:
        call("CreateTask", {"parent": QUEUE, "task": {"httpRequest": {"url": target.url}}})
        target.wait_for(1)
        assert emulator.control("wait", {"timeout_seconds": 0.3})["tasks"] == 1
        emulator.control("clock", {"advance_seconds": 1})
        target.wait_for(2)
        assert emulator.control("wait")["empty"]
    assert emulator.stop() == 0


def test_a_token_is_verified_by_googles_library(emulator: Emulator, target: HttpTarget) -> None:
    """A service verifies the token of a task with the certificates of the emulator."""
    emulator.start()
    with client("python-grpc", emulator.cloud_tasks) as call:
        token = {"serviceAccountEmail": "me@example.com", "audience": "https://my-service"}
        call("CreateTask", {"parent": QUEUE, "task": {"httpRequest": {"url": target.url, "oidcToken": token}}})
    (seen,) = target.wait_for(1)
    claims = id_token.verify_token(
        seen.headers["authorization"].removeprefix("Bearer "),
        google_requests.Request(),
        "https://my-service",
        certs_url=f"http://{emulator.cloud_tasks}/oauth2/v1/certs",
    )
    assert (claims["email"], claims["iss"]) == ("me@example.com", f"http://{emulator.cloud_tasks}")
    assert stat.S_IMODE((emulator.data_dir / "oidc.key").stat().st_mode) == 0o600
    assert emulator.stop() == 0


def test_the_commands(emulator: Emulator, target: HttpTarget) -> None:
    """The commands for people work with an emulator."""
    emulator.start()
    with client("python-grpc", emulator.cloud_tasks) as call:
        call("PauseQueue", {"name": QUEUE})
        call("CreateTask", {"parent": QUEUE, "task": {"httpRequest": {"url": target.url}}})
    name = "mail@europe-west1.my-project"
    listed = json.loads(emulator.command("queues", "--json").stdout)["queues"]
    assert {queue["name"]: queue["ready"] for queue in listed}[name] == 1
    assert emulator.command("resume", name).returncode == 0
    assert emulator.command("drain", "--timeout", "30").returncode == 0
    assert len(target.seen) == 1
    assert "succeeded" in emulator.command("tasks").stdout
    assert "It is 20" in emulator.command("clock").stdout
    moved = emulator.command("clock", "--advance", "3600", "--freeze")
    assert "3,600 s ahead of this machine; it stands still." in moved.stdout
    assert json.loads(emulator.command("clock", "--run", "--json").stdout)["frozen"] is False
    assert emulator.command("reset").returncode == 2
    assert emulator.command("reset", "--yes").stdout == "1 task deleted.\n"
    assert emulator.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queue=mail"], "--queue mail: Queue name must be formatted"),
        (["--service=default"], "--service default needs a URL"),
        (["--oidc-issuer=emulator"], "--oidc-issuer emulator: give a URL"),
        (["--service=default=http://example.com"], "tasks would leave this machine"),
    ],
)
def test_arguments_that_are_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    """The error is one sentence, and nothing is left behind."""
    done = subprocess.run(
        [sys.executable, "-m", "deferred_middleware", "emulate", "--port=0", "--admin-port=0", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


APP = """
import os

def app(environ, start_response):
    if "HTTP_X_APPENGINE_TASKNAME" in environ:
        with open(os.environ["RUNS"], "a") as runs:
            runs.write(f"{environ['GAE_SERVICE'] if 'GAE_SERVICE' in environ else os.environ['GAE_SERVICE']} "
                       f"{environ['HTTP_X_APPENGINE_QUEUENAME']} {environ['PATH_INFO']}\\n")
        body = b"done"
    else:
        body = f"{os.environ['CLOUD_TASKS_EMULATOR_HOST']} {os.environ['LOCAL_GCP_REGION']}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
QUEUE_YAML = "queue:\n- name: mail\n  rate: 50/s\n"


def test_beside_an_app(tmp_path: Path, make_server: Serve) -> None:
    """A client creates tasks for the services of ``serve``, in the queues of queue.yaml."""
    runs = tmp_path / "runs"
    runs.touch()
    server = make_server(
        {"main.py": APP, "queue.yaml": QUEUE_YAML},
        services=["default", "worker"],
        environ={"RUNS": str(runs), "LOCATION_ID": "europe-west1", "GOOGLE_CLOUD_PROJECT": "my-project"},
    ).start()
    assert server.get("/") == f"{server.cloud_tasks} europe-west1"
    with client("python-grpc", server.cloud_tasks) as call:
        shown = call("GetQueue", {"name": QUEUE})
        assert shown["rateLimits"]["maxDispatchesPerSecond"] == 50
        for service in ("default", "worker"):
            request = {"relativeUri": f"/{service}", "appEngineRouting": {"service": service}}
            call("CreateTask", {"parent": QUEUE, "task": {"appEngineHttpRequest": request}})
        call("UpdateQueue", {"queue": {"name": QUEUE, "rateLimits": {"maxDispatchesPerSecond": 7}}})
    drained = server.command("drain", "--timeout=50")
    assert drained.returncode == 0, drained.stdout + drained.stderr
    assert sorted(runs.read_text().splitlines()) == ["default mail /default", "worker mail /worker"]
    assert json.loads((server.data_dir / "server.json").read_text())["cloud_tasks"] == server.cloud_tasks
    assert server.stop() == 0
    server.start()
    with client("python-rest", server.cloud_tasks) as call:
        assert call("GetQueue", {"name": QUEUE})["rateLimits"]["maxDispatchesPerSecond"] == 7
    assert server.stop() == 0


UNSIGNED = """
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware

def ran():
    raise SystemExit("an unsigned call ran")

def page(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]

app = wrap_wsgi_app(DeferredMiddleware(page))
"""


def test_an_unsigned_call_of_a_stranger_does_not_run(make_server: Serve) -> None:
    """Whoever reaches the port can create a task, but no deferred call: the server doesn't vouch for it."""
    import pickle

    server = make_server({"main.py": UNSIGNED}, environ={"GOOGLE_CLOUD_PROJECT": "p", "LOCATION_ID": "us-central1"})
    server.start()
    queue = "projects/p/locations/us-central1/queues/default"
    body = pickle.dumps((print, ("hello",), {}))
    with python_client(server.cloud_tasks) as calls:
        for uri in ("/_cb/deferred/main/ran", "/_cb/deferred/builtins/print"):
            request = tasks_v2.AppEngineHttpRequest(relative_uri=uri, body=body)
            once = tasks_v2.RetryConfig(max_attempts=1)
            calls.create_task(parent=queue, task=tasks_v2.Task(app_engine_http_request=request, retry_config=once))
    # 5: they failed while the command waited.
    assert server.command("drain", "--timeout=50").returncode in (0, 5)
    tasks = json.loads(server.command("tasks", "--json").stdout)["tasks"]
    assert {(task["state"], task["previous_response"]) for task in tasks} == {("failed", 403)}
    assert server.stop() == 0
