"""The example for Cloud Run, started as its container starts it, in the environment that Cloud Run gives it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.cloud import tasks_v2

from tests.support.cloud_clients import python_client
from tests.support.elsewhere import free_port
from tests.support.emulator import Emulator
from tests.support.engines.cloudtasks import CloudTasks
from tests.support.google_certificates import CertificateServer, SigningKey
from tests.support.metadata_server import MetadataServer
from tests.support.repository import ROOT
from tests.support.running import WAIT_SECONDS, Serve

EXAMPLE = ROOT / "examples" / "cloudrun"
PARENT = "projects/shop/locations/europe-west1"
URL = "https://greetings-123456.europe-west1.run.app"
ACCOUNT = "greetings@shop.iam.gserviceaccount.com"
METADATA = {
    "project/project-id": "shop",
    "instance/region": "projects/123456/regions/europe-west1",
    "instance/service-accounts/default/email": ACCOUNT,
}
KEYS = {"DEFERRED_SECRET_KEYS": "a key that is long enough to sign the tasks with"}


def start_command() -> str:
    """Return the command of the Dockerfile's last CMD."""
    return re.findall(r"^CMD (.+)$", (EXAMPLE / "Dockerfile").read_text(), re.MULTILINE)[-1]  # type: ignore[no-any-return]


def deployed_environ(*, named: bool) -> dict[str, str]:
    """Return the environment variables of the README's command that deploys; ``named``: the one without a key."""
    found = re.findall(r"--set-env-vars=(\S+)", (EXAMPLE / "README.rst").read_text())
    text = found[1 if named else 0].replace("$URL", URL).replace("$ACCOUNT", ACCOUNT)
    return dict(pair.split("=", 1) for pair in text.split(","))


@contextlib.contextmanager
def container(
    tmp_path: Path, cloud: CloudTasks, metadata: MetadataServer, environ: Mapping[str, str], python_path: str = ""
) -> Iterator[str]:
    """Run the container's command with the variables that Cloud Run sets; yield the address."""
    port = free_port()
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{python_path}:{ROOT}" if python_path else str(ROOT),
        "HOME": str(tmp_path),
        # https://cloud.google.com/run/docs/container-contract#env-vars
        "PORT": str(port),
        "K_SERVICE": "greetings",
        "K_REVISION": "greetings-00001-abc",
        "K_CONFIGURATION": "greetings",
        # The only ones that are not Cloud Run's: where Google's servers are.
        "GCE_METADATA_HOST": metadata.host,
        "CLOUD_TASKS_EMULATOR_HOST": cloud.address,
        **environ,
    }
    log = tmp_path / "container.log"
    with log.open("wb") as written:
        process = subprocess.Popen(["sh", "-c", start_command()], cwd=EXAMPLE, env=own, stdout=written, stderr=written)
    address = f"127.0.0.1:{own['PORT']}"
    cloud.hosts[URL] = address
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                ask(address, "/")
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)  # gunicorn doesn't announce that it is ready
            else:
                break
        yield address
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)


def ask(address: str, path: str, data: bytes | None = None) -> Any:
    """Make a request; return the decoded JSON, or None if the body is empty."""
    with urllib.request.urlopen(f"http://{address}{path}", data, timeout=WAIT_SECONDS) as response:
        text = response.read()
        return json.loads(text) if text else None


def wait_for_greetings(address: str, count: int) -> list[str]:
    """Return the greetings once there are ``count``."""
    deadline = time.monotonic() + WAIT_SECONDS
    while len(said := ask(address, "/")) < count:
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return list(said)


@pytest.fixture
def cloud() -> Iterator[CloudTasks]:
    """Run Cloud Tasks with the queue of the README."""
    with CloudTasks(PARENT, ("default",)) as server:
        yield server


@pytest.fixture
def metadata() -> Iterator[MetadataServer]:
    """Run the metadata server of Cloud Run."""
    with MetadataServer(METADATA) as server:
        yield server


def test_the_deployment_with_a_key_runs_tasks(tmp_path: Path, cloud: CloudTasks, metadata: MetadataServer) -> None:
    """A private service names only the URL and the key: the rest comes from the metadata server, and tasks run."""
    # Cloud Run has removed the signatures of the tokens.
    cloud.token_for = lambda account, audience: "e30.e30.SIGNATURE_REMOVED_BY_GOOGLE"
    environ = {**deployed_environ(named=False), **KEYS}
    assert sorted(environ) == ["DEFERRED_ENGINE", "DEFERRED_SECRET_KEYS", "DEFERRED_SERVICE_URLS"]

    with container(tmp_path, cloud, metadata, environ) as address:
        ask(address, "/greet/ann", b"")
        ask(address, "/greet/bob?in=0.3", b"")

        said = wait_for_greetings(address, 2)

    assert sorted(each.partition(" (")[0] for each in said) == ["hello, ann", "hello, bob"], said
    tasks = [request.task for _, request in cloud.calls]
    assert {task.http_request.oidc_token.service_account_email for task in tasks} == {ACCOUNT}
    assert {task.http_request.oidc_token.audience for task in tasks} == {URL}


