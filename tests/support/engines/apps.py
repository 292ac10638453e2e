"""Runs the app of :mod:`tests.support.engines.app` on one of the engines."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.cloud_datastore import CloudDatastore
from tests.support.engines.cannot import ABILITIES
from tests.support.engines.cloudtasks import CloudTasks
from tests.support.repository import QUEUE_YAML_FOLDER, ROOT
from tests.support.running import WAIT_SECONDS, Recorder, Server, await_end

ENGINES = ("local", "stub", "cloudtasks", "http")
FAULTY = ("cloudtasks-faults", "http-faults")
"""Engines whose server fails every other call that creates tasks."""
APP_URL = "https://shop-123456.europe-west1.run.app"
ACCOUNT = "tasks@engines.iam.gserviceaccount.com"
QUEUES = ("default", "quick", "slow")
PROJECT, REGION = "engines", "europe-west1"
PARENT = f"projects/{PROJECT}/locations/{REGION}"
SECRET_KEY = "engines: a key that is long enough to sign with"


class App:
    """A client of the running app."""

    def __init__(self, engine: str, address: str, recorder: Recorder, cloud: CloudTasks | None = None) -> None:
        self.engine = engine.removesuffix("-faults")
        self.is_faulty = engine in FAULTY
        self.address = address
        self.recorder = recorder
        self._cloud = cloud

    def can(self, ability: str) -> bool:
        """Tell whether the engine has an ability; see :mod:`tests.support.engines.cannot`."""
        return self.engine not in ABILITIES[ability].cannot

    def large(self, size: int = 200_000) -> int:
        """Return ``size``, or a larger one if a task of the engine has room for a payload of ``size``."""
        return size * 6 if self.engine == "http" and 100_000 < size < 1_000_000 else size

    def header(self, name: str) -> str:
        """Return the key in ``environ`` of one of the platform's headers of a task."""
        return f"HTTP_X_{'CLOUDTASKS' if self.engine == 'http' else 'APPENGINE'}_{name}"

    @property
    def cloud(self) -> CloudTasks:
        """The engine's Cloud Tasks server."""
        assert self._cloud is not None
        return self._cloud

    def ask(self, path: str, **asked: Any) -> dict[str, Any]:
        """Post ``asked`` and return the answer."""
        host, _, port = self.address.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
        try:
            connection.request("POST", path, json.dumps(asked).encode(), {"Content-Type": "application/json"})
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return answer

    def defer(self, function: str, *args: Any, **asked: Any) -> dict[str, Any]:
        """Defer a function of the app; raise :class:`AssertionError` if that fails."""
        answer = self.ask("/defer", function=function, args=args, **asked)
        assert "error" not in answer, answer
        return answer

    def refuses(self, function: str, *args: Any, **asked: Any) -> tuple[list[str], str]:
        """Defer a function of the app, which must fail; return the names of the error's classes and its message."""
        answer = self.ask("/defer", function=function, args=args, **asked)
        assert "error" in answer, answer
        return [kind.rpartition(".")[2] for kind in answer["error"]], answer["message"]

    def adds(self) -> list[int]:
        """Return the number of tasks in each RPC that added tasks since the last call."""
        if self._cloud is None:
            counts: list[int] = self.ask("/adds")["adds"]
            return counts
        calls = list(self._cloud.calls)
        del self._cloud.calls[: len(calls)]
        creating = [(kind, request) for kind, request in calls if kind in ("batch_create", "create_task")]
        return [len(request.requests) if kind == "batch_create" else 1 for kind, request in creating]

    def told_of(self, mark: str) -> dict[str, Any]:
        """Return the next note whose arguments contain ``mark``."""
        while True:
            told = self.recorder.next()
            if mark in json.dumps(told.get("args", ())):
                return told


