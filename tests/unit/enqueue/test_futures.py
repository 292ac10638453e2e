"""Tests of ``defer_async``, with an engine that answers from other threads when the test allows it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub, apiproxy_stub_map, taskqueue
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as pb
from google.appengine.ext import ndb, testbed
from google.appengine.runtime import apiproxy_errors

from deferred_middleware import (
    DeferredMiddleware,
    EnqueueError,
    EnqueueFuture,
    Settings,
    UnpicklableArgumentError,
    call,
    defer_async,
)
from deferred_middleware.calls import payload
from deferred_middleware.config.process import install_settings
from deferred_middleware.enqueue import request_end
from deferred_middleware.enqueue.add import Add
from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
from tests.support import sample
from tests.support.delivering import Queued, request, task_environ

BOUND_SECONDS = 60


class Slow(apiproxy_stub.APIProxyStub):  # type: ignore[misc]
    """A taskqueue stub that gives set answers from its own thread while the gate is open."""

    THREADSAFE = True

    def __init__(self) -> None:
        super().__init__("taskqueue")
        self.gate = threading.Event()
        self.answers: list[Any] = []
        self.names: list[str] = []

    def MakeSyncCall(self, service: str, method: str, request: Any, response: Any, request_id: Any = None) -> None:
        """Wait for the gate, and give the next answer, or OK if there is none."""
        assert self.gate.wait(BOUND_SECONDS)
        self.names.append(request.add_request[0].task_name.decode())
        answer = self.answers.pop(0) if self.answers else pb.TaskQueueServiceError.OK
        if isinstance(answer, Exception):
            raise answer
        response.taskresult.add().result = answer


@pytest.fixture
def slow(engine: testbed.Testbed) -> Iterator[Slow]:
    """The engine. At the end, its gate opens for enqueues that are still under way."""
    stub = Slow()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    install_settings(Settings(enqueue_seconds=0))
    yield stub
    stub.gate.set()
    request_end.settle_request()


def test_it_is_under_way_until_the_queue_answers(slow: Slow) -> None:
    """Before the answer the future is not done and a timeout expires. After it, the result is the enqueued task."""
    future = defer_async(sample.note)
    assert not future.done()
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.01)

    slow.gate.set()

    task = future.result(timeout=BOUND_SECONDS)
    assert isinstance(future, EnqueueFuture)
    assert isinstance(task, EnqueuedTask)
    assert task.was_enqueued
    assert future.done()
    assert future.get_result() is task
    assert future.exception() is None


def test_an_engine_that_answers_at_once_is_done_at_once(queued: Queued) -> None:
    """With an engine in this process, the future is done when defer_async returns."""
    future = defer_async(sample.note, _queue="quick")

    assert future.done()
    assert [task.name for task in queued.in_queue("quick")] == [future.result().name]


def test_callbacks_are_called_with_it(slow: Slow) -> None:
    """A callback is called with the future once it is done, or at once if it is done already."""
    heard: list[EnqueueFuture] = []
    both = threading.Barrier(2)
    future = defer_async(sample.note)
    future.add_done_callback(heard.append)
    future.add_done_callback(lambda _: both.wait(BOUND_SECONDS))
    assert heard == []

    slow.gate.set()
    both.wait(BOUND_SECONDS)
    future.add_done_callback(heard.append)

    assert heard == [future, future]


def test_what_can_be_known_is_raised_at_once(slow: Slow) -> None:
    """An argument that can't be pickled raises in defer_async, and not in the future."""
    with pytest.raises(UnpicklableArgumentError):
        defer_async(sample.note, threading.Lock())


def test_a_failure_is_the_result(slow: Slow) -> None:
    """result() raises what defer() would raise, and exception() returns it."""
    slow.gate.set()
    slow.answers = [pb.TaskQueueServiceError.PERMISSION_DENIED]

    future = defer_async(sample.note)

    with pytest.raises(
        taskqueue.PermissionDeniedError, match=r"tests\.support\.sample/note was not enqueued"
    ) as caught:
        future.result(BOUND_SECONDS)
    assert isinstance(caught.value, EnqueueError)
    assert future.exception() is caught.value


