"""Every status that Cloud Tasks can answer with: the documented error, retried or not, none lost and none twice."""

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
"""Name, what it means to us, and what the server does."""
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
# More than compression makes fit into a task: it is of random bytes.
LARGE_BYTES = 200_000


@pytest.fixture(scope="module")
def server() -> Iterator[CloudTasks]:
    """Run a Cloud Tasks server."""
    with CloudTasks(PARENT, QUEUES) as server:
        yield server


@pytest.fixture
def cloud(server: CloudTasks) -> Iterator[CloudTasks]:
    """Let the SDK's client in this process talk to a Cloud Tasks server, as in a request, beside a datastore."""
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
    """The time of the attempts."""
    return Clock()


def names_in(cloud: CloudTasks) -> list[str]:
    """Return the names of the tasks that wait."""
    return [held.task.name.rpartition("/")[2] for held in cloud.held()]


def adds_to(cloud: CloudTasks) -> list[int]:
    """Return of how many tasks each call was that created some."""
    return [len(request.requests) if kind == "batch_create" else 1 for kind, request in cloud.calls]


def chunks() -> int:
    """Return how many chunks of payloads are in the datastore."""
    from google.appengine.api import datastore

    return int(datastore.Query(overflow.KIND, namespace="").Count())


def test_the_table_has_every_status() -> None:
    """No status of gRPC's is missing, and none has another name."""
    statuses = {number: code.name for number, code in STATUSES.items() if number}

    assert {number: answer.what for number, answer in answers.BY_STATUS.items()} == statuses


@each_fault
def test_a_status_that_lasts(cloud: CloudTasks, clock: Clock, answer: Answer, fault: Fault) -> None:
    """The error is the documented one, after one attempt or several; of a task that isn't there no payload stays."""
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
    """What is retried is enqueued in the end, once, under the name of the first attempt, with its payload."""
    cloud.faults = [fault]

    task = add(clock, os.urandom(LARGE_BYTES))

    assert adds_to(cloud) == [1, 1]
    assert names_in(cloud) == [task.name]
    assert chunks() == 1


@each_fault
def test_many_of_which_the_first_rpc_fails(cloud: CloudTasks, answer: Answer, fault: Fault) -> None:
    """Of many calls none is reported as enqueued that Cloud Tasks doesn't have, and none is there twice."""
    cloud.faults = [fault]

    report = defer_many((call(sample.note, i) for i in range(3)), raise_errors=False)

    names = names_in(cloud)
    assert len(set(names)) == len(names)
    # A name of ours that the server calls taken is believed to be: nobody else can have it.
    assert report.enqueued == (3 if answer.exists else len(names))
    assert report.enqueued + report.failed == 3
    assert report.failed == 0 or not answer.retried


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND])
def test_a_task_that_is_refused_alone(cloud: CloudTasks, code: grpc.StatusCode) -> None:
    """Of a batch whatever can be enqueued is, and what is refused is known not to be: its payload goes."""
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
    """That all names of a batch are taken when it is repeated is success, and takes one RPC."""
    cloud.faults = [Fault(code=grpc.StatusCode.UNAVAILABLE, done=True)]

    report = defer_many(call(sample.note, i) for i in range(100))

    assert report.enqueued == 100
    assert adds_to(cloud) == [100, 100]
    assert len(cloud.held()) == 100


def test_a_hundred_to_an_rpc(cloud: CloudTasks) -> None:
    """Calls go in batches, each to its own queue."""
    report = defer_many(call(sample.note, i, _queue=("quick", "slow")[i % 50 == 0]) for i in range(250))

    assert report.enqueued == 250
    assert sorted(adds_to(cloud)) == [5, 45, 100, 100]
    assert len(cloud.held("slow")) == 5


def test_names_that_are_taken(cloud: CloudTasks) -> None:
    """A caller's name keeps its meaning: reported as being there by defer_many, an error of a batch."""
    defer(sample.note, _name="taken")

    report = defer_many(call(sample.note, _name=name) for name in ("free", "taken", "also-free"))
    assert [result.status.value for result in report] == ["enqueued", "already there", "enqueued"]

    with pytest.raises(NotAllEnqueuedError, match="'taken'"), defer_batch():  # noqa: PT012 - it is raised at its end
        defer(sample.note)
        taken = defer_async(sample.note, _name="taken")
    assert isinstance(taken.exception(), taskqueue.TaskAlreadyExistsError)
    assert len(cloud.held()) == 4


def test_defer_async_goes_on_by_itself(cloud: CloudTasks) -> None:
    """It gets over what passes, under one name, without anybody waiting; and it has a limit."""
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
    """An app that can't sign in gets an error that says that no task is there, for all of a batch at once."""
    monkeypatch.delenv("CLOUD_TASKS_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))

    report = defer_many((call(sample.note, os.urandom(LARGE_BYTES)) for _ in range(3)), raise_errors=False)

    assert report.failed == 3
    assert "nothing.json" in str(report.errors[0][1])
    assert not any(getattr(error, "maybe_enqueued", True) for _, error in report.errors)
    assert chunks() == 0


def test_each_status_is_its_own_answer() -> None:
    """No two of the table are the same, so that the manual says something of each."""
    assert len({dataclasses.astuple(answer) for answer in answers.BY_STATUS.values()}) == len(answers.BY_STATUS)
