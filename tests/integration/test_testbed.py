"""A test suite that uses the SDK's testbed, as the suites of apps that used ``google.appengine.ext.deferred`` do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.appengine.api import taskqueue
from google.appengine.ext import deferred as sdk_deferred
from google.appengine.ext import testbed

from deferred_middleware import call, defer, defer_async, defer_batch, defer_many
from deferred_middleware.compat import deferred as compat_deferred
from tests.support import sample


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stub of a testbed, in a process without DEFAULT_VERSION_HOSTNAME."""
    monkeypatch.delenv("DEFAULT_VERSION_HOSTNAME", raising=False)
    bed = testbed.Testbed()
    bed.activate()
    bed.init_taskqueue_stub()
    yield bed.get_stub(testbed.TASKQUEUE_SERVICE_NAME)
    bed.deactivate()


def one_by_one(count: int) -> None:
    """Defer calls one after the other."""
    for number in range(count):
        defer(sample.note, number)


def asynchronously(count: int) -> None:
    """Defer calls with defer_async, and wait for each."""
    for number in range(count):
        defer_async(sample.note, number).result()


def in_a_batch(count: int) -> None:
    """Defer calls in a batch."""
    with defer_batch():
        one_by_one(count)


def many(count: int) -> None:
    """Defer calls with defer_many."""
    defer_many(call(sample.note, number) for number in range(count))


def with_compat(count: int) -> None:
    """Defer calls with the replacement of the older library."""
    for number in range(count):
        compat_deferred.defer(sample.note, number)


@pytest.mark.parametrize("enqueue", [one_by_one, asynchronously, in_a_batch, many, with_compat])
def test_tasks_are_in_the_order_of_enqueueing(
    stub: Any, enqueue: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """get_filtered_tasks() returns the tasks in the order of enqueueing, also while a test has stopped the clock.

    The stub orders by the ETA, and tasks of the same ETA by their names.
    """
    moment = time.time()
    monkeypatch.setattr(time, "time", lambda: moment)
    sample.ran.clear()
    enqueue(25)

    for task in stub.get_filtered_tasks():
        compat_deferred.run(task.payload)

    assert [args for args, _ in sample.ran] == [(number,) for number in range(25)]


def test_names_differ_between_tests(stub: Any) -> None:
    """The names stay unique, so a task of an earlier test is never taken for one of this test."""
    tasks = [defer(sample.note) for _ in range(3)]

    assert len({task.name for task in tasks}) == 3
    assert sorted(str(task.name) for task in tasks) == [task.name for task in tasks]


@pytest.mark.parametrize("target", ["worker", "v1.worker", "0.v1.worker"])
@pytest.mark.parametrize("library", [sdk_deferred, compat_deferred])
def test_a_target_without_a_hostname_is_dropped(stub: Any, library: Any, target: str) -> None:
    """Without DEFAULT_VERSION_HOSTNAME the task is enqueued without its target, as with the SDK's library."""
    library.defer(sample.note, 1, _target=target)

    (task,) = stub.get_filtered_tasks()
    assert isinstance(task, taskqueue.Task)
    assert "Host" not in task.headers
