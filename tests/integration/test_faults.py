"""Every answer that a queue can give, on the wire: the documented error, retried or not, none lost and none twice."""

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
    """A server to fail."""
    server = FaultyServer()
    install_settings(Settings(enqueue_seconds=0.5))
    with faults.connected(server):
        yield server
    server.close()


@pytest.fixture
def clock() -> Clock:
    """The time of the attempts."""
    return Clock()


def test_the_table_has_every_code_of_the_sdk() -> None:
    """No code of the two enumerations is missing, and none has another name."""
    codes = {code: name for name, code in taskqueue_pb.TaskQueueServiceError.ErrorCode.items() if code}
    rpc_errors = {code: name for name, code in remote_api_pb.RpcError.ErrorCode.items()}

    assert len(codes) == 48
    assert {code: answer.what for code, answer in answers.BY_CODE.items()} == codes
    assert {code: answer.what for code, answer in answers.BY_RPC_ERROR.items()} == rpc_errors


@each_answer
def test_an_answer_that_lasts(server: FaultyServer, clock: Clock, answer: Answer, fault: Fault, added: bool) -> None:
    """The error is the documented one, after a single attempt or several; a name of ours that is taken is success."""
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
    """What is retried is enqueued in the end, once, under the name of the first attempt."""
    server.fail(fault)

    task = add(clock)

    assert server.attempts == [[task.name]] * 2
    assert faults.names_of(server.tasks) == [task.name]
    assert task.was_enqueued or added


@each_answer
def test_a_name_of_the_callers(server: FaultyServer, clock: Clock, answer: Answer, fault: Fault, added: bool) -> None:
    """A caller's name is never success by being taken: if an attempt was cut off, the error says what that may mean."""
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
    """Of many calls none is reported as enqueued that the server doesn't have, and none is there twice."""
    # In real time, where the server is silent.
    monkeypatch.setattr(attempts, "MAX_RPC_SECONDS", 0.1)
    monkeypatch.setattr(default_api_stub, "DEADLINE_DELTA_SECONDS", 0.1)
    install_settings(Settings(enqueue_seconds=30))
    server.fail(fault, None)

    report = defer_many((call(sample.note, i) for i in range(3)), raise_errors=False)

    names = faults.names_of(server.tasks)
    assert len(set(names)) == len(names)
    # A name of ours that the server calls taken is believed to be: nobody else can have it.
    assert report.enqueued == (3 if answer.exists else len(names))
    assert report.enqueued + report.failed == 3
    assert report.failed == 0 or not answer.retried


def test_one_attempt_without_a_name(server: FaultyServer, clock: Clock) -> None:
    """With DEFERRED_ENQUEUE_SECONDS=0 the queue chooses the name, and nothing is tried again."""
    install_settings(Settings(enqueue_seconds=0))
    server.fail(Closed(added=True))

    with pytest.raises(EnqueueError) as caught:
        add(clock)

    assert caught.value.maybe_enqueued
    assert server.attempts == [[""]]
    assert add(clock).name == "chosen1"


def test_delays_grow_and_chance_shortens_them(server: FaultyServer, clock: Clock) -> None:
    """The bound of a delay doubles, and up to half of it is chance."""
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
    """A server that is silent costs one attempt, not the whole time."""
    # In real time, of which the SDK takes a second more than it is given.
    install_settings(Settings(enqueue_seconds=30))
    server.fail(Silent(), None)
    monkeypatch.setattr(attempts, "MAX_RPC_SECONDS", 0.1)

    assert defer(sample.note).was_enqueued
    assert len(server.attempts) == 2


def test_defer_async_over_the_wire(server: FaultyServer, caplog: pytest.LogCaptureFixture) -> None:
    """An enqueue that is under way gets over a closed connection by itself, and a refused one tells."""
    install_settings(Settings(enqueue_seconds=30))
    server.fail(Closed(added=True), None, Results(taskqueue_pb.TaskQueueServiceError.PERMISSION_DENIED))

    assert defer_async(sample.note).result(faults.BOUND_SECONDS).name == server.attempts[0][0]
    refused = defer_async(sample.note)
    with pytest.raises(EnqueueError, match="PermissionDeniedError"):
        refused.result(faults.BOUND_SECONDS)

    assert len(server.tasks) == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