@contextlib.contextmanager
def running_on(engine: str, directory: Path, environ: Mapping[str, str] | None = None) -> Iterator[App]:
    """Run the app on ``engine`` during the ``with`` block."""
    recorder = Recorder()
    own = {
        "DEFERRED_MAX_PAYLOAD_BYTES": "3000000",
        **(environ or {}),
        "RECORDER": recorder.path,
        "PYTHONPATH": str(ROOT),
    }
    try:
        if engine == "local":
            with _on_the_local_server(directory, own) as address:
                yield App(engine, address, recorder)
        elif engine == "stub":
            with _in_a_host("stub", own, secrets.token_hex()) as address:
                yield App(engine, address, recorder)
        elif engine.startswith("http"):
            with CloudTasks(PARENT, QUEUES) as cloud, CloudDatastore() as datastore:
                cloud.is_flaky = engine.endswith("-faults")
                with without_sdk({**own, **http_environ_for(cloud, datastore)}) as address:
                    cloud.hosts[APP_URL] = address
                    yield App(engine, address, recorder, cloud)
        else:
            with CloudTasks(PARENT, QUEUES) as cloud:
                cloud.is_flaky = engine.endswith("-faults")
                token = secrets.token_hex()
                with _in_a_host("cloudtasks", {**own, **environ_for(cloud)}, token) as address:
                    cloud.extra_headers = {"X-Deferred-Server-Token": token}
                    cloud.app_port = int(address.rpartition(":")[2])
                    yield App(engine, address, recorder, cloud)
    finally:
        recorder.close()


def environ_for(cloud: CloudTasks) -> dict[str, str]:
    """Return the environment variables that make the SDK use ``cloud``."""
    return {
        "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE": "true",
        "CLOUD_TASKS_EMULATOR_HOST": cloud.address,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "LOCATION_ID": REGION,
    }


def http_environ_for(cloud: CloudTasks, datastore: CloudDatastore) -> dict[str, str]:
    """Return the environment variables of an app without the SDK whose tasks ``cloud`` delivers to its URL."""
    return {
        "WITHOUT_SDK": "1",
        "DEFERRED_ENGINE": "cloud-tasks",
        "DEFERRED_SERVICE_URLS": f"default={APP_URL}",
        "DEFERRED_SERVICE_ACCOUNT": ACCOUNT,
        "DEFERRED_SECRET_KEYS": SECRET_KEY,
        "CLOUD_TASKS_EMULATOR_HOST": cloud.address,
        "DATASTORE_EMULATOR_HOST": datastore.address,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "LOCATION_ID": REGION,
    }


@contextlib.contextmanager
def without_sdk(environ: Mapping[str, str], *arguments: str) -> Iterator[str]:
    """Run an app in a process of ``tests.support.engines.plain_host``; yield its address."""
    platform = ("GAE_", "APPLICATION_ID", "APPENGINE_", "HTTP_", "SERVER_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(platform)}
    command = [sys.executable, "-m", "tests.support.engines.plain_host", *arguments]
    with _process(command, {**own, **environ}) as port:
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _on_the_local_server(directory: Path, environ: Mapping[str, str]) -> Iterator[str]:
    arguments = ["tests.support.engines.app:app", "--port=0", "--admin-port=0", "--ready-file=ready.json"]
    (directory / "queue.yaml").write_text((QUEUE_YAML_FOLDER / "queue.yaml").read_text())
    server = Server(directory, arguments, environ)
    try:
        server.start()
        yield server.services["default"].removeprefix("http://").rstrip("/")
    finally:
        server.discard()


@contextlib.contextmanager
def _in_a_host(engine: str, environ: Mapping[str, str], token: str) -> Iterator[str]:
    """Run the app in a process of ``tests.support.engines.host``; yield its address."""
    own = {
        **os.environ,
        "GAE_APPLICATION": f"e~{PROJECT}",
        # The SDK prefers this variable, and another test in this process may have left one.
        "APPLICATION_ID": f"e~{PROJECT}",
        "GAE_SERVICE": "default",
        "GAE_VERSION": "v1",
        "DEFERRED_SECRET_KEYS": SECRET_KEY,
        "DEFAULT_HOSTNAME": "engines.ew.r.appspot.com",
        "QUEUE_YAML_FOLDER": str(QUEUE_YAML_FOLDER),
        "DELIVERY_TOKEN": token,
        **environ,
    }
    command = [sys.executable, "-m", "tests.support.engines.host", engine]
    with _process(command, own) as port:
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def _process(command: list[str], environ: Mapping[str, str]) -> Iterator[str]:
    """Run a process that prints its port; yield the port."""
    process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], WAIT_SECONDS)[0], "it told no port"
        port = process.stdout.readline().strip().decode()
        assert port, f"it ended with {process.wait(WAIT_SECONDS)}"
        yield port
    finally:
        process.kill()
        process.communicate()
        await_end(process.pid)
