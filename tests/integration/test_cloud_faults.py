"""For every status of Cloud Tasks the error and the retries are as documented, and no task is lost or doubled."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.appengine.api import taskqueue
from google.appengine.ext import testbed

from deferred_middleware import (
    EnqueueError,
    NotAllEnqueuedError,
    Settings,
    call,
    defer,
    defer_async,
    defer_batch,
    defer_many,
)
from deferred_middleware.config.process import install_settings
from deferred_middleware.engines import answers
from deferred_middleware.engines.answers import Answer
from deferred_middleware.wire import overflow
from tests.support import sample
from tests.support.engines.apps import PARENT, QUEUES, environ_for
from tests.support.engines.cloudtasks import CloudTasks, Fault
from tests.support.queue_answers import sdk_type
from tests.support.timed_adds import Clock, add

STATUSES = {code.value[0]: code for code in grpc.StatusCode}
FAULTS: list[tuple[str, Answer, Fault]] = []
"""The test's id, the documented answer, and the server's fault."""
for _number, _answer in answers.BY_STATUS.items():
    FAULTS.append((_answer.what, _answer, Fault(code=STATUSES[_number])))
    if _answer.maybe_enqueued:
        FAULTS.append((f"{_answer.what} after it", _answer, Fault(code=STATUSES[_number], done=True)))
FAULTS.append(("silence", answers.BY_STATUS[4], Fault(code=None)))
FAULTS.append(("silence after it", answers.BY_STATUS[4], Fault(code=None, done=True)))

each_fault = pytest.mark.parametrize(("answer", "fault"), [pytest.param(*facts, id=name) for name, *facts in FAULTS])
each_that_passes = pytest.mark.parametrize(
    ("answer", "fault"), [pytest.param(answer, fault, id=name) for name, answer, fault in FAULTS if answer.retried]
)
# Too large for a task even after compression, because the bytes are random.
LARGE_BYTES = 200_000


@pytest.fixture(scope="module")
def server() -> Iterator[CloudTasks]:
    """Run a Cloud Tasks server."""
    with CloudTasks(PARENT, QUEUES) as server:
        yield server


@pytest.fixture
def cloud(server: CloudTasks) -> Iterator[CloudTasks]:
    """Point the SDK's client at a Cloud Tasks server, within a request, with a datastore."""
    bed = testbed.Testbed()
    bed.activate()
    bed.setup_env(DEFAULT_VERSION_HOSTNAME="app.example.com", HTTP_HOST="app.example.com", overwrite=True)
    bed.setup_env(**environ_for(server), GAE_APPLICATION="", overwrite=True)
    os.environ.pop("GAE_APPLICATION")
    bed.init_datastore_v3_stub()
    install_settings(Settings(enqueue_seconds=0.5))
    yield server
    server.reset()
    bed.deactivate()


@pytest.fixture
def clock() -> Clock:
    """Return a fake clock for the attempts."""
    return Clock()


def names_in(cloud: CloudTasks) -> list[str]:
    """Return the names of the waiting tasks."""
    return [held.task.name.rpartition("/")[2] for held in cloud.held()]


def adds_to(cloud: CloudTasks) -> list[int]:
    """Return the number of tasks in each call that creates tasks."""
    return [len(request.requests) if kind == "batch_create" else 1 for kind, request in cloud.calls]


def chunks() -> int:
    """Return the number of payload chunks in the datastore."""
    from google.appengine.api import datastore

    return int(datastore.Query(overflow.KIND, namespace="").Count())


def test_the_table_has_every_status() -> None:
    """The table has every gRPC status, under its own name."""
    statuses = {number: code.name for number, code in STATUSES.items() if number}

    assert {number: answer.what for number, answer in answers.BY_STATUS.items()} == statuses


@each_fault
def test_a_status_that_lasts(cloud: CloudTasks, clock: Clock, answer: Answer, fault: Fault) -> None:
    """If a status lasts, the error and the number of attempts are as documented, and no orphaned payload is left."""
    cloud.faults, cloud.lasting = [fault], True

    if answer.exists:
        add(clock)
        assert len(cloud.calls) == 1
        return
    with pytest.raises(EnqueueError) as caught:
        add(clock, os.urandom(LARGE_BYTES))

    error = caught.value
    assert isinstance(error, sdk_type(answer))
    assert str(error).startswith("tests.support.sample/note was not enqueued to queue 'default': ")
    assert error.maybe_enqueued is answer.maybe_enqueued
    assert ("may have the task" in str(error)) is answer.maybe_enqueued
    assert (len(cloud.calls) > 1) is answer.retried
    assert len({request.task.name for _, request in cloud.calls}) == 1
    assert len(cloud.held()) == fault.done
    assert chunks() == answer.maybe_enqueued


@each_that_passes
def test_a_status_that_passes(cloud: CloudTasks, clock: Clock, answer: Answer, fault: Fault) -> None:
    """If a retried status passes, the task is enqueued once, under the first attempt's name, with its payload."""
    cloud.faults = [fault]

    task = add(clock, os.urandom(LARGE_BYTES))

    assert adds_to(cloud) == [1, 1]
    assert names_in(cloud) == [task.name]
    assert chunks() == 1


