"""Runs the app of :mod:`tests.support.engines.app` on one of the engines."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.cloud import tasks_v2

from tests.support.cloud_clients import python_client
from tests.support.cloud_datastore import CloudDatastore
from tests.support.elsewhere import free_port
from tests.support.emulator import Emulator
from tests.support.engines.cannot import ABILITIES
from tests.support.engines.cloudtasks import CloudTasks
from tests.support.engines.flaky_api import FlakyApi
from tests.support.relay import Relay
from tests.support.repository import QUEUE_YAML_FOLDER, ROOT
from tests.support.running import WAIT_SECONDS, Recorder, Server, await_end

ENGINES = ("local", "stub", "cloudtasks", "http")
FAULTY = ("local-faults", "cloudtasks-faults", "http-faults")
"""Engines whose server fails every other call that creates tasks, each time in another way."""
EMULATED = "http-emulator"
"""Cloud Tasks with URLs, on our own emulator."""
ENQUEUE_SECONDS = 6
"""``DEFERRED_ENQUEUE_SECONDS`` on them. An attempt takes a third of it if the server doesn't answer."""
APP_URL = "https://shop-123456.europe-west1.run.app"
ACCOUNT = "tasks@engines.iam.gserviceaccount.com"
QUEUES = ("default", "quick", "slow")
PROJECT, REGION = "engines", "europe-west1"
PARENT = f"projects/{PROJECT}/locations/{REGION}"
SECRET_KEY = "engines: a key that is long enough to sign with"


class App:
    """A client of the running app."""

    def __init__(
        self, engine: str, address: str, recorder: Recorder, server: CloudTasks | FlakyApi | None = None
    ) -> None:
        self.engine = engine.removesuffix("-faults").removesuffix("-emulator")
        self.is_faulty = engine in FAULTY
        self.address = address
        self.recorder = recorder
        self._server = server
        self._added: set[str] = set()

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
        assert isinstance(self._server, CloudTasks)
        return self._server

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
        """Return the number of tasks in each RPC that added tasks since the last call, without repetitions."""
        if self._server is None:
            counts: list[int] = self.ask("/adds")["adds"]
            return counts
        adds = []
        for names in self._server.take_adds():
            if not (self.is_faulty and self._added.issuperset(names)):
                adds.append(len(names))
            self._added.update(names)
        return adds

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
    if engine in FAULTY:
        own["DEFERRED_ENQUEUE_SECONDS"] = str(ENQUEUE_SECONDS)
    try:
        if engine == "local":
            with _on_the_local_server(directory, own) as address:
                yield App(engine, address, recorder)
        elif engine == "local-faults":
            with _through_a_flaky_api(directory, own) as (address, api):
                yield App(engine, address, recorder, api)
        elif engine == "stub":
            with _in_a_host("stub", own, secrets.token_hex()) as address:
                yield App(engine, address, recorder)
        elif engine == EMULATED:
            with _on_the_emulator(directory, own) as address:
                yield App(engine, address, recorder)
        elif engine.startswith("http"):
            with (
                _cloud_tasks(engine) as (cloud, at),
                CloudDatastore() as datastore,
                without_sdk({**own, **http_environ_for(at, datastore)}) as address,
            ):
                cloud.hosts[APP_URL] = address
                yield App(engine, address, recorder, cloud)
        else:
            with _cloud_tasks(engine) as (cloud, at):
                token = secrets.token_hex()
                environ = {**own, **environ_for(cloud), "CLOUD_TASKS_EMULATOR_HOST": at}
                with _in_a_host("cloudtasks", environ, token) as address:
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


def http_environ_for(cloud_tasks: str, datastore: CloudDatastore) -> dict[str, str]:
    """Return the environment variables of an app without the SDK whose tasks a Cloud Tasks delivers to its URL."""
    return {
        "WITHOUT_SDK": "1",
        "DEFERRED_ENGINE": "cloud-tasks",
        "DEFERRED_SERVICE_URLS": f"default={APP_URL}",
        "DEFERRED_SERVICE_ACCOUNT": ACCOUNT,
        "DEFERRED_SECRET_KEYS": SECRET_KEY,
        "CLOUD_TASKS_EMULATOR_HOST": cloud_tasks,
        "DATASTORE_EMULATOR_HOST": datastore.address,
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "LOCATION_ID": REGION,
    }


@contextlib.contextmanager
def _on_the_emulator(directory: Path, environ: Mapping[str, str]) -> Iterator[str]:
    """Run the app on the emulator, whose queues send the tasks of the app's URL to this machine."""
    emulator = Emulator(directory, "--no-task-lines")
    try:
        emulator.start()
        with (
            CloudDatastore() as datastore,
            without_sdk({**environ, **http_environ_for(emulator.cloud_tasks, datastore)}) as address,
            python_client(emulator.cloud_tasks) as client,
        ):
            host, _, port = address.partition(":")
            override = {"scheme": "HTTP", "host": host, "port": port}
            for name in QUEUES:
                queue = tasks_v2.Queue(name=f"{PARENT}/queues/{name}", http_target={"uri_override": override})
                client.create_queue(parent=PARENT, queue=queue)
            yield address
    finally:
        emulator.discard()


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
def _through_a_flaky_api(directory: Path, environ: Mapping[str, str]) -> Iterator[tuple[str, FlakyApi]]:
    """Run the app outside the local server, which it calls through a server that fails."""
    port = free_port()
    (directory / "queue.yaml").write_text((QUEUE_YAML_FOLDER / "queue.yaml").read_text())
    arguments = [f"--service=default=http://127.0.0.1:{port}", "--port=0", "--admin-port=0", "--ready-file=ready.json"]
    server = Server(directory, arguments, {})
    try:
        server.start()
        given = environ_of(server, "default")
        api = FlakyApi(f"{given['API_HOST']}:{given['API_PORT']}")
        try:
            own = {"PATH": os.environ["PATH"], **given, **environ, "API_HOST": "127.0.0.1", "API_PORT": str(api.port)}
            with _process([sys.executable, "-m", "tests.support.engines.host", "elsewhere", str(port)], own) as told:
                yield f"127.0.0.1:{told}", api
        finally:
            api.close()
    finally:
        server.discard()


def environ_of(server: Server, service: str) -> dict[str, str]:
    """Return the variables that a service needs which runs outside the local server."""
    written = Path(json.loads(server.ready_file.read_text())["environ_files"][service]).read_text()
    return dict(word.split("=", 1) for word in shlex.split(written) if "=" in word)


@contextlib.contextmanager
def _cloud_tasks(engine: str) -> Iterator[tuple[CloudTasks, str]]:
    """Run a Cloud Tasks; yield it and the address for clients. Their connections to a flaky one can be cut."""
    with CloudTasks(PARENT, QUEUES) as cloud:
        if engine not in FAULTY:
            yield cloud, cloud.address
            return
        with Relay(cloud.address) as relay:
            cloud.is_flaky = True
            cloud.cut = relay.cut
            yield cloud, relay.address


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
