"""A process is killed around the commit of a transaction with a task: the entity is there if and only if the task ran.

The tasks go to Cloud Tasks, by App Engine targets with the SDK's ndb, and by URLs with google-cloud-ndb.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.cloud_datastore import CloudDatastore
from tests.support.elsewhere import free_port
from tests.support.engines.apps import APP_URL, PARENT, PROJECT, QUEUES, REGION, SECRET_KEY, http_environ_for
from tests.support.engines.cloudtasks import CloudTasks
from tests.support.repository import ROOT
from tests.support.running import WAIT_SECONDS, Recorder, Serve

SOAK = bool(os.environ.get("DEFERRED_SOAK"))
KILLS = 1_000 if SOAK else 60
BOUND_SECONDS = 90.0
# By default, a task that was left behind waits for a minute.
SWEEPS = {} if SOAK else {"DEFERRED_SWEEP_SECONDS": "3"}
POINTS = ("put", "commit", "dispatch")

EMPTY_APP = """
from google.appengine.api import wrap_wsgi_app

def pages(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []

app = wrap_wsgi_app(pages)
"""


class Mortal:
    """The app that kills itself, and the Cloud Tasks that delivers its tasks."""

    def __init__(self, address: str, cloud: CloudTasks, recorder: Recorder) -> None:
        self.address = address
        self.cloud = cloud
        self._recorder = recorder
        self.ran: Counter[str] = Counter()

    def ask(self, path: str) -> bytes | None:
        """Make a request; return None if the process was killed meanwhile."""
        connection = http.client.HTTPConnection(self.address, timeout=WAIT_SECONDS)
        try:
            connection.request("POST", path, b"")
            return connection.getresponse().read()
        except (http.client.HTTPException, ConnectionError):
            return None
        finally:
            connection.close()

    def exists(self, mark: str) -> bool:
        """Tell whether the entity exists."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (answer := self.ask(f"/exists/{mark}")) is None:
            assert time.monotonic() < deadline
        return answer == b"yes"

    def listen(self, seconds: float) -> None:
        """Count the tasks that run, until none has run for some seconds."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.ran[self._recorder.next(seconds)["ran"]] += 1

    def created(self) -> Counter[str]:
        """Return how often each transactional task was created."""
        names = [request.task.name for kind, request in self.cloud.calls if kind == "create_task"]
        return Counter(name for name in names if "/tx-" in name)


@contextlib.contextmanager
def _process(log: Path, environ: dict[str, str], shell: str = "") -> Iterator[str]:
    """Run the app that kills itself; yield its address."""
    command = f"{shell}exec {shlex.join([sys.executable, '-m', 'tests.support.killing.transactions', '0'])}"
    with log.open("wb") as written:
        process = subprocess.Popen(
            ["sh", "-c", command],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=written,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], WAIT_SECONDS)[0]
        yield f"127.0.0.1:{process.stdout.readline().strip().decode()}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(params=["app-engine", "url"])
def mortal(request: pytest.FixtureRequest, recorder: Recorder, serve: Serve, tmp_path: Path) -> Iterator[Mortal]:
    """Run the app on Cloud Tasks: with App Engine targets and the SDK, and with URLs and without the SDK."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "RECORDER": recorder.path, **SWEEPS}
    parent = PARENT if request.param == "url" else PARENT.replace(PROJECT, "local-app")
    with CloudTasks(parent, QUEUES) as cloud, CloudDatastore() as datastore:
        if request.param == "url":
            with _process(tmp_path / "log", {**own, **http_environ_for(cloud.address, datastore)}) as address:
                cloud.hosts[APP_URL] = address
                yield Mortal(address, cloud, recorder)
            return
        # The local server is there for its datastore.
        server = serve(EMPTY_APP, services=["default", f"mortal=http://127.0.0.1:{free_port()}"])
        environ_file = json.loads(server.ready_file.read_text())["environ_files"]["mortal"]
        engine = {
            "DEFERRED_ENGINE": "cloud-tasks",
            "CLOUD_TASKS_EMULATOR_HOST": cloud.address,
            "LOCATION_ID": REGION,
            "DEFERRED_SECRET_KEYS": SECRET_KEY,
        }
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in engine.items())
        with _process(
            tmp_path / "log",
            own,
            f". {shlex.quote(environ_file)}; {exports} export GOOGLE_CLOUD_PROJECT=$GAE_APPLICATION; ",
        ) as address:
            cloud.app_port = int(address.rpartition(":")[2])
            yield Mortal(address, cloud, recorder)


def test_the_entity_is_there_if_and_only_if_the_task_ran(mortal: Mortal) -> None:
    """The process is killed between put and commit, commit and dispatch, and dispatch and delete, many times."""
    marks = {f"{POINTS[number % 3]}-{number}": POINTS[number % 3] for number in range(KILLS)}
    for mark, point in marks.items():
        assert mortal.ask(f"/work/{mark}/{point}") is None
        mortal.listen(0.0001)
    last_kill = time.monotonic()

    committed = {mark for mark in marks if mortal.exists(mark)}
    assert committed == {mark for mark, point in marks.items() if point != "put"}
    while not committed <= set(mortal.ran):
        assert time.monotonic() < last_kill + BOUND_SECONDS, sorted(committed - set(mortal.ran))[:5]
        mortal.listen(1.0)
    mortal.listen(2.0)

    assert set(mortal.ran) == committed
    # Those that were dispatched twice have the same name, so Cloud Tasks has each once. A task may run twice all the
    # same, if the process is killed while it answers.
    assert len(mortal.created()) == len(committed)


CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
)


def test_what_cloud_tasks_refuses_at_the_commit_runs_later(mortal: Mortal) -> None:
    """If Cloud Tasks is away, denies the permission or doesn't know the queue at the commit, the task runs later."""
    codes = {f"mark-{code.name}": code for code in CODES}
    is_over = False

    def refuse(task: object) -> grpc.StatusCode | None:
        found = [code for mark, code in codes.items() if mark.encode() in _body_of(task)]
        return found[0] if found and not is_over else None

    mortal.cloud.refuse = refuse
    for mark in codes:
        assert mortal.ask(f"/work/{mark}/none") == b"done"
        assert mortal.exists(mark)
    mortal.listen(1.0)
    assert not mortal.ran

    is_over = True
    over = time.monotonic()
    while set(mortal.ran) < set(codes):
        assert time.monotonic() < over + BOUND_SECONDS
        mortal.listen(1.0)
        assert mortal.exists(next(iter(codes)))  # a request
    assert set(mortal.ran.values()) == {1}


def _body_of(task: object) -> bytes:
    return bytes(task.http_request.body) + bytes(task.app_engine_http_request.body)  # type: ignore[attr-defined]