@each_fault
def test_many_of_which_the_first_rpc_fails(cloud: CloudTasks, answer: Answer, fault: Fault) -> None:
    """If the first RPC of many calls fails, the report counts only tasks that exist, and no task exists twice."""
    cloud.faults = [fault]

    report = defer_many((call(sample.note, i) for i in range(3)), raise_errors=False)

    names = names_in(cloud)
    assert len(set(names)) == len(names)
    # If the server says that a generated name exists, the task is ours: nobody else can have the name.
    assert report.enqueued == (3 if answer.exists else len(names))
    assert report.enqueued + report.failed == 3
    assert report.failed == 0 or not answer.retried


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND])
def test_a_task_that_is_refused_alone(cloud: CloudTasks, code: grpc.StatusCode) -> None:
    """If one task of a batch is refused, the others are enqueued and the refused one's payload is deleted."""
    cloud.refuse = lambda task: code if task.app_engine_http_request.headers.get("X-Bad") else None

    calls = [call(sample.note, os.urandom(LARGE_BYTES), _headers={"X-Bad": "1"} if i == 1 else {}) for i in range(4)]
    report = defer_many(calls, raise_errors=False)

    assert [result.status.value for result in report] == ["enqueued", "failed", "enqueued", "enqueued"]
    [(index, error)] = report.errors
    assert index == 1
    assert isinstance(error, taskqueue.Error)
    assert isinstance(error, EnqueueError)
    assert not error.maybe_enqueued
    assert adds_to(cloud) == [4]
    assert len(cloud.held()) == chunks() == 3


def test_a_batch_whose_answer_was_lost(cloud: CloudTasks) -> None:
    """If a repeated batch finds all its names in use, that is success, after one RPC."""
    cloud.faults = [Fault(code=grpc.StatusCode.UNAVAILABLE, done=True)]

    report = defer_many(call(sample.note, i) for i in range(100))

    assert report.enqueued == 100
    assert adds_to(cloud) == [100, 100]
    assert len(cloud.held()) == 100


def test_a_hundred_to_an_rpc(cloud: CloudTasks) -> None:
    """Calls are sent in batches of a hundred, each to its own queue."""
    report = defer_many(call(sample.note, i, _queue=("quick", "slow")[i % 50 == 0]) for i in range(250))

    assert report.enqueued == 250
    assert sorted(adds_to(cloud)) == [5, 45, 100, 100]
    assert len(cloud.held("slow")) == 5


def test_names_that_are_taken(cloud: CloudTasks) -> None:
    """If a name that the caller gave is in use, defer_many reports it, and a batch raises an error."""
    defer(sample.note, _name="taken")

    report = defer_many(call(sample.note, _name=name) for name in ("free", "taken", "also-free"))
    assert [result.status.value for result in report] == ["enqueued", "already there", "enqueued"]

    with pytest.raises(NotAllEnqueuedError, match="'taken'"), defer_batch():  # noqa: PT012 - raised at the batch's end
        defer(sample.note)
        taken = defer_async(sample.note, _name="taken")
    assert isinstance(taken.exception(), taskqueue.TaskAlreadyExistsError)
    assert len(cloud.held()) == 4


def test_defer_async_goes_on_by_itself(cloud: CloudTasks) -> None:
    """defer_async retries by itself under one name, for a limited time, even if nobody waits for it."""
    install_settings(Settings(enqueue_seconds=30))
    cloud.faults = [Fault(code=grpc.StatusCode.UNAVAILABLE), Fault(code=grpc.StatusCode.UNAVAILABLE, done=True)]

    future = defer_async(sample.note)

    assert future.result(60).name == names_in(cloud)[0]
    assert adds_to(cloud) == [1, 1, 1]

    install_settings(Settings(enqueue_seconds=0.3))
    cloud.faults, cloud.lasting = [Fault(code=grpc.StatusCode.UNAVAILABLE)], True
    with pytest.raises(taskqueue.TransientError, match="may have the task"):
        defer_async(sample.note).result(60)


def test_without_credentials_nothing_was_sent(
    cloud: CloudTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials nothing is sent, and one error for the whole batch says that no task exists."""
    monkeypatch.delenv("CLOUD_TASKS_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))

    report = defer_many((call(sample.note, os.urandom(LARGE_BYTES)) for _ in range(3)), raise_errors=False)

    assert report.failed == 3
    assert "nothing.json" in str(report.errors[0][1])
    assert not any(getattr(error, "maybe_enqueued", True) for _, error in report.errors)
    assert chunks() == 0


def test_each_status_is_its_own_answer() -> None:
    """No two answers in the table are the same, so that the manual explains each."""
    assert len({dataclasses.astuple(answer) for answer in answers.BY_STATUS.values()}) == len(answers.BY_STATUS)
