"""For every answer of a queue the error and the retries are as documented, and no task is lost or doubled."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb
from google.appengine.runtime import default_api_stub

from deferred_middleware import DeferredError, EnqueueError, Settings, call, defer, defer_async, defer_many
from deferred_middleware.config.process import install_settings
from deferred_middleware.engines import answers
from deferred_middleware.engines.answers import Answer
from deferred_middleware.enqueue import add as adding
from deferred_middleware.enqueue import add as attempts
from deferred_middleware.enqueue import prepare
from deferred_middleware.enqueue.add import Timing
from tests.support import faults, sample
from tests.support.faults import Closed, Fault, FaultyServer, Results, Silent
from tests.support.queue_answers import each_answer, each_that_passes, sdk_type
from tests.support.timed_adds import Clock, add


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """Run a server that fails on demand."""
    server = FaultyServer()
    install_settings(Settings(enqueue_seconds=0.5))
    with faults.connected(server):
        yield server
    server.close()


@pytest.fixture
def clock() -> Clock:
    """Return a fake clock for the attempts."""
    return Clock()


def test_the_table_has_every_code_of_the_sdk() -> None:
    """The table has every code of the two enumerations, under its own name."""
    codes = {code: name for name, code in taskqueue_pb.TaskQueueServiceError.ErrorCode.items() if code}
    rpc_errors = {code: name for name, code in remote_api_pb.RpcError.ErrorCode.items()}

    assert len(codes) == 48
    assert {code: answer.what for code, answer in answers.BY_CODE.items()} == codes
    assert {code: answer.what for code, answer in answers.BY_RPC_ERROR.items()} == rpc_errors


@each_answer
def test_an_answer_that_lasts(server: FaultyServer, clock: Clock, answer: Answer, fault: Fault, added: bool) -> None:
    """If an answer lasts, the error and the number of attempts are as documented; a used generated name is success."""
    server.fail(fault, lasting=True)

    if answer.exists:
        assert add(clock).name == server.attempts[0][0]
        assert len(server.attempts) == 1
        return
    with pytest.raises(EnqueueError) as caught:
        add(clock)

    error = caught.value
    assert isinstance(error, DeferredError)
    assert isinstance(error, sdk_type(answer))
    assert str(error).startswith("tests.support.sample/note was not enqueued to queue 'default': ")
    assert error.maybe_enqueued is answer.maybe_enqueued
    assert ("may have the task" in str(error)) is answer.maybe_enqueued
    assert (len(server.attempts) > 1) is answer.retried
    assert len(clock.slept) == len(server.attempts) - 1
    assert clock.now < 0.5
    assert len({name for names in server.attempts for name in names}) == 1
    assert len(server.tasks) == added


@each_that_passes
def test_an_answer_that_passes(server: FaultyServer, clock: Clock, answer: Answer, fault: Fault, added: bool) -> None:
    """If a retried answer passes, the task is enqueued once, under the first attempt's name."""
    server.fail(fault)

    task = add(clock)

    assert server.attempts == [[task.name]] * 2
    assert faults.names_of(server.tasks) == [task.name]
    assert task.was_enqueued or added


@each_answer
def test_a_name_of_the_callers(server: FaultyServer, clock: Clock, answer: Answer, fault: Fault, added: bool) -> None:
    """A caller's name in use is never success; if an attempt was cut off, the error says what that may mean."""
    server.fail(fault)

    if answer.retried and not added:
        assert add(clock, _name="mine").name == "mine"
    else:
        with pytest.raises(EnqueueError, match="as task 'mine'") as caught:
            add(clock, _name="mine")
        assert ("may have the task" in str(caught.value)) is answer.maybe_enqueued
    assert faults.names_of(server.tasks) == (["mine"] if answer.retried else [])


@each_answer
def test_a_report_of_many(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, fault: Fault, added: bool
) -> None:
    """If an answer affects some of many calls, the report counts only tasks that exist, and no task exists twice."""
    # A silent server makes attempts wait in real time.
    monkeypatch.setattr(attempts, "MAX_RPC_SECONDS", 0.1)
    monkeypatch.setattr(default_api_stub, "DEADLINE_DELTA_SECONDS", 0.1)
    install_settings(Settings(enqueue_seconds=30))
    server.fail(fault, None)

    report = defer_many((call(sample.note, i) for i in range(3)), raise_errors=False)

    names = faults.names_of(server.tasks)
    assert len(set(names)) == len(names)
    # If the server says that a generated name exists, the task is ours: nobody else can have the name.
    assert report.enqueued == (3 if answer.exists else len(names))
    assert report.enqueued + report.failed == 3
    assert report.failed == 0 or not answer.retried


def test_one_attempt_without_a_name(server: FaultyServer, clock: Clock) -> None:
    """With DEFERRED_ENQUEUE_SECONDS=0 the queue generates the name, and nothing is retried."""
    install_settings(Settings(enqueue_seconds=0))
    server.fail(Closed(added=True))

    with pytest.raises(EnqueueError) as caught:
        add(clock)

    assert caught.value.maybe_enqueued
    assert server.attempts == [[""]]
    assert add(clock).name == "chosen1"


def test_delays_grow_and_chance_shortens_them(server: FaultyServer, clock: Clock) -> None:
    """The maximum delay doubles with each retry, and up to half of it is random."""
    install_settings(Settings(enqueue_seconds=60))
    server.fail(Closed(), lasting=True)
    chances = iter([0.0, 0.5, 0.999] * 20)
    timing = Timing(clock=lambda: clock.now, sleep=clock.sleep, chance=lambda: next(chances))

    with pytest.raises(EnqueueError, match=r"It was tried \d+ times"):
        adding.add(prepare.prepare(call(sample.note)), timing)

    assert clock.slept[:4] == pytest.approx([0.1, 0.15, 0.2002, 0.8])
    assert max(clock.slept) <= 5.0
    assert 55 < clock.now < 60


def test_an_attempt_leaves_time_for_others(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent server takes the time of one attempt, not the whole limit."""
    # This runs in real time; the SDK waits a second longer than its deadline.
    install_settings(Settings(enqueue_seconds=30))
    server.fail(Silent(), None)
    monkeypatch.setattr(attempts, "MAX_RPC_SECONDS", 0.1)

    assert defer(sample.note).was_enqueued
    assert len(server.attempts) == 2


def test_defer_async_over_the_wire(server: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
    """A pending defer_async retries by itself after a closed connection, and raises if it is refused."""
    install_settings(Settings(enqueue_seconds=30))
    server.fail(Closed(added=True), None, Results(taskqueue_pb.TaskQueueServiceError.PERMISSION_DENIED))

    assert defer_async(sample.note).result(faults.BOUND_SECONDS).name == server.attempts[0][0]
    refused = defer_async(sample.note)
    with pytest.raises(EnqueueError, match="PermissionDeniedError"):
        refused.result(faults.BOUND_SECONDS)

    assert len(server.tasks) == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