def test_the_deployment_without_a_key_runs_tasks(tmp_path: Path, cloud: CloudTasks, metadata: MetadataServer) -> None:
    """A service that names the account runs the tasks that have its token, and refuses another account's."""
    google = SigningKey("google-1")
    # The certificates come from a server of the test; nothing else is changed.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom deferred_middleware.execution import oidc\n"
        "oidc.GOOGLE = oidc.Certificates(os.environ['CERTIFICATES'])\n"
    )
    thief = "thief@shop.iam.gserviceaccount.com"
    cloud.token_for = lambda account, audience: google.token(email=thief, aud=audience)
    with (
        CertificateServer(google) as certificates,
        container(
            tmp_path,
            cloud,
            metadata,
            {**deployed_environ(named=True), "CERTIFICATES": certificates.url},
            str(tmp_path),
        ) as address,
    ):
        ask(address, "/greet/ann", b"")
        deadline = time.monotonic() + WAIT_SECONDS
        while not (cloud.held() and cloud.held()[0].dispatches):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ask(address, "/") == []

        cloud.token_for = lambda account, audience: google.token(email=account, aud=audience)
        cloud.hurry()
        (said,) = wait_for_greetings(address, 1)

    assert said.startswith("hello, ann (attempt ")
    assert "its token is of another service account" in (tmp_path / "container.log").read_text()
    assert certificates.asked == 1


def test_the_emulator_runs_the_deployments_tasks(tmp_path: Path, metadata: MetadataServer) -> None:
    """The emulator takes the container's tasks, sends them to its port on this machine, and signs the tokens."""
    emulator = Emulator(tmp_path, "--oidc-issuer=https://accounts.google.com")
    emulator.start()
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom deferred_middleware.execution import oidc\n"
        "oidc.GOOGLE = oidc.Certificates(os.environ['CERTIFICATES'])\n"
    )
    environ = {**deployed_environ(named=True), "CERTIFICATES": f"http://{emulator.cloud_tasks}/oauth2/v1/certs"}
    cloud: Any = SimpleNamespace(address=emulator.cloud_tasks, hosts={})
    with contextlib.ExitStack() as stack:
        stack.callback(emulator.discard)
        address = stack.enter_context(container(tmp_path, cloud, metadata, environ, str(tmp_path)))
        host, _, port = address.partition(":")
        override = {"scheme": "HTTP", "host": host, "port": port}
        queue = tasks_v2.Queue(name=f"{PARENT}/queues/default", http_target={"uri_override": override})
        with python_client(emulator.cloud_tasks) as client:
            client.create_queue(parent=PARENT, queue=queue)

        ask(address, "/greet/ann", b"")
        ask(address, "/greet/bob?in=0.3", b"")

        said = wait_for_greetings(address, 2)

    assert sorted(each.partition(" (")[0] for each in said) == ["hello, ann", "hello, bob"], said


def test_the_commands_for_this_machine_run_tasks(tmp_path: Path, metadata: MetadataServer) -> None:
    """The README's commands run the example with the emulator, and without the queue the error says how to make it."""
    readme = (EXAMPLE / "README.rst").read_text()
    options = re.findall(r"deferred-middleware emulate (--queue \S+)", readme)[0].replace(" ", "=")
    exported = dict(pair.split("=", 1) for line in re.findall(r"export (.+)", readme)[:3] for pair in line.split())
    assert f"--bind {exported['DEFERRED_SERVICE_URLS'].removeprefix('default=http://')}" in readme
    emulator = Emulator(tmp_path, options)
    cloud: Any = SimpleNamespace(address="", hosts={})
    with contextlib.ExitStack() as stack:
        stack.callback(emulator.discard)
        emulator.start()
        port = free_port()
        addresses = {
            "CLOUD_TASKS_EMULATOR_HOST": emulator.cloud_tasks,
            "DEFERRED_SERVICE_URLS": f"default=http://127.0.0.1:{port}",
            "PORT": str(port),
            "K_SERVICE": "",
        }
        assert addresses.keys() - exported.keys() == {"PORT", "K_SERVICE"}
        address = stack.enter_context(container(tmp_path, cloud, metadata, {**exported, **addresses, **KEYS}))

        ask(address, "/greet/ann", b"")

        assert wait_for_greetings(address, 1)[0].startswith("hello, ann (attempt 1 of ")
        with python_client(emulator.cloud_tasks) as client:
            client.delete_queue(name=f"{options.partition('=')[2]}")
        with pytest.raises(urllib.error.HTTPError, match="500"):
            ask(address, "/greet/bob", b"")
    assert f"`deferred-middleware emulate {options.replace('=', ' ')}`" in (tmp_path / "container.log").read_text()


def test_neither_key_nor_account_does_not_start(tmp_path: Path, cloud: CloudTasks, metadata: MetadataServer) -> None:
    """Without a key and without an account the container ends at once, and says what to set."""
    with (
        pytest.raises(AssertionError, match="DEFERRED_SECRET_KEYS is not set"),
        container(tmp_path, cloud, metadata, deployed_environ(named=False)),
    ):
        pass


def test_the_same_file_runs_on_the_local_server(serve: Serve) -> None:
    """The example's file runs on the local server without a changed line."""
    server = serve({"greetings.py": (EXAMPLE / "greetings.py").read_text()}, apps=["greetings:app"])

    ask(server.services["default"].removeprefix("http://").rstrip("/"), "/greet/ann", b"")

    deadline = time.monotonic() + WAIT_SECONDS
    while not (said := json.loads(server.get("/"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert said[0].startswith("hello, ann (attempt 1 of ")
