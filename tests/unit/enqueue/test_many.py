"""Tests of ``defer_many`` and its report."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, taskqueue
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as pb
from google.appengine.ext import ndb, testbed
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import EnqueueReport, NotAllEnqueuedError, OptionError, UnknownOptionError, call, defer_many
from deferred_middleware.enqueue.add import AddGroups
from deferred_middleware.enqueue.report import EnqueueStatus
from deferred_middleware.wire import protocol
from tests.support import sample
from tests.support.answering import Engine, whole

Code = pb.TaskQueueServiceError
ENQUEUED, THERE, FAILED = EnqueueStatus.ENQUEUED, EnqueueStatus.ALREADY_THERE, EnqueueStatus.FAILED


@pytest.fixture
def many(engine: testbed.Testbed) -> Engine:
    """The engine that receives the calls."""
    stub = Engine()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    return stub


def statuses(report: EnqueueReport) -> list[EnqueueStatus]:
    """Return each call's status."""
    return [result.status for result in report]


def test_many_calls_take_few_rpcs(many: Engine) -> None:
    """An RPC has up to a hundred calls, at most the allowed number of RPCs run at once, and the report is in order."""
    barrier = threading.Barrier(3)

    def answer(adds: Sequence[Any]) -> list[int]:
        barrier.wait(60)  # three RPCs must be under way to pass
        return [Code.OK] * len(adds)

    many.answer = answer
    report = defer_many((call(sample.note, i) for i in range(900)), parallel=3)

    assert [len(names) for names in many.rpcs] == [100] * 9
    assert many.at_once == 3
    assert (len(report), report.enqueued, report.failed) == (900, 900, 0)
    assert statuses(report) == [ENQUEUED] * 900
    assert report.ok
    assert "900 calls, 900 enqueued" in repr(report)


def test_calls_are_grouped_by_queue(many: Engine) -> None:
    """Each RPC is for one queue, and the options of defer_many apply to calls that don't set them."""
    calls = [call(sample.note, i, _queue="slow") if i % 3 else call(sample.note, i) for i in range(250)]

    defer_many(calls, _queue="quick", _countdown=5)

    assert sorted(len(names) for names in many.rpcs) == [66, 84, 100]
    assert sorted(many.tasks.values()) == ["quick"] * 84 + ["slow"] * 166


def test_an_rpc_is_not_too_large(many: Engine) -> None:
    """Large tasks are split over more RPCs, each below the size limit."""
    defer_many(call(sample.note, "x" * 90_000) for _ in range(100))

    assert sum(map(len, many.rpcs)) == 100
    assert len(many.rpcs) == 3
    assert max(many.sizes) < 4 << 20


def test_an_endless_generator_is_gone_through_as_the_queue_takes_it(many: Engine) -> None:
    """A generator is read only as far ahead of the queue as calls are sent or waiting."""
    ahead: list[int] = []

    def endless() -> Iterator[Any]:
        for number in itertools.count():
            ahead.append(number - len(many.tasks))
            if number == 5_000:
                return
            yield call(sample.note, number)

    report = defer_many(endless(), parallel=2)

    assert report.enqueued == 5_000
    assert max(ahead) <= 400


def test_many_queues_are_held_back_together(many: Engine) -> None:
    """Calls for many queues don't accumulate without limit: if too many wait, the largest group is sent."""
    waiting: list[int] = []

    def spread() -> Iterator[Any]:
        for number in range(5000):
            waiting.append(number - len(many.tasks))
            yield call(sample.note, number, _queue=f"q{number % 500}")

    assert defer_many(spread(), parallel=1).enqueued == 5000
    assert max(waiting) < 1300


def test_each_calls_fate_is_told_in_order(many: Engine) -> None:
    """The report distinguishes enqueued, existing, tombstoned, rejected and unprepared calls, with their reasons."""
    fates = {b"there": Code.TASK_ALREADY_EXISTS, b"gone": Code.TOMBSTONED_TASK, b"bad": Code.INVALID_URL}
    many.answer = lambda adds: [fates.get(add.task_name, Code.OK) for add in adds]
    calls = [
        call(sample.note, 0),
        call(sample.note, 1, _name="there"),
        call(sample.note, 2, _name="gone"),
        call(sample.note, threading.Lock()),
        call(sample.note, 4, _name="bad"),
        call(sample.note, 5),
        "no call",
    ]

    report = defer_many(calls, raise_errors=False)  # type: ignore[arg-type]

    assert statuses(report) == [ENQUEUED, THERE, THERE, FAILED, FAILED, ENQUEUED, FAILED]
    assert (report.enqueued, report.already_there, report.failed) == (2, 2, 3)
    assert report[1].reason == "a task of this name waits in its queue"
    assert report[-5].reason == "a task of this name was in its queue before"
    assert "lock" in report[3].reason
    assert report[4].reason.startswith("InvalidUrlError")
    assert "'default'" in report[4].reason
    assert "takes calls" in report[6].reason
    assert [result.index for result in report.failures()] == [3, 4, 6]
    assert [index for index, _ in report.errors] == [3, 6, 4]
    assert isinstance(dict(report.errors)[4], taskqueue.InvalidUrlError)
    assert not report.ok