def test_a_retry_goes_on_by_itself_under_the_same_name(slow: Slow) -> None:
    """An enqueue that nobody waits for is retried after a temporary failure, under the name of the first attempt."""
    install_settings(Settings(enqueue_seconds=60))
    slow.answers = [apiproxy_errors.DeadlineExceededError("slow"), pb.TaskQueueServiceError.TOMBSTONED_TASK]
    decided = threading.Event()
    future = defer_async(sample.note)
    future.add_done_callback(lambda _: decided.set())

    slow.gate.set()

    assert decided.wait(BOUND_SECONDS)
    assert future.result().name == slow.names[0]
    assert slow.names == [slow.names[0]] * 2


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("method", ["start", "finish"])
def test_a_fault_of_ours_is_an_outcome(slow: Slow, monkeypatch: pytest.MonkeyPatch, method: str, attempt: int) -> None:
    """Whoever waits gets the error of an attempt that can't be made, or whose answer can't be read."""
    install_settings(Settings(enqueue_seconds=60))
    slow.answers = [apiproxy_errors.DeadlineExceededError("slow")]
    slow.gate.set()
    original = getattr(Add, method)
    calls: list[object] = []

    def fail(self: Add, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == attempt:
            raise ZeroDivisionError("on purpose")
        return original(self, *args)

    monkeypatch.setattr(Add, method, fail)
    future = defer_async(sample.note)
    with pytest.raises(EnqueueError, match="on purpose"):
        future.result(timeout=BOUND_SECONDS)
    assert future not in request_end.UNDER_WAY


def test_a_stop_leaves_nobody_waiting(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while an enqueue starts is raised, and the enqueue is no longer under way."""

    def stop(self: Add) -> Any:
        raise KeyboardInterrupt

    before = set(request_end.UNDER_WAY)  # those of other tests may end at any time
    with monkeypatch.context() as patch:
        patch.setattr(Add, "start", stop)
        with pytest.raises(KeyboardInterrupt):
            defer_async(sample.note)
    assert before >= request_end.UNDER_WAY


def test_a_coroutine_awaits_it_without_blocking_its_loop(slow: Slow) -> None:
    """While one coroutine awaits the enqueue, another one can make the queue answer."""

    async def enqueues() -> taskqueue.Task:
        return await defer_async(sample.note)

    async def answers() -> None:
        slow.gate.set()

    async def both() -> Any:
        return await asyncio.wait_for(asyncio.gather(enqueues(), answers()), BOUND_SECONDS)

    task, _ = asyncio.run(both())
    assert task.was_enqueued


def test_a_cancelled_await_leaves_the_enqueue_alone(slow: Slow) -> None:
    """Cancelling a wait does not cancel the enqueue."""

    async def impatient(future: EnqueueFuture) -> None:
        await asyncio.wait_for(future, 0.01)

    future = defer_async(sample.note)
    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        asyncio.run(impatient(future))
    slow.gate.set()

    assert future.result(BOUND_SECONDS).was_enqueued


def test_a_tasklet_yields_it(slow: Slow) -> None:
    """In a tasklet of the SDK's ndb, yielding futures gives the tasks and doesn't block the event loop."""

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def enqueues() -> Any:
        task = yield defer_async(sample.note, 1)
        several = yield [defer_async(sample.note, 2), defer_async(sample.note, 3)]
        done = defer_async(sample.note, 4)
        done.result(BOUND_SECONDS)
        again = yield done
        raise ndb.Return([task, *several, again])

    future = enqueues()
    # Only the event loop opens the gate.
    ndb.eventloop.queue_call(None, slow.gate.set)
    tasks = future.get_result()

    assert [task.was_enqueued for task in tasks] == [True] * 4


def test_a_tasklet_gets_the_failure(slow: Slow) -> None:
    """A failure is raised at the yield."""
    slow.gate.set()
    slow.answers = [pb.TaskQueueServiceError.UNKNOWN_QUEUE]

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def enqueues() -> Any:
        try:
            yield defer_async(sample.note)
        except taskqueue.UnknownQueueError as error:
            raise ndb.Return(error) from None

    assert isinstance(enqueues().get_result(), EnqueueError)


def test_a_failure_that_nobody_asked_about_is_logged(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    """If a failed future is deleted and nobody has read the failure, an error with the call's name is logged."""
    slow.gate.set()
    slow.answers = [pb.TaskQueueServiceError.UNKNOWN_QUEUE]
    decided = threading.Event()

    defer_async(sample.note).add_done_callback(lambda _: decided.set())
    assert decided.wait(BOUND_SECONDS)
    request_end.settle_request()
    gc.collect()

    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert "tests.support.sample/note was not enqueued" in record.getMessage()


def test_a_failure_that_somebody_asked_about_is_not_logged(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    """A failure that the app has read is not logged."""
    slow.gate.set()
    slow.answers = [pb.TaskQueueServiceError.UNKNOWN_QUEUE]
    future = defer_async(sample.note)

    with pytest.raises(EnqueueError):
        future.result(BOUND_SECONDS)
    del future
    request_end.settle_request()
    gc.collect()

    assert caplog.records == []


def test_a_transactional_one_is_decided_when_it_returns(engine: testbed.Testbed, queued: Queued) -> None:
    """In a transaction, the task is added when defer_async returns, so the commit can't come before it."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()

    def transaction() -> bool:
        return defer_async(sample.note, _transactional=True).done()

    assert ndb.transaction(transaction)
    assert len(queued.tasks()) == 1
    with pytest.raises(taskqueue.BadTransactionStateError):
        defer_async(sample.note, _transactional=True)


def enqueues_in_vain(slow: Slow) -> None:
    """Start an enqueue that fails, and don't read its outcome."""
    slow.answers = [pb.TaskQueueServiceError.UNKNOWN_QUEUE]
    defer_async(sample.note)
    slow.gate.set()


def test_a_request_waits_for_what_it_started(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    """The middleware's response waits for the enqueues at its end, and an unread failure is logged."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        enqueues_in_vain(slow)
        return [b"parts ", b"of it"]

    response = request(DeferredMiddleware(app), task_environ(b"", "/page"))

    assert response.body == b"parts of it"
    assert not request_end.UNDER_WAY
    assert ["tests.support.sample/note was not enqueued" in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.parametrize("gone_through", [True, False])
def test_a_response_that_breaks_off_waits_too(slow: Slow, gone_through: bool) -> None:
    """The response waits for calls that it enqueues itself, even if it is not read to its end."""
    started = defer_async

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        started(sample.note, 1)

        def parts() -> Iterator[bytes]:
            yield b"one"
            started(sample.note, 2)
            slow.gate.set()
            yield b"two"

        return parts()

    response = iter(DeferredMiddleware(app)(task_environ(b"", "/page"), lambda *_: None))  # type: ignore[arg-type]
    assert [next(response), next(response)] == [b"one", b"two"]
    assert next(response, None) is None if gone_through else response.close() is None  # type: ignore[attr-defined]

    assert not request_end.UNDER_WAY
    assert len(slow.names) == 2


def test_a_request_that_raises_waits_too(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    """If the app raises, the middleware waits for its enqueues before it lets the exception through."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        enqueues_in_vain(slow)
        raise KeyError("oops")

    with pytest.raises(KeyError):
        DeferredMiddleware(app)(task_environ(b"", "/page"), unstarted)

    assert ["tests.support.sample/note was not enqueued" in r.getMessage() for r in caplog.records] == [True]


def test_a_response_of_another_request_is_left_alone(slow: Slow) -> None:
    """The enqueues of a request in another thread don't affect this request's response."""
    elsewhere = threading.Thread(target=lambda: defer_async(sample.note))
    elsewhere.start()
    elsewhere.join(BOUND_SECONDS)
    parts = [b"same"]

    app = DeferredMiddleware(lambda environ, start_response: parts)
    assert app(task_environ(b"", "/page"), unstarted) is parts
    slow.gate.set()


def test_a_task_that_enqueued_in_vain_has_failed(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    """If a task doesn't read the failure of its defer_async, it is retried, and its log record has the reason."""
    tested.append(slow)

    body = payload.dumps(call(in_vain), 5)
    response = request(DeferredMiddleware(unreachable), task_environ(body, f"/_cb/deferred/{__name__}/in_vain"))

    assert response.status == 500
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], taskqueue.UnknownQueueError)


def unstarted(*_: Any) -> Any:
    """A ``start_response`` that ignores its arguments."""


tested: list[Slow] = []


def in_vain() -> None:
    """A task that starts an enqueue that fails."""
    enqueues_in_vain(tested.pop())


def unreachable(environ: Any, start_response: Any) -> Iterable[bytes]:
    """An app that gets no request."""
    raise AssertionError("this request is a task's")
