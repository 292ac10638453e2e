"""The API as a part of the server: when it is loaded, and what it answers besides."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.cloud_tasks.service import CloudTasksConfig, CloudTasksService
from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.config.virtual_clock import VirtualClock
from deferred_middleware.server.store.store import TaskStore
from tests.support.cloud_api import HOME, PARENT, QUEUE, Api
from tests.support.repository import ROOT
from tests.support.storing import Clock, new_task


class Running:
    """A service on its own port."""

    def __init__(self, store: TaskStore, folder: Path, **config: Any) -> None:
        self.registry = QueueRegistry([QueueConfig(name="mail")])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        given = {"home": HOME, "data_dir": folder, "issuer": "http://emulator:8123", **config}
        directory = ServiceDirectory([], needs_none=True)
        self.service = CloudTasksService(
            CloudTasksConfig(**given), self.listener, store, self.registry, directory, lambda: None, VirtualClock()
        )

    def ask(self, verb: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Make a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(verb, path, body, headers)
            response = connection.getresponse()
            content = response.read()
        return response.status, json.loads(content) if content else None

    def close(self) -> None:
        """Stop it."""
        self.service.stop()
        self.listener.close()


@pytest.fixture
def emulator(store: TaskStore, tmp_path: Path) -> Iterator[Running]:
    """Run an emulator."""
    running = Running(store, tmp_path, home=None, for_tests=True, queues=[QUEUE])
    running.service.load()
    running.service.start()
    yield running
    running.close()


def test_the_queues_of_the_command_line_are_made_once(store: TaskStore, emulator: Running, tmp_path: Path) -> None:
    """A queue that exists keeps what a client has changed."""
    patch = json.dumps({"rateLimits": {"maxDispatchesPerSecond": 7}}).encode()
    assert emulator.ask("PATCH", f"/v2/{QUEUE}", patch)[0] == 200
    again = Running(store, tmp_path, home=None, queues=[QUEUE])
    with contextlib.closing(again):
        again.service.load()
        assert again.registry["mail@europe-west1.my-project"].rate_per_second == 7


@pytest.mark.parametrize("name", ["mail", f"{PARENT}/queues/a_b"])
def test_a_queue_of_the_command_line_that_is_illegal(store: TaskStore, tmp_path: Path, name: str) -> None:
    """The error names the option."""
    running = Running(store, tmp_path, queues=[name])
    with contextlib.closing(running), pytest.raises(ServerError, match=f"--queue {name}: Queue"):
        running.service.load()


def test_saved_queues_are_there_before_the_first_client(store: TaskStore, clock: Clock, tmp_path: Path) -> None:
    """The scheduler needs the settings of queues that an earlier server saved."""
    Api(store, clock, home=HOME).make_queue(f"{PARENT}/queues/made", rateLimits={"maxDispatchesPerSecond": 7})
    running = Running(store, tmp_path)
    with contextlib.closing(running):
        running.service.load()
        assert running.registry["made"].rate_per_second == 7


def test_requests_for_tests(store: TaskStore, emulator: Running) -> None:
    """The port of an emulator answers them, by the queue's full name or the store's."""
    store.add([new_task(queue="mail@europe-west1.my-project")])
    body = json.dumps({"queue": QUEUE, "timeout_seconds": 0}).encode()
    assert emulator.ask("POST", "/emulator/v1/wait", body) == (200, {"empty": False, "tasks": 1})
    assert emulator.ask("GET", "/emulator/v1/clock")[1]["frozen"] is False
    assert emulator.ask("POST", "/emulator/v1/reset", b"{}") == (200, {"deleted": 1})
    assert emulator.ask("GET", f"/v2/{QUEUE}")[0] == 200
    for path, body, status in (
        ("wait", b"{", 400),
        ("wait", b"[]", 400),
        ("wait", b'{"queue": "nowhere"}', 400),
        ("wait", b'{"queue": "projects/x"}', 400),
        ("unknown", b"{}", 404),
        ("", b"{}", 404),
    ):
        assert emulator.ask("POST", f"/emulator/v1/{path}", body)[0] == status
    assert emulator.ask("GET", "/emulator/v1/reset")[0] == 400
    assert emulator.ask("POST", "/emulator/v1/reset", b"{}", Origin="http://evil")[0] == 403


def test_an_apps_server_has_no_requests_for_tests_on_this_port(store: TaskStore, tmp_path: Path) -> None:
    """There, only the admin server answers them, which asks for its token."""
    running = Running(store, tmp_path)
    running.service.start()
    with contextlib.closing(running):
        assert running.ask("POST", "/emulator/v1/reset", b"{}")[0] == 404
        assert running.ask("GET", "/oauth2/v3/certs")[0] == 200
        assert running.ask("GET", f"/v2/{PARENT}/queues/mail")[0] == 200


def test_the_certificates_are_served(emulator: Running) -> None:
    """The issuer is the one of the command line."""
    status, found = emulator.ask("GET", "/.well-known/openid-configuration")
    assert (status, found["issuer"]) == (200, "http://emulator:8123")
    assert emulator.ask("GET", "/oauth2/v1/certs")[0] == 200
    assert emulator.ask("POST", "/oauth2/v1/certs", b"{}")[0] == 404
    assert emulator.ask("GET", "/")[0] == 404


WITHOUT_PACKAGES = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("grpc", "cryptography") or name.startswith("google.cloud"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import http.client, logging, socket, tempfile
from pathlib import Path
from deferred_middleware.server.cloud_tasks.names import Home
from deferred_middleware.server.cloud_tasks.service import CloudTasksConfig, CloudTasksService
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.config.virtual_clock import VirtualClock
from deferred_middleware.server.store.store import TaskStore

logging.basicConfig()
with tempfile.TemporaryDirectory() as folder:
    store = TaskStore(Path(folder) / "tasks.sqlite")
    listener = socket.create_server(("127.0.0.1", 0))
    service = CloudTasksService(
        CloudTasksConfig(home=Home(project="p", location="l"), data_dir=Path(folder), issuer="http://x"),
        listener, store, QueueRegistry(), ServiceDirectory([], needs_none=True), lambda: None, VirtualClock())
    service.load()
    service.start()
    connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=30)
    connection.request("GET", "/v2/projects/p/locations")
    response = connection.getresponse()
    print(response.status, response.read().decode())
    connection.close()
    service.stop()
    listener.close()
    store.close()
"""


def test_without_its_packages_the_server_runs_all_the_same() -> None:
    """Only a client of this API hears what is missing."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("503 ")
    assert "pip install 'deferred_middleware[server]'" in done.stdout
    assert "The Cloud Tasks API can't be answered" in done.stderr