def test_what_failed_is_raised_at_the_end(many: Engine) -> None:
    """By default, an error is raised after all other calls are enqueued, and its report says which calls are not."""
    many.answer = lambda adds: [Code.PERMISSION_DENIED if add.task_name == b"n3" else Code.OK for add in adds]

    with pytest.raises(NotAllEnqueuedError, match=r"1 of 250 calls was not enqueued.*n3") as caught:
        defer_many(call(sample.note, i, _name=f"n{i}") for i in range(250))

    assert isinstance(caught.value, taskqueue.Error)
    assert [result.index for result in caught.value.report.failures()] == [3]
    assert isinstance(caught.value.__cause__, taskqueue.PermissionDeniedError)
    assert len(many.tasks) == 249


def test_a_failed_rpc_stops_no_other(many: Engine) -> None:
    """An RPC that fails as a whole fails only its own calls."""
    many.answer = lambda adds: [Code.OK] * len(adds) if adds[0].queue_name != b"nope" else unknown_queue()

    def unknown_queue() -> list[int]:
        raise whole(Code.UNKNOWN_QUEUE)

    calls = [call(sample.note, i, _queue="nope" if i % 2 else "quick") for i in range(1000)]
    report = defer_many(calls, raise_errors=False)

    assert statuses(report) == [ENQUEUED, FAILED] * 500
    assert len(many.rpcs) == 10  # after UNKNOWN_QUEUE the tasks are not tried one by one
    assert len(report.errors) == 100
    assert {result.reason for result in report.failures()} == {report[1].reason}


def test_a_refused_task_does_not_keep_out_the_others(many: Engine) -> None:
    """If the platform skips tasks because it rejects another one, they are added in the next attempt."""

    def answer(adds: Sequence[Any]) -> list[int]:
        bad = [add.task_name == b"bad" for add in adds]
        return [Code.INVALID_ETA if b else Code.SKIPPED for b in bad] if any(bad) else [Code.OK] * len(adds)

    many.answer = answer
    report = defer_many((call(sample.note, i, _name="bad" if i == 7 else None) for i in range(100)), raise_errors=False)

    assert [result.index for result in report.failures()] == [7]
    assert report.enqueued == 99
    assert [len(names) for names in many.rpcs] == [100, 99]


def test_a_task_that_fails_its_whole_rpc_is_found(many: Engine) -> None:
    """If the queue doesn't say which task it rejects, the tasks are added one by one."""

    def answer(adds: Sequence[Any]) -> list[int]:
        if any(add.task_name == b"bad" for add in adds):
            raise whole(Code.INVALID_REQUEST)
        return [Code.OK] * len(adds)

    many.answer = answer
    report = defer_many((call(sample.note, i, _name="bad" if i == 3 else None) for i in range(5)), raise_errors=False)

    assert statuses(report) == [ENQUEUED] * 3 + [FAILED, ENQUEUED]
    assert [len(names) for names in many.rpcs] == [5, 1, 1, 1, 1, 1]


def test_a_task_alone_is_not_looked_for(many: Engine) -> None:
    """If a single task makes its RPC fail, that is the task. A queue that doesn't exist is the fault of no task."""
    many.answer = _refuse
    report = defer_many([call(sample.note)], raise_errors=False)
    assert (statuses(report), [len(names) for names in many.rpcs]) == ([FAILED], [1])

    many.rpcs.clear()
    report = defer_many([call(sample.note, i) for i in range(2)], raise_errors=False)
    assert (statuses(report), [len(names) for names in many.rpcs]) == ([FAILED] * 2, [2, 1, 1])


def _refuse(adds: Sequence[Any]) -> list[int]:
    raise whole(Code.INVALID_REQUEST)


def test_a_retry_sends_what_is_missing_under_the_same_names(many: Engine) -> None:
    """A retry sends only the tasks that were not added, under the same names, so none is added twice."""
    first = iter([True])

    def answer(adds: Sequence[Any]) -> list[int]:
        if next(first, False):
            return [Code.TRANSIENT_ERROR if i % 2 else Code.OK for i in range(len(adds))]
        return [Code.OK] * len(adds)

    many.answer = answer
    report = defer_many(call(sample.note, i) for i in range(10))

    assert report.enqueued == len(many.tasks) == 10
    assert many.rpcs[1] == many.rpcs[0][1::2]


def test_a_name_twice_is_there_already(many: Engine) -> None:
    """Two calls with the same name are sent in different RPCs: one is enqueued and one is already there."""
    report = defer_many([call(sample.note, i, _name="same") for i in range(2)], parallel=1)

    assert statuses(report) == [ENQUEUED, THERE]


