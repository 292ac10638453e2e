"""Tests of tasks that a test captures from a datastore transaction of the SDK's ndb and db."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.appengine.api import datastore
from google.appengine.ext import ndb, testbed

from deferred_middleware import DeferredMiddleware, defer
from deferred_middleware.testing import capture_tasks
from tests.support import sample

SIZES = {"small": 10, "large": 200_000, "huge": 3_000_000}


@pytest.fixture(autouse=True)
def bed() -> Iterator[None]:
    """Have the SDK's own datastore."""
    stubs = testbed.Testbed()
    stubs.activate()
    stubs.init_datastore_v3_stub()
    stubs.init_memcache_stub()
    stubs.init_taskqueue_stub()
    yield
    stubs.deactivate()


class Row(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """An entity."""


def work(data: bytes) -> None:
    """Use the datastore as a task may do, which needs that no transaction is open and that the datastore answers."""
    assert not ndb.in_transaction()
    assert not datastore.IsInTransaction()
    Row().put()
    ndb.transaction(lambda: Row().put())
    sample.ran.append((Row.query().count(), data))


def in_ndb(function: Callable[[], object]) -> None:
    """Call ``function`` in a transaction of ndb."""
    ndb.transaction(function, xg=True)


def in_db(function: Callable[[], object]) -> None:
    """Call ``function`` in a transaction of db."""
    datastore.RunInTransactionOptions(datastore.CreateTransactionOptions(xg=True), function)


def site(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [])
    return []


@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("within", [in_ndb, in_db])
@pytest.mark.parametrize("size", SIZES)
def test_a_task_of_a_transaction_runs(size: str, within: Any, transactional: bool, immediate: bool) -> None:
    """A payload of any size is captured, and the task runs outside of the transaction."""
    data = random.Random(1).randbytes(SIZES[size])
    with capture_tasks(DeferredMiddleware(site), immediate=immediate) as tasks:
        within(lambda: defer(work, data, _transactional=transactional))

        assert [task.args for task in tasks.enqueued] == [(data,)]
        assert len(tasks.pending) == (0 if immediate else 1)
        tasks.run_all()

    assert sample.ran == [(2, data)]


@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize("within", [in_ndb, in_db])
def test_no_task_comes_from_a_transaction_that_is_rolled_back(within: Any, immediate: bool) -> None:
    """Nothing is captured, and nothing runs."""

    def fail() -> None:
        defer(work, b"", _transactional=True)
        raise KeyError

    with capture_tasks(DeferredMiddleware(site), immediate=immediate) as tasks:
        with pytest.raises(KeyError):
            within(fail)
        tasks.assert_nothing_enqueued()

    assert sample.ran == []


def bad() -> None:
    """Fail."""
    raise LookupError("bad")


def test_the_error_of_an_immediate_task_comes_at_the_end() -> None:
    """The commit is done, so the error of the task is not one of the transaction."""
    reached = []

    def block() -> None:
        with capture_tasks(DeferredMiddleware(site), immediate=True) as tasks:
            in_ndb(lambda: defer(bad, _transactional=True))
            reached.append(len(tasks.pending))

    with pytest.raises(LookupError, match="bad"):
        block()
    assert reached == [1]
