"""Tests of defer_batch and DEFERRED_COALESCE."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, taskqueue
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as pb
from google.appengine.ext import ndb, testbed

from deferred_middleware import (
    DeferredMiddleware,
    EnqueueError,
    EnqueueFuture,
    NotAllEnqueuedError,
    Settings,
    UnpicklableArgumentError,
    call,
    defer,
    defer_async,
    defer_batch,
)
from deferred_middleware.calls import payload
from deferred_middleware.config.process import install_settings
from deferred_middleware.enqueue import batch, request_end
from tests.support import sample
from tests.support.answering import Engine
from tests.support.delivering import request, task_environ

Code = pb.TaskQueueServiceError
BOUND_SECONDS = 60


@pytest.fixture
def many(engine: testbed.Testbed) -> Engine:
    """The engine that receives the calls."""
    stub = Engine()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    return stub


def test_calls_leave_together_at_the_end(many: Engine) -> None:
    """The calls are sent at the end of the block, one RPC for each queue, and the returned tasks are enqueued then."""
    with defer_batch() as batch:
        tasks = [defer(sample.note, i) for i in range(3)]
        future = defer_async(sample.note, 3)
        other = defer(sample.note, 4, _queue="quick")
        assert len(batch) == 5
        assert many.rpcs == []
        assert not future.done()

    assert sorted(map(len, many.rpcs)) == [1, 4]
    assert all(task.was_enqueued for task in [*tasks, other])
    assert future.done()
    assert future.result().was_enqueued
    assert batch.report is not None
    assert batch.report.enqueued == 5


def test_a_block_that_raises_sends_nothing(many: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """If the block raises, no call is sent. Its futures have the reason, and a warning has the number of calls."""
    with pytest.raises(KeyError), defer_batch():  # noqa: PT012 - the test is about the block
        defer(sample.note, 1)
        future = defer_async(sample.note, 2)
        raise KeyError("oops")

    assert many.rpcs == []
    with pytest.raises(EnqueueError, match="the batch or the request around it failed") as caught:
        future.result()
    assert isinstance(caught.value.__cause__, KeyError)
    assert [record.getMessage()[:23] for record in caplog.records] == ["2 deferred calls were n"]


def test_an_argument_is_pickled_where_it_is_deferred(many: Engine) -> None:
    """An invalid call raises inside the block, and later changes of an argument have no effect."""
    bodies: list[bytes] = []

    def answer(adds: Any) -> list[int]:
        bodies.extend(add.body for add in adds)
        return [Code.OK] * len(adds)

    many.answer = answer
    value = ["before"]
    with defer_batch():
        with pytest.raises(UnpicklableArgumentError):
            defer(sample.note, threading.Lock())
        defer(sample.note, value)
        value[0] = "after"

    assert payload.loads(bodies[0]).args == (["before"],)


def test_what_is_not_enqueued_is_raised_at_the_end(many: Engine) -> None:
    """A taken name fails the batch. The other calls are enqueued, and each future has its own outcome."""
    many.answer = lambda adds: [Code.TASK_ALREADY_EXISTS if a.task_name == b"taken" else Code.OK for a in adds]

    failed = pytest.raises(NotAllEnqueuedError, match="1 of 3 calls was not enqueued")
    with failed as caught, defer_batch() as batch:
        defer(sample.note, 1)
        taken = defer_async(sample.note, 2, _name="taken")
        fine = defer_async(sample.note, 3)

    assert caught.value.report is batch.report
    assert isinstance(caught.value.__cause__, taskqueue.TaskAlreadyExistsError)
    with pytest.raises(taskqueue.TaskAlreadyExistsError):
        taken.result()
    assert fine.result().was_enqueued


def test_an_inner_batch_leaves_with_the_outer_one(many: Engine) -> None:
    """The calls of an inner batch are sent with the outer one. An inner batch that raises drops only its own calls."""
    with defer_batch():
        defer(sample.note, 1)
        with defer_batch():
            inner = defer_async(sample.note, 2)
        with pytest.raises(KeyError), defer_batch():  # noqa: PT012 - the test is about the block
            defer(sample.note, 3)
            raise KeyError
        assert many.rpcs == []
        with pytest.raises(RuntimeError, match="leaves at the end of its defer_batch"):
            inner.result()

    assert [len(names) for names in many.rpcs] == [2]
    assert inner.done()


def test_each_call_of_an_inner_batch_leaves_with_the_outer_one(many: Engine) -> None:
    """An inner batch with several calls hands all of them to the outer batch, in order."""
    with defer_batch() as outer:
        with defer_batch() as inner:
            tasks = [defer(sample.note, 1), defer(sample.note, 2)]
            future = defer_async(sample.note, 3)
        assert len(outer) == 3
        assert len(inner) == 0
        assert inner.report is None
        assert not any(task.was_enqueued for task in tasks)

    assert [len(names) for names in many.rpcs] == [3]
    assert [task.name for task in tasks] == many.rpcs[0][:2]
    assert all(task.was_enqueued for task in tasks)
    assert future.result(BOUND_SECONDS).was_enqueued


def test_an_async_batch_is_what_its_block_gets(many: Engine) -> None:
    """``async with defer_batch() as batch`` gives the batch, with its length and, at the end, its report."""

    async def gathers() -> defer_batch:
        async with defer_batch() as batch:
            defer(sample.note, 1)
            assert len(batch) == 1
        return batch

    batch = asyncio.run(gathers())

    assert isinstance(batch, defer_batch)
    assert batch.report is not None
    assert batch.report.ok


def test_a_batch_cannot_be_entered_twice_at_a_time(many: Engine) -> None:
    """Entering an open batch is an error that loses no call; after its end the batch can be used again."""
    batch = defer_batch()
    with batch:
        defer(sample.note, 1)
        with pytest.raises(RuntimeError, match="entered already"), batch:
            pass
        defer(sample.note, 2)
    assert [len(names) for names in many.rpcs] == [2]

    with batch:
        defer(sample.note, 3)
    assert [len(names) for names in many.rpcs] == [2, 1]
    defer(sample.note, 4)
    assert [len(names) for names in many.rpcs] == [2, 1, 1]


def test_waiting_inside_would_wait_for_itself(many: Engine) -> None:
    """Asking for a result inside the block raises an error, which says that the result comes after the block."""
    with defer_batch():
        future = defer_async(sample.note)
        for ask in (future.result, future.get_result, future.exception, future.wait, future.__await__):
            with pytest.raises(RuntimeError, match=r"tests\.support\.sample/note leaves at the end of its defer_batch"):
                ask()

    assert future.result().was_enqueued


def test_an_async_batch_does_not_block_the_loop(many: Engine) -> None:
    """At the end of an async block, other coroutines run while the RPC is under way."""
    gate = threading.Event()

    def answer(adds: Any) -> list[int]:
        assert gate.wait(BOUND_SECONDS)
        return [Code.OK] * len(adds)

    many.answer = answer

    async def gathers() -> EnqueueFuture:
        async with defer_batch():
            defer(sample.note, 1)
            return defer_async(sample.note, 2)

    async def opens() -> None:
        gate.set()

    async def both() -> Any:
        return await asyncio.wait_for(asyncio.gather(gathers(), opens()), BOUND_SECONDS)

    future, _ = asyncio.run(both())

    assert future.done()
    assert [len(names) for names in many.rpcs] == [2]


def test_an_async_block_that_raises_sends_nothing(many: Engine) -> None:
    """If an async block raises, no call is sent."""

    async def raises() -> None:
        async with defer_batch():
            defer(sample.note)
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(raises())

    assert many.rpcs == []


def test_calls_of_a_transaction_do_not_wait(engine: testbed.Testbed) -> None:
    """A transactional call is added to its transaction at once, because the transaction may end before the batch."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()

    with defer_batch() as batch:
        ndb.transaction(lambda: defer(sample.note, _transactional=True))
        assert len(batch) == 0

    assert len(engine.get_stub("taskqueue").get_filtered_tasks()) == 1