def test_calls_that_raise_stop_the_stream_and_nothing_else(many: Engine) -> None:
    """If the generator raises, the earlier calls are enqueued, and its exception is the cause of the error."""

    def breaks() -> Iterator[Any]:
        yield from (call(sample.note, i) for i in range(150))
        raise KeyError("row 150")

    with pytest.raises(NotAllEnqueuedError, match=r"further calls were not read because.*row 150") as caught:
        defer_many(breaks())
    report = defer_many(breaks(), raise_errors=False)

    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.report.enqueued == 150
    assert isinstance(report.stopped_by, KeyError)
    assert not report.ok


def test_progress_is_told_after_each_rpc(many: Engine) -> None:
    """The progress function gets the current report after each RPC, in the thread that called defer_many."""
    seen: list[tuple[int, int]] = []

    defer_many(
        (call(sample.note, i) for i in range(250)),
        parallel=1,
        progress=lambda report: seen.append((report.enqueued, threading.get_ident())),
    )

    assert seen == [(enqueued, threading.get_ident()) for enqueued in (100, 200, 250)]


def test_calls_of_a_transaction_go_with_it(engine: testbed.Testbed) -> None:
    """With _transactional, each call is part of the transaction, and a rollback removes them all."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()
    stub = engine.get_stub("taskqueue")

    def transaction(fail: bool) -> None:
        assert defer_many((call(sample.note, i) for i in range(5)), _transactional=True).enqueued == 5
        if fail:
            raise ndb.Rollback

    ndb.transaction(lambda: transaction(fail=True))
    assert stub.get_filtered_tasks() == []
    ndb.transaction(lambda: transaction(fail=False))
    assert len(stub.get_filtered_tasks()) == 5


def test_wrong_arguments_are_refused(many: Engine) -> None:
    """Invalid arguments of defer_many raise before the first call is read."""
    with pytest.raises(OptionError):
        defer_many([], _queue="no queue's name")
    with pytest.raises(UnknownOptionError, match="_queue"):
        defer_many([], _queu="quick")  # type: ignore[call-arg] # the wrong option is the test
    with pytest.raises(TypeError, match="has no argument chunk"):
        defer_many([], chunk=100)  # type: ignore[call-arg] # the wrong argument is the test
    with pytest.raises(ValueError, match="parallel=0"):
        defer_many([], parallel=0)


def test_a_report_stays_small(many: Engine) -> None:
    """A report keeps only the first thousand different reasons."""
    report = EnqueueReport()
    for number in range(3000):
        report._fail(report._next(), ValueError(f"reason {number}"))

    assert report[999].reason == "ValueError: reason 999"
    assert report[2999].reason == "another reason than the first 1,000 ones"
    assert (len(report._reasons), len(report.errors)) == (1001, 100)


class Sized:
    """A prepared call, as far as groups look at it."""

    def __init__(self, queue: str, size_bytes: int, name: str | None = None) -> None:
        self.queue, self.size_bytes = queue, size_bytes
        self.call = call(sample.note, _name=name)


@pytest.mark.parametrize(
    ("sizes", "last", "sent_bytes"),
    [
        ([10] * 1000, ("queue2", 1), 501),
        ([protocol.MAX_ADD_BYTES] * 4, ("other", 1), protocol.MAX_ADD_BYTES),
    ],
    ids=["a thousand calls", "four times the bytes of an RPC"],
)
def test_only_so_many_calls_wait_for_their_group(sizes: list[int], last: tuple[str, int], sent_bytes: int) -> None:
    """A thousand calls wait, or as many bytes as four RPCs have; one more sends the group with the most bytes."""
    groups: AddGroups[int] = AddGroups()
    queues = [f"queue{number % 20}" for number in range(len(sizes))]

    for number, (queue, size_bytes) in enumerate(zip(queues, sizes, strict=True)):
        assert groups.add(Sized(queue, size_bytes), number) == ()  # type: ignore[arg-type]
    (sent,) = groups.add(Sized(*last), -1)  # type: ignore[arg-type]

    assert sent.size_bytes == sent_bytes
    assert len(sent.prepared) + sum(len(group.prepared) for group in groups.rest()) == len(sizes) + 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 95_000), st.none() | st.sampled_from("xyz"))))
def test_groups_lose_nothing_and_keep_the_bounds(calls: list[tuple[str, int, str | None]]) -> None:
    """Each call is in exactly one group, in order within its queue, and no group exceeds the limits."""
    groups: AddGroups[int] = AddGroups()
    made = [Sized(*facts) for facts in calls]
    left = [group for number, fake in enumerate(made) for group in groups.add(fake, number)]  # type: ignore[arg-type]
    left += list(groups.rest())

    for queue in "abc":
        gone = [tag for group in left if group.prepared[0].queue == queue for tag in group.tags]
        assert gone == [number for number, facts in enumerate(calls) if facts[0] == queue]
    for group in left:
        names = [prepared.call.options.name for prepared in group.prepared if prepared.call.options.name]
        assert len(names) == len(set(names))
        assert len(group.prepared) <= protocol.MAX_TASKS_PER_ADD
        assert sum(prepared.size_bytes for prepared in group.prepared) <= protocol.MAX_ADD_BYTES
