"""The images of ``examples/docker`` and ``examples/cloudrun``: built by their Dockerfiles, and run as containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.container import Container, Image, Unavailable, running
from tests.support.repository import ROOT

WAIT_SECONDS = 60.0
CREATE = """
from google.cloud import tasks_v2
import grpc

queue = "projects/p/locations/us-central1/queues/mail"
channel = grpc.insecure_channel("127.0.0.1:8123")
client = tasks_v2.CloudTasksClient(
    transport=tasks_v2.services.cloud_tasks.transports.CloudTasksGrpcTransport(channel=channel)
)
client.pause_queue(name=queue)
print(client.create_task(parent=queue, task={"http_request": {"url": "http://127.0.0.1:9/"}}).name)
"""
APP = """
import json
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer

def note(text):
    with open("/data/notes", "a") as notes:
        notes.write(text)

def page(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        defer(note, "hello")
    start_response("200 OK", [("Content-Length", "0")])
    return []

app = wrap_wsgi_app(DeferredMiddleware(page))
"""
APP_YAML = "runtime: python312\nentrypoint: gunicorn main:app\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Build what both images have in common."""
    scratch, dockerfile = tmp_path_factory.mktemp("image"), ROOT / "examples" / "docker" / "Dockerfile"
    try:
        with Image(scratch, dockerfile, ROOT, "base") as image:
            yield image
    except Unavailable as error:
        pytest.skip(f"only root can build an image here: {error}")


def check_processes(container: Container) -> None:
    """Check that nothing runs as root, and that the first process reaps what others leave behind."""
    before = container.processes()
    assert all(user != 0 for user in before.values()), before
    container.run("sh", "-c", "sleep 0.2 & sleep 0.1 &")
    deadline = time.monotonic() + WAIT_SECONDS
    while left := container.processes().keys() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)  # nobody tells that a process was reaped


def test_the_emulator(base: Image, tmp_path: Path) -> None:
    """The image runs without rights, keeps its tasks, answers its health check, and ends when it is asked to."""
    image = base.build_on("emulate")
    queue = "projects/p/locations/us-central1/queues/mail"
    with running(image, tmp_path / "log", f"--queue={queue}") as container:
        container.wait_until_healthy()
        check_processes(container)
        where = container.run("python", "-c", "import deferred_middleware; print(deferred_middleware.__file__)").stdout
        assert "site-packages" in where
        task = container.run("python", "-c", CREATE).stdout.strip()
        assert task.startswith(f"{queue}/tasks/")
        assert container.stop() == 0
        assert "Stopping" in container.output

    with running(image, tmp_path / "again") as container:
        container.wait_until_healthy()
        shown = container.run("deferred-middleware", "tasks", "--json", "--data-dir", "/data").stdout
        assert [each["name"] for each in json.loads(shown)["tasks"]] == [task.rpartition("/")[2]]
        assert container.stop() == 0

    image.config.entry = ["sleep", "60"]
    with running(image, tmp_path / "sleeping") as container:
        assert not container.is_healthy()


def test_the_local_server(base: Image, tmp_path: Path) -> None:
    """An app on the image runs its tasks as a user without rights, and ends when the container is asked to."""
    image = base.build_on("serve")
    for name, text in (("main.py", APP), ("app.yaml", APP_YAML)):
        (image.root / "app" / name).write_text(text)
    with running(image, tmp_path / "log") as container:
        container.wait_until_healthy()
        check_processes(container)
        post = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/', b'').status)"
        assert container.run("python", "-c", post).stdout.strip() == "200"
        drained = container.run("deferred-middleware", "drain", "--data-dir", "/data", "--timeout", "50")
        assert drained.returncode == 0, drained.stdout + drained.stderr
        assert container.run("cat", "/data/notes").stdout == "hello"
        assert container.stop() == 0


@pytest.mark.skipif(not os.environ.get("DEFERRED_SOAK"), reason="make test runs its command without building it")
def test_the_cloud_run_example(tmp_path: Path) -> None:
    """The README's command makes the wheel that the Dockerfile installs, and the container serves the app."""
    example, source = tmp_path / "cloudrun", tmp_path / "source"
    shutil.copytree(ROOT / "examples" / "cloudrun", example)
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.rst", "LICENSE", "_deferred_middleware_pytest.py"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "deferred_middleware", source / "deferred_middleware")
    wheel = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(example),
    ]
    subprocess.run([*wheel, str(source)], check=True)
    environ = {
        "PORT": "8080",
        "K_SERVICE": "greetings",
        "GOOGLE_CLOUD_PROJECT": "shop",
        "DEFERRED_ENGINE": "cloud-tasks",
        "DEFERRED_SERVICE_URLS": "default=http://127.0.0.1:8080",
        "DEFERRED_SECRET_KEYS": "a key that is long enough to sign the tasks with",
    }
    scratch = tmp_path / "image"
    scratch.mkdir()
    with (
        Image(scratch, example / "Dockerfile", example) as image,
        running(image, tmp_path / "log", environ=environ) as container,
    ):
        get = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/').read().decode())"
        deadline = time.monotonic() + WAIT_SECONDS
        while (shown := container.run("python", "-c", get).stdout.strip()) != "[]":
            assert time.monotonic() < deadline, (shown, container.output)
        assert container.stop() == 0
