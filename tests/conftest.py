"""Fixtures: an engine in this process for the unit tests, and a running server for the acceptance tests."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.appengine.ext import testbed
from hypothesis import settings as hypothesis_settings

from deferred_middleware import Settings
from deferred_middleware.config import process
from deferred_middleware.server.store.records import Retention
from deferred_middleware.server.store.store import TaskStore
from tests.support import sample
from tests.support.delivering import Queued
from tests.support.repository import QUEUE_YAML_FOLDER
from tests.support.running import Recorder, Serve, Server
from tests.support.storing import Clock

# Hypothesis examples have no deadline: their duration depends on the machine more than on the code.
hypothesis_settings.register_profile("default", deadline=None)
hypothesis_settings.register_profile("fewer", deadline=None, max_examples=20)
hypothesis_settings.register_profile("soak", deadline=None, max_examples=5000)
hypothesis_settings.load_profile("default")


# A shell starts a command in the background with these signals ignored, and so would every process of the tests be.
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, signal.default_int_handler if signum is signal.SIGINT else signal.SIG_DFL)

_DEPLOYMENT = process._deployment


def pytest_collection_finish() -> None:
    """Fail if the import of a test module changed this process's deployment, which would affect every later test."""
    assert process._deployment is _DEPLOYMENT, process._deployment


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    """Run each test as on App Engine standard, which needs no key, and restore the process's state afterwards."""
    sample.ran.clear()
    settings, deployment, keys = process._settings, process._deployment, process.current_keys()
    hooks = process._hooks
    process._deployment = dataclasses.replace(deployment, environment="standard")
    # The pytest plugin installed a key.
    process.install_keys(())
    process._settings = Settings()
    yield
    # The SDK's namespace manager keeps the namespace there if there is no request.
    for variable in [name for name in os.environ if name.startswith("HTTP_X_APPENGINE_")]:
        del os.environ[variable]
    process._settings, process._deployment = settings, deployment
    process._hooks = hooks
    process.install_keys(keys)


@pytest.fixture
def engine() -> Iterator[testbed.Testbed]:
    """Answer the SDK's taskqueue API with the SDK's own stub, as in a request to the app's default version."""
    bed = testbed.Testbed()
    bed.activate()
    bed.setup_env(DEFAULT_VERSION_HOSTNAME="app.example.com", HTTP_HOST="app.example.com", overwrite=True)
    # The parser reads queue.yaml from this folder. It has the queues "quick" and "slow", and the pull queue "pull".
    bed.init_taskqueue_stub(root_path=str(QUEUE_YAML_FOLDER))
    yield bed
    bed.deactivate()


@pytest.fixture
def queued(engine: testbed.Testbed) -> Queued:
    """The tasks in the queues."""
    return Queued(engine)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """The reports of the apps under test."""
    heard = Recorder()
    yield heard
    heard.close()


@pytest.fixture
def make_server(tmp_path: Path, recorder: Recorder) -> Iterator[Serve]:
    """Return a function that prepares a server without starting it.

    Its arguments: the source of ``main.py``, or a mapping of file names to sources; ``apps`` (by default
    ``["main:app"]``); ``services``; ``arguments``, further command-line arguments; ``environ``; ``program``, the
    arguments that Python runs instead of the package.
    """
    made: list[Server] = []

    def make(
        source: str | Mapping[str, str],
        *,
        apps: Sequence[str] = ("main:app",),
        services: Sequence[str] = (),
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "deferred_middleware"),
    ) -> Server:
        directory = tmp_path / f"server{len(made)}"
        directory.mkdir()
        for name, text in ({"main.py": source} if isinstance(source, str) else source).items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text)
        given = [*apps, *(f"--service={name}" for name in services), "--port=0", "--admin-port=0"]
        given += ["--ready-file=ready.json", *arguments]
        server = Server(directory, given, {"RECORDER": recorder.path, **(environ or {})}, program)
        made.append(server)
        return server

    yield make
    for server in made:
        server.discard()


@pytest.fixture
def serve(make_server: Serve) -> Serve:
    """Return a function that starts a server and waits until it is ready; see ``make_server`` for its arguments."""

    def start(source: str | Mapping[str, str], **options: Any) -> Server:
        return make_server(source, **options).start()

    return start


@pytest.fixture
def clock() -> Clock:
    """A wall clock that changes only when a test sets it."""
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock, request: pytest.FixtureRequest) -> Iterator[TaskStore]:
    """An empty task store, with the retention that the test's marker sets."""
    mark = request.node.get_closest_marker("retention")
    retention = Retention(**(mark.kwargs if mark else {}))
    store = TaskStore(tmp_path / "tasks.sqlite", clock=clock, elapsed=clock, retention=retention)
    yield store
    store.close()
