"""Tests of the sweeps of the outbox: in the background of requests, in the task that is for that, and their reports."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.appengine.api import datastore, datastore_types
from google.appengine.ext import ndb, testbed

from deferred_middleware import DeferredMiddleware, Settings, defer
from deferred_middleware.config import process
from deferred_middleware.config.process import install_settings
from deferred_middleware.engines import current, outbox
from deferred_middleware.enqueue import sweep_task
from deferred_middleware.execution.sweeping import Sweeper
from tests.support import sample
from tests.support.delivering import task_environ
from tests.support.engines.apps import PARENT, QUEUES, environ_for
from tests.support.engines.cloudtasks import CloudTasks, Fault

KEY = "k" * 32
SETTINGS = Settings(engine="cloud-tasks", secret_keys=())
SWEEP_PATH = "/_cb/deferred/_sweep"


@pytest.fixture(scope="module")
def server() -> Iterator[CloudTasks]:
    """Run a Cloud Tasks server."""
    with CloudTasks(PARENT, QUEUES) as server:
        yield server


@pytest.fixture
def cloud(server: CloudTasks, engine: testbed.Testbed, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudTasks]:
    """Use Cloud Tasks, with a datastore."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()
    for name, value in environ_for(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GAE_APPLICATION", raising=False)
    monkeypatch.setattr(current, "_cloud_tasks", None)
    monkeypatch.setattr(sweep_task, "UPCOMING", sweep_task.Upcoming())
    install_settings(SETTINGS)
    yield server
    server.reset()


def add(*marks: str) -> None:
    """Add transactional tasks."""
    ndb.transaction(lambda: [defer(sample.note, mark, _transactional=True) for mark in marks], xg=True)


def leave(cloud: CloudTasks, *marks: str, hours: float = 0.0) -> None:
    """Add transactional tasks that can't be sent at the commit, some time ago."""
    import grpc

    cloud.refuse = lambda task: grpc.StatusCode.UNAVAILABLE
    add(*marks)
    cloud.reset()
    for entity in datastore.Query(outbox.KIND, namespace="").Run():
        entity["created"] -= datetime.timedelta(hours=hours, seconds=30)
        datastore.Put(entity)


def waiting() -> int:
    """Return the number of tasks in the outbox."""
    return int(datastore.Query(outbox.KIND, namespace="").Count())


def names(cloud: CloudTasks, start: str) -> list[str]:
    """Return the names of the tasks in Cloud Tasks that begin with a text."""
    found = [held.task.name.rpartition("/")[2] for held in cloud.held()]
    return [name for name in found if name.startswith(start)]


def wait_for(condition: Any) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_transactional_task_makes_sure_of_a_sweep(cloud: CloudTasks) -> None:
    """Before the commit a sweep is enqueued that is due a minute later, and only one for many tasks."""
    started = time.time()

    def work() -> None:
        defer(sample.note, 1, _transactional=True)
        assert len(names(cloud, "deferred-sweep-")) == 1
        assert names(cloud, "tx-") == []

    ndb.transaction(work, xg=True)
    add("2", "3")

    (sweep,) = [held for held in cloud.held() if "deferred-sweep" in held.task.name]
    assert started + 44 < sweep.due < started + 80
    assert sweep.task.app_engine_http_request.relative_uri == SWEEP_PATH
    assert len(names(cloud, "tx-")) == 3
    assert waiting() == 0


def test_the_task_goes_on_without_a_sweep(cloud: CloudTasks, caplog: pytest.LogCaptureFixture) -> None:
    """If the sweep can't be enqueued, that is a warning, and the transaction goes on."""
    import grpc

    cloud.faults = [Fault(code=grpc.StatusCode.UNAVAILABLE)]

    add("1")

    assert len(names(cloud, "tx-")) == 1
    assert "the next sweep of transactional tasks could not be enqueued" in caplog.text


def test_the_next_request_sweeps(cloud: CloudTasks) -> None:
    """The first request of a process, for the app or a task, sends what another process has left, in the background."""
    for path in ("/", "/_cb/deferred/x/y"):
        leave(cloud, "left")
        threads: list[str] = []

        def app(environ: Any, start_response: Any, threads: list[str] = threads) -> list[bytes]:
            threads.append(threading.current_thread().name)
            start_response("200 OK", [])
            return []

        served = DeferredMiddleware(app, settings=SETTINGS)
        served(task_environ(b"", PATH_INFO=path), lambda *_: None)  # type: ignore[arg-type]

        wait_for(lambda: waiting() == 0)
        assert len(names(cloud, "tx-")) == 1
        cloud.reset()


def test_requests_sweep_from_time_to_time(cloud: CloudTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sweep, the requests of half a minute don't start another one."""
    now = [1000.0]
    monkeypatch.setattr("deferred_middleware.execution.sweeping.monotonic", lambda: now[0])
    started: list[object] = []
    monkeypatch.setattr(Sweeper, "_sweep_in_background", lambda self: started.append(self))
    sweeper = Sweeper(SETTINGS, process.current_hooks())

    for seconds in (0, 1, 29, 31, 32, 62):
        now[0] = 1000.0 + seconds
        sweeper.on_request()

    wait_for(lambda: len(started) == 3)


def test_the_times_of_sweeps_follow_the_setting(cloud: CloudTasks) -> None:
    """With DEFERRED_SWEEP_SECONDS, a sweep is due sooner or later, and takes younger or only older tasks."""
    install_settings(dataclasses.replace(SETTINGS, sweep_seconds=600))
    started = time.time()
    add("1")

    (sweep,) = [held for held in cloud.held() if "deferred-sweep" in held.task.name]
    assert started + 899 < sweep.due < started + 1501

    leave(cloud, "2", hours=0.1)
    for seconds, sent in ((600.0, 0), (500.0, 1)):
        settings = dataclasses.replace(SETTINGS, sweep_seconds=seconds)
        assert Sweeper(settings, process.current_hooks()).sweep().sent == sent


def test_an_app_of_the_taskqueue_api_does_not_sweep() -> None:
    """Only Cloud Tasks has an outbox. Elsewhere a request costs nothing more."""
    install_settings(Settings())

    assert Sweeper.needed(Settings(), process.current_hooks()) is None


@pytest.mark.parametrize(("left", "least", "most"), [(0, 3599, 3700), (1, 44, 80)])
def test_the_sweep_task_enqueues_its_next_run(cloud: CloudTasks, left: int, least: float, most: float) -> None:
    """The task sweeps and enqueues its next run: soon if something is left, and else in an hour."""
    import grpc

    leave(cloud, "left")
    if left:
        cloud.refuse = lambda task: (
            grpc.StatusCode.UNAVAILABLE if b"left" in task.app_engine_http_request.body else None
        )
    statuses: list[str] = []
    app = DeferredMiddleware(lambda environ, start: [], settings=SETTINGS)

    app(task_environ(b"sweep", PATH_INFO=SWEEP_PATH), lambda status, *_: statuses.append(status))  # type: ignore[arg-type]

    assert statuses == ["200 OK"]
    assert waiting() == left
    (sweep,) = [held for held in cloud.held() if "deferred-sweep" in held.task.name]
    assert least <= sweep.due - time.time() <= most


def test_a_stranger_cannot_sweep(cloud: CloudTasks) -> None:
    """The sweep is trusted as any other task: without the queue's headers it is refused."""
    leave(cloud, "left")
    statuses: list[str] = []
    app = DeferredMiddleware(lambda environ, start: [], settings=SETTINGS)
    app._handler.sweeper._next = float("inf")  # type: ignore[union-attr] # no sweep by a request

    environ = task_environ(b"sweep", PATH_INFO=SWEEP_PATH, HTTP_X_APPENGINE_TASKNAME=None)
    app(environ, lambda status, *_: statuses.append(status))  # type: ignore[arg-type]

    assert statuses == ["403 Forbidden"]
    assert waiting() == 1


def test_a_sweep_that_fails_is_tried_again(cloud: CloudTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the datastore fails, or the next run can't be enqueued, the task fails, so that Cloud Tasks tries it again."""
    import grpc

    statuses: list[str] = []
    app = DeferredMiddleware(lambda environ, start: [], settings=SETTINGS)
    cloud.faults, cloud.lasting = [Fault(code=grpc.StatusCode.PERMISSION_DENIED)], True

    app(task_environ(b"sweep", PATH_INFO=SWEEP_PATH), lambda status, *_: statuses.append(status))  # type: ignore[arg-type]

    assert statuses == ["500 Internal Server Error"]


class Hook:
    """Collects dead letters."""

    def __init__(self) -> None:
        self.letters: list[Any] = []

    def on_dead_letter(self, letter: Any) -> None:
        """Take a dead letter."""
        self.letters.append(letter)


def test_what_cannot_be_sent_for_an_hour_is_a_dead_letter(cloud: CloudTasks, caplog: pytest.LogCaptureFixture) -> None:
    """After an hour there is an ERROR and a dead letter, once, and the task is tried again all the same."""
    import grpc

    hook = Hook()
    DeferredMiddleware(lambda environ, start: [], settings=SETTINGS, hooks=[hook])
    sweeper = Sweeper(SETTINGS, process.current_hooks())
    leave(cloud, "young", hours=0.9)
    leave(cloud, "overdue", hours=1.1)
    cloud.refuse = lambda task: grpc.StatusCode.PERMISSION_DENIED

    for _ in range(3):
        assert sweeper.sweep().failed == 2

    # The first one has aged by the hours of the second one, too.
    assert [letter.context.label for letter in hook.letters] == ["tests.support.sample/note"] * len(hook.letters)
    assert len(hook.letters) in (1, 2)
    line = next(r.getMessage() for r in caplog.records if r.name == "deferred_middleware.dead_letters")
    record = json.loads(line[line.index("{") :])
    assert record["queue"] == "default"
    assert record["path"] == "/_cb/deferred/tests.support.sample/note"
    assert "hours ago" in record["reason"]
    assert any(r.levelno == logging.ERROR and "can't be sent" in r.getMessage() for r in caplog.records)
    cloud.refuse = lambda task: None
    assert sweeper.sweep().sent == 2
    assert waiting() == 0


def test_a_sweep_is_bounded(cloud: CloudTasks) -> None:
    """A sweep stops after a number of tasks, and says that something is left."""
    leave(cloud, "1", "2", "3")

    report = Sweeper(SETTINGS, process.current_hooks()).sweep(max_tasks=2)

    assert (report.sent, report.is_empty) == (2, False)
    assert waiting() == 1


NAME = f"{PARENT}/queues/default/tasks/tx-1"
BODY = base64.b64encode(b"old").decode()
DUE = int(time.time()) + 3600
STAGED = {
    "task": {
        "name": NAME,
        "appEngineHttpRequest": {
            "httpMethod": "POST",
            "relativeUri": "/old",
            "body": BODY,
        },
        "scheduleTime": datetime.datetime.fromtimestamp(DUE, datetime.timezone.utc).isoformat(),
    }
}
PREVIEW = {
    "app_engine_http_request": {
        "http_method": 1,
        "relative_uri": "/old",
        "body": BODY,
    },
    "schedule_time": {"seconds": DUE},
    "retry_config": {"min_backoff": {"seconds": 1, "nanos": 500000000}},
}


@pytest.mark.parametrize("form", ["staged", "preview"])
@pytest.mark.parametrize("status", ["PENDING", "PROCESSING", "FAILED", "DONE"])
def test_what_the_sdk_has_left_is_sent(cloud: CloudTasks, status: str, form: str) -> None:
    """A task of the SDK's own outbox is sent under its name, also if the SDK has given it up, but not if it is done."""
    import grpc

    entity = datastore.Entity("_AE_PendingCloudTask", namespace="")
    payload = datastore_types.Text(json.dumps(STAGED if form == "staged" else PREVIEW))
    created = datetime.datetime.fromtimestamp(time.time() - 300, datetime.timezone.utc).replace(tzinfo=None)
    found = {"queue_name": "default", "cloud_task_name": "tx-1", "status": status, "created": created, "retry_count": 5}
    entity.update(found)
    entity["cloud_task_payload" if form == "staged" else "payload"] = payload
    datastore.Put(entity)
    sweeper = Sweeper(SETTINGS, process.current_hooks())
    if status == "DONE":
        assert sweeper.sweep().sent == 0
        return

    cloud.refuse = lambda task: grpc.StatusCode.UNAVAILABLE
    assert sweeper.sweep().failed == 1
    cloud.refuse = lambda task: None
    assert sweeper.sweep().sent == 1

    (held,) = cloud.held()
    assert held.task.name == NAME
    assert (held.task.app_engine_http_request.relative_uri, held.task.app_engine_http_request.body) == ("/old", b"old")
    assert held.due == DUE
    assert datastore.Query("_AE_PendingCloudTask", namespace="").Count() == 0


def test_what_cannot_be_read_stays(cloud: CloudTasks, caplog: pytest.LogCaptureFixture) -> None:
    """An entity that can't be read is an ERROR in the log, and is not deleted."""
    created = datetime.datetime(2026, 1, 1)
    for kind in (outbox.KIND, "_AE_PendingCloudTask"):
        entity = datastore.Entity(kind, namespace="")
        entity.update({"created": created, "payload": "{", "queue_name": "default"})
        datastore.Put(entity)

    assert Sweeper(SETTINGS, process.current_hooks()).sweep().sent == 0
    assert caplog.text.count("can't be read, and stays") == 2
    assert waiting() == 1