def test_a_thread_that_outlives_the_block_enqueues_at_once(many: Engine) -> None:
    """A call from the block's context after its end is enqueued at once."""
    import contextvars

    with defer_batch():
        context = contextvars.copy_context()

    context.run(defer, sample.note)

    assert len(many.tasks) == 1


def test_an_empty_batch_asks_nobody(many: Engine) -> None:
    """A block without calls sends no RPC."""
    with defer_batch():
        pass

    assert many.rpcs == []


class App:
    """A WSGI app that runs a given function."""

    def __init__(self, work: Any) -> None:
        self.work = work

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Run the function, and answer."""
        start_response("200 OK", [("Content-Type", "text/plain")])
        self.work()
        return [b"ok"]


def coalesced(work: Any) -> None:
    """Make a request that runs ``work`` with DEFERRED_COALESCE."""
    settings = Settings(coalesce=True)
    install_settings(settings)
    response = request(DeferredMiddleware(App(work), settings=settings), task_environ(b"", "/page"))
    assert response.body == b"ok"


def test_a_requests_calls_coalesce(many: Engine) -> None:
    """With the setting, a request's defer_async calls are sent together, and the response waits for them at its end."""

    def work() -> None:
        for number in range(150):
            defer_async(sample.note, number)
        defer(sample.note, "at once")
        assert [len(names) for names in many.rpcs] == [1]

    coalesced(work)

    assert sorted(map(len, many.rpcs)) == [1, 50, 100]
    assert not request_end.UNDER_WAY


