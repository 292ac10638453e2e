"""A rolling deployment: a load balancer in front of two app versions, each with a function that the other lacks."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.elsewhere import Gunicorn, free_port
from tests.support.running import TELL, WAIT_SECONDS, Recorder, Serve, Server

MAIN = """
import json
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer
import work

def handle(environ, start_response):
    if environ["PATH_INFO"] == "/defer":
        name, numbers = json.loads(environ["wsgi.input"].read())
        for number in numbers:
            defer(getattr(work, name), number)
    start_response("200 OK", [])
    return [b""]

app = wrap_wsgi_app(DeferredMiddleware(handle))
"""
WORK = (
    TELL
    + """
def shared(number):
    tell(function="shared", number=number, version="{version}")

def only_{version}(number):
    tell(function="only_{version}", number=number, version="{version}")
"""
)
QUEUE_YAML = """
queue:
- name: default
  rate: 500/s
  bucket_size: 100
  retry_parameters: {min_backoff_seconds: 0.05, max_backoff_seconds: 0.2}
"""
EACH = 15


class Balancer:
    """Connects each client to a random backend, as the front end of a service with several instances does.

    It isn't round-robin: two tasks that are retried at the same pace could each reach the same backend every time.
    """

    def __init__(self) -> None:
        self.backends: Sequence[int] = ()
        """The ports of the backends. They may be changed at any time."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type] # one of the methods here
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        # Closing the socket ends the wait.
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client:
            backends = self.backends
            if not backends:
                return
            with socket.create_connection(("127.0.0.1", random.choice(backends))) as backend:
                back = threading.Thread(target=_pump, args=(backend, client))
                back.start()
                _pump(client, backend)
                back.join()

    def close(self) -> None:
        """Accept no more connections, and wait until the open ones have ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    # If one side closes, the connection ends and the other side is closed too.
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class Deployment:
    """The service, its two versions, and the current state of the deployment."""

    def __init__(self, server: Server, balancer: Balancer, recorder: Recorder) -> None:
        self.server = server
        self._balancer = balancer
        self._recorder = recorder
        self.versions: dict[str, Gunicorn] = {}
        for version in ("old", "new"):
            directory = server.directory / version
            directory.mkdir()
            (directory / "main.py").write_text(MAIN)
            (directory / "work.py").write_text(WORK.replace("{version}", version))
            self.versions[version] = Gunicorn(
                # Each request has its own connection, so that the balancer chooses again.
                server, "default", free_port(), recorder, directory=directory, arguments=["--keep-alive=0"]
            )  # fmt: skip
        for gunicorn in self.versions.values():
            gunicorn.request("GET", "/")

    def serve_by(self, *versions: str) -> None:
        """Route the traffic to these versions."""
        self._balancer.backends = [self.versions[version].port for version in versions]

    def defer(self, version: str, function: str, first: int) -> None:
        """Let a version defer its own function :data:`EACH` times, with numbers from ``first`` on."""
        numbers = list(range(first, first + EACH))
        assert self.versions[version].request("POST", "/defer", [function, numbers])[0] == 200

    def ran(self, count: int) -> Counter[tuple[str, int, str]]:
        """Return the next ``count`` runs as (function, number, version that ran it)."""
        told = [self._recorder.next() for _ in range(count)]
        return Counter((one["function"], one["number"], one["version"]) for one in told)

    def waiting(self) -> list[dict[str, object]]:
        """Return the unfinished tasks."""
        found: list[dict[str, object]] = json.loads(self.server.command("tasks", "--json").stdout)["tasks"]
        return [task for task in found if task["state"] != "succeeded"]

    def wait_until_done(self) -> None:
        """Wait until no task is left."""
        deadline = time.monotonic() + WAIT_SECONDS
        while waiting := self.waiting():
            assert time.monotonic() < deadline, waiting

    def wait_until_tried(self, times: int) -> list[dict[str, object]]:
        """Wait until each unfinished task has had ``times`` attempts; return these tasks."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            waiting = self.waiting()
            if all(int(str(task["retry_count"])) >= times for task in waiting):
                return waiting
            assert time.monotonic() < deadline, waiting


@pytest.fixture
def deployment(serve: Serve, recorder: Recorder) -> Iterator[Deployment]:
    """Set up a deployment in which the old version still has all the traffic."""
    balancer = Balancer()
    server = serve({"queue.yaml": QUEUE_YAML}, apps=[], services=[f"default=http://127.0.0.1:{balancer.port}"])
    deployment = Deployment(server, balancer, recorder)
    deployment.serve_by("old")
    yield deployment
    server.stop()
    for gunicorn in deployment.versions.values():
        gunicorn.stop()
    balancer.close()


def test_every_task_runs_where_it_can(deployment: Deployment) -> None:
    """While both versions have traffic, each task runs once, on a version that has its function."""
    deployment.serve_by("old", "new")
    # The test must read the recorder while it defers, because a task blocks until its note is read.
    with ThreadPoolExecutor() as pool:
        deferring = [
            pool.submit(deployment.defer, version, function, first)
            for version, function, first in [
                ("old", "only_old", 100),
                ("old", "shared", 100),
                ("new", "only_new", 100),
                ("new", "shared", 200),
            ]
        ]
        ran = deployment.ran(4 * EACH)
        for one in deferring:
            one.result()

    assert set(ran.values()) == {1}
    own = {(function, number, version) for function, number, version in ran if function != "shared"}
    assert own == {(f"only_{version}", 100 + i, version) for version in ("old", "new") for i in range(EACH)}
    shared = {(number, version) for function, number, version in ran if function == "shared"}
    assert {number for number, _ in shared} == {100 + i for i in range(EACH)} | {200 + i for i in range(EACH)}
    assert {version for _, version in shared} == {"old", "new"}
    deployment.wait_until_done()
    # Some tasks did reach the version that lacks their function.
    for version, other in (("old", "new"), ("new", "old")):
        assert f"this version of the app lacks something that the task needs: Can't get attribute 'only_{other}'" in (
            deployment.versions[version].output
        )


def test_a_task_waits_for_a_version_that_knows_it(deployment: Deployment) -> None:
    """The new version's tasks wait while only the old one serves, and the old version's wait after the deployment."""
    deployment.defer("new", "only_new", 0)
    assert len(deployment.wait_until_tried(2)) == EACH

    deployment.serve_by("new")
    assert deployment.ran(EACH) == {("only_new", i, "new"): 1 for i in range(EACH)}

    deployment.defer("old", "only_old", 0)
    assert len(deployment.wait_until_tried(2)) == EACH

    deployment.serve_by("old")  # rolled back
    assert deployment.ran(EACH) == {("only_old", i, "old"): 1 for i in range(EACH)}
    deployment.wait_until_done()