def test_who_asks_for_a_result_lets_them_leave(many: Engine) -> None:
    """Waiting for a result inside the request sends the collected calls."""

    def work() -> None:
        first = defer_async(sample.note, 1)
        second = defer_async(sample.note, 2)
        assert second.result(BOUND_SECONDS).was_enqueued
        assert first.result(BOUND_SECONDS).was_enqueued
        defer_async(sample.note, 3)

    coalesced(work)

    assert [len(names) for names in many.rpcs] == [2, 1]


def test_a_failure_is_logged(many: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A coalesced call that is not enqueued is logged as an error with its name."""
    many.answer = lambda adds: [Code.PERMISSION_DENIED] * len(adds)

    coalesced(lambda: defer_async(sample.note))

    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "tests.support.sample/note was not enqueued" in record.getMessage()


def test_a_request_that_raises_sends_none(many: Engine) -> None:
    """If the app raises, its coalesced calls are not sent."""

    def work() -> None:
        defer_async(sample.note)
        raise KeyError("oops")

    with pytest.raises(KeyError):
        coalesced(work)

    assert many.rpcs == []


def test_a_request_that_raises_reports_its_coalesced_calls(many: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The calls that are not sent are logged with their number, and their futures end with the app's error."""
    futures: list[EnqueueFuture] = []
    error = KeyError("oops")

    def work() -> None:
        futures.extend([defer_async(sample.note, 1), defer_async(sample.note, 2)])
        raise error

    with pytest.raises(KeyError):
        coalesced(work)

    assert many.rpcs == []
    assert "2 deferred calls were not enqueued, because the batch or the request" in caplog.text
    for future in futures:
        assert future.done()
        with pytest.raises(EnqueueError) as caught:
            future.result(BOUND_SECONDS)
        assert caught.value.__cause__ is error
    assert not request_end.UNDER_WAY


enqueues: list[Any] = []


def task(fails: bool) -> None:
    """A task that enqueues a call."""
    enqueues.append(defer_async(sample.note))
    if fails:
        raise KeyError("oops")


@pytest.mark.parametrize(
    ("fails", "code", "rpcs", "status"),
    [
        (False, Code.OK, [1], 200),
        (False, Code.PERMISSION_DENIED, [1], 500),
        (True, Code.OK, [], 500),
    ],
)
def test_a_task_coalesces_too(many: Engine, fails: bool, code: int, rpcs: list[int], status: int) -> None:
    """A task's calls are sent when it returns. The task fails if they fail. A failed task's calls are not sent."""
    many.answer = lambda adds: [code] * len(adds)
    settings = Settings(coalesce=True)
    body = payload.dumps(call(task, fails), 5)

    response = request(
        DeferredMiddleware(App(None), settings=settings), task_environ(body, f"/_cb/deferred/{__name__}/task")
    )
    enqueues.clear()

    assert [len(names) for names in many.rpcs] == rpcs
    assert response.status == status


def leave_two() -> list[EnqueueFuture]:
    """Defer two calls, the second in a batch inside."""
    futures = [defer_async(sample.note, 1), defer_async(sample.note, 2)]
    with defer_batch() as inner:
        futures.append(defer_async(sample.note, 3))
        assert batch.Batch()  # also an empty batch is one
        batch.drop_request(ValueError("an error page"))
        assert len(inner) == 1
    return futures


def test_an_error_page_drops_what_the_request_has_collected(many: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The calls that wait for the end of the request are not enqueued; those of a batch inside it are."""
    with batch.RequestBatch() as collected, caplog.at_level(logging.WARNING):
        futures = leave_two()
        assert len(collected) == 0

    assert [len(names) for names in many.rpcs] == [1]
    for future in futures[:2]:
        with pytest.raises(EnqueueError, match="the batch or the request around it failed") as caught:
            future.result(BOUND_SECONDS)
        assert isinstance(caught.value.__cause__, ValueError)
    assert futures[2].result(BOUND_SECONDS).was_enqueued
    assert "2 deferred calls were not enqueued" in caplog.text


def test_one_dropped_call_is_told_in_the_singular(many: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The warning counts the calls."""
    with batch.RequestBatch(), caplog.at_level(logging.WARNING):
        future = defer_async(sample.note, 1)
        batch.drop_request(ValueError("an error page"))

    assert isinstance(future.exception(BOUND_SECONDS), EnqueueError)
    assert "1 deferred call was not enqueued" in caplog.text


def test_without_a_request_there_is_nothing_to_drop(many: Engine) -> None:
    """A batch outside of a request is not dropped by an error page."""
    batch.drop_request(ValueError("an error page"))
    with defer_batch() as outside:
        task = defer(sample.note, 1)
        batch.drop_request(ValueError("an error page"))
        assert len(outside) == 1

    assert task.was_enqueued


class FailureHook:
    """A hook that keeps the errors of failures."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def on_failure(self, failure: Any) -> None:
        """Keep the error."""
        self.errors.append(failure.error)


def test_a_failed_enqueue_that_a_task_does_not_wait_for_is_a_failure_of_the_task(many: Engine) -> None:
    """The hook gets the error of the enqueue, and the queue a 500."""
    many.answer = lambda adds: [Code.PERMISSION_DENIED] * len(adds)
    hook = FailureHook()
    body = payload.dumps(call(task, False), 5)

    response = request(
        DeferredMiddleware(App(None), hooks=[hook]), task_environ(body, f"/_cb/deferred/{__name__}/task")
    )
    enqueues.clear()

    assert response.status == 500
    (error,) = hook.errors
    assert isinstance(error, EnqueueError)


def test_plain_calls_of_a_batch_in_a_coalescing_request_are_enqueued(many: Engine) -> None:
    """The calls of a defer_batch() are enqueued when the batch ends, whatever the request does with others."""
    futures: list[EnqueueFuture] = []

    def work() -> None:
        futures.append(defer_async(sample.note, "of the request"))
        with defer_batch() as batch:
            task = defer(sample.note, "plain")
            futures.append(defer_async(sample.note, "asynchronous"))
        assert task.was_enqueued
        assert batch.report is not None
        assert len(batch.report) == 2
        assert sum(map(len, many.rpcs)) == 2

    coalesced(work)

    assert sum(map(len, many.rpcs)) == 3
    assert all(future.result(BOUND_SECONDS).was_enqueued for future in futures)


def test_nested_batches_in_a_coalescing_request_leave_with_the_outer_batch(many: Engine) -> None:
    """An inner batch leaves with the outer one, not with the request."""

    def work() -> None:
        with defer_batch() as outer:
            with defer_batch():
                inner_task = defer(sample.note, 1)
            assert many.rpcs == []
            outer_task = defer(sample.note, 2)
        assert inner_task.was_enqueued
        assert outer_task.was_enqueued
        assert outer.report is not None
        assert len(outer.report) == 2

    coalesced(work)

    assert list(map(len, many.rpcs)) == [2]
