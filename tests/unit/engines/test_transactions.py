"""Tests of tasks in the transactions of the SDK's ndb and db, on the SDK's own stubs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import pytest
from google.appengine.api import datastore, datastore_errors, taskqueue
from google.appengine.ext import db, ndb, testbed

from deferred_middleware import DeferredError, OptionError, defer
from deferred_middleware.calls import payload
from deferred_middleware.engines import transactions
from deferred_middleware.errors.sdk import CrossGroupError, TransactionError, TransactionLimitError
from deferred_middleware.wire import overflow
from tests.support import sample
from tests.support.delivering import Queued


class Counter(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """Something that transactions of ndb change."""

    count = ndb.IntegerProperty(default=0)


class DbCounter(db.Model):  # type: ignore[misc] # the SDK has no types
    """Something that transactions of db change."""

    count = db.IntegerProperty(default=0)


@pytest.fixture(autouse=True)
def stored(engine: testbed.Testbed) -> testbed.Testbed:
    """Have a datastore."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()
    return engine


def in_ndb(function: Callable[[], object], *, xg: bool = True) -> object:
    """Run ``function`` in a transaction of ndb."""
    return ndb.transaction(function, xg=xg)


def in_db(function: Callable[[], object], *, xg: bool = True) -> object:
    """Run ``function`` in a transaction of db."""
    return db.run_in_transaction_options(db.create_transaction_options(xg=xg), function)


both = pytest.mark.parametrize("run", [in_ndb, in_db])
either_size = pytest.mark.parametrize("size", [10, 200_000, 1_500_000])


def kept() -> list[Any]:
    """Return what there is of payloads in the datastore."""
    return list(datastore.Query(overflow.KIND, namespace="").Run())


@both
@either_size
@pytest.mark.parametrize("transactional", [True, "auto"])
def test_committed_means_enqueued(run: Any, size: int, transactional: object, queued: Queued) -> None:
    """A task, and its payload if that is large, come with the commit and not before."""

    def work() -> None:
        Counter(id="c", count=1).put() if run is in_ndb else DbCounter(key_name="c", count=1).put()
        defer(sample.note, os.urandom(size), _transactional=transactional)
        assert queued.tasks() == []

    run(work)

    body = queued.one().payload
    reference = overflow.Reference.parse(body, 2**31)
    if reference is not None:
        body = overflow.fetch(reference)
    assert len(payload.loads(body).args[0]) == size
    assert len(kept()) == (0 if reference is None else reference.chunks)


@both
@either_size
def test_rolled_back_means_not_enqueued(run: Any, size: int, queued: Queued) -> None:
    """Neither the task nor its payload is left of a transaction that is rolled back."""

    def work() -> None:
        defer(sample.note, os.urandom(size), _transactional=True)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work)

    assert queued.tasks() == []
    assert kept() == []


@both
@either_size
def test_a_retried_transaction_enqueues_once(run: Any, size: int, queued: Queued) -> None:
    """A transaction that is tried again because of a conflict leaves one task, and the payload of one."""
    attempts = []
    Counter(id="c").put()
    DbCounter(key_name="c").put()

    def work() -> None:
        attempts.append(1)
        mine = Counter.get_by_id("c") if run is in_ndb else DbCounter.get_by_key_name("c")
        defer(sample.note, os.urandom(size), len(attempts), _transactional=True)
        if len(attempts) < 3:
            conflict(run)
        mine.count += 1
        mine.put()

    run(work)

    assert len(attempts) == 3
    body = queued.one().payload
    reference = overflow.Reference.parse(body, 2**31)
    if reference is not None:
        body = overflow.fetch(reference)
    assert payload.loads(body).args[1] == 3
    assert len(kept()) == (0 if reference is None else reference.chunks)


def conflict(run: Any) -> None:
    """Change what the surrounding transaction has read, outside of it."""

    def elsewhere() -> None:
        counter = Counter.get_by_id("c") if run is in_ndb else DbCounter.get_by_key_name("c")
        counter.count += 10
        counter.put()

    if run is in_ndb:
        ndb.transaction(elsewhere, propagation=ndb.TransactionOptions.INDEPENDENT)
    else:
        db.run_in_transaction_options(db.create_transaction_options(propagation=db.INDEPENDENT), elsewhere)


@both
def test_not_transactional_is_enqueued_at_once(run: Any, queued: Queued) -> None:
    """Without the option a call in a transaction is enqueued whatever becomes of that, with its payload."""

    def work() -> None:
        defer(sample.note, os.urandom(200_000))
        assert len(queued.tasks()) == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work)

    assert len(queued.tasks()) == len(kept()) == 1


def test_auto_outside_a_transaction_enqueues_at_once(queued: Queued) -> None:
    """Without a transaction "auto" is no different from False, and a name is allowed."""
    defer(sample.note, _transactional="auto", _name="n1")

    assert queued.one().name == "n1"


def test_outside_a_transaction_is_an_error(queued: Queued) -> None:
    """True needs a transaction: the error is the SDK's own too, and comes before the queue is asked."""
    with pytest.raises(
        taskqueue.BadTransactionStateError, match=r"tests\.support\.sample/note .* there is none"
    ) as caught:
        defer(sample.note, _transactional=True)

    assert isinstance(caught.value, TransactionError)


@both
def test_a_name_in_a_transaction_is_an_error(run: Any, queued: Queued) -> None:
    """A task in a transaction can't have a name, and the error says what to do."""
    with pytest.raises(OptionError, match="_transactional=False"):
        run(lambda: defer(sample.note, _name="n1", _transactional="auto"))
    with pytest.raises(OptionError, match="_name='n1'"):
        run(lambda: defer(sample.note, _name="n1", _transactional=True))

    assert queued.tasks() == []


@both
def test_the_sixth_task_is_an_error_before_the_queue_is_asked(
    run: Any, queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction takes five tasks, and each transaction counts for itself."""
    adds: list[object] = []
    original = taskqueue.Queue.add_async

    def counted(queue: Any, task: Any, transactional: bool = False, rpc: Any = None) -> Any:
        if transactional:
            adds.append(task)
        return original(queue, task, transactional, rpc)

    monkeypatch.setattr(taskqueue.Queue, "add_async", counted)

    def work(count: int) -> None:
        for number in range(count):
            defer(sample.note, number, _transactional=True)

    run(lambda: work(5))
    assert len(queued.tasks()) == len(adds) == 5
    with pytest.raises(datastore_errors.BadRequestError, match="has 5 tasks already") as caught:
        run(lambda: work(6))

    assert isinstance(caught.value, TransactionLimitError)
    assert isinstance(caught.value, taskqueue.Error)
    assert isinstance(caught.value, DeferredError)
    assert len(queued.tasks()) == 5
    assert len(adds) == 10


def test_transactions_that_are_over_are_forgotten() -> None:
    """Counting their tasks keeps no transaction alive."""
    in_db(lambda: defer(sample.note, _transactional=True))
    in_ndb(lambda: defer(sample.note, _transactional=True))
    gc.collect()

    assert len(transactions._added) == 0


@both
def test_a_large_payload_needs_a_cross_group_transaction(
    run: Any, queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the transaction has touched another group the error names xg, and the queue is not asked."""
    adds: list[object] = []
    monkeypatch.setattr(taskqueue.Queue, "add_async", lambda *a, **k: adds.append(1))

    def work() -> None:
        Counter.get_by_id("c") if run is in_ndb else DbCounter.get_by_key_name("c")
        defer(sample.note, os.urandom(200_000), _transactional=True)

    with pytest.raises(datastore_errors.BadRequestError, match="xg=True") as caught:
        run(work, xg=False)

    assert isinstance(caught.value, CrossGroupError)
    assert adds == []
    assert kept() == []


@both
def test_a_small_payload_needs_none(run: Any, queued: Queued) -> None:
    """A task that fits is no entity, and goes into a transaction of one group."""

    def work() -> None:
        Counter(id="c").put() if run is in_ndb else DbCounter(key_name="c").put()
        defer(sample.note, _transactional=True)

    run(work, xg=False)

    assert len(queued.tasks()) == 1


def test_a_refused_task_leaves_no_payload_in_a_transaction_that_goes_on(
    queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who catches the error and commits all the same finds no payload of a task that isn't there."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise taskqueue.UnknownQueueError

    monkeypatch.setattr(taskqueue.Queue, "add", fails)
    monkeypatch.setattr(taskqueue.Queue, "add_async", fails)

    def work() -> None:
        with pytest.raises(taskqueue.UnknownQueueError):
            defer(sample.note, os.urandom(200_000), _transactional=True)

    in_ndb(work)

    assert kept() == []


def test_tasklets_that_take_turns_keep_their_transactions(queued: Queued) -> None:
    """The task goes into the transaction of its own tasklet, whichever runs in between, and is not in another's."""

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def work(number: int) -> Any:
        for _ in range(number + 1):
            yield Counter.get_by_id_async(f"c{number}")
        defer(sample.note, number, _transactional=True)
        yield Counter.get_by_id_async(f"d{number}")
        if number % 2:
            raise ndb.Rollback

    @ndb.toplevel  # type: ignore[untyped-decorator] # the SDK has no types
    def all_of_them() -> Any:
        for future in [ndb.transaction_async(lambda n=n: work(n), xg=True) for n in range(4)]:
            future.wait()

    all_of_them()

    assert sorted(payload.loads(task.payload).args[0] for task in queued.tasks()) == [0, 2]


def test_another_tasklet_is_not_in_the_transaction(queued: Queued) -> None:
    """What runs while a transaction waits is outside of it, though the SDK's connection is the transaction's."""
    outside: list[object] = []

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def bystander() -> Any:
        for _ in range(4):
            outside.append(transactions.current())
            yield ndb.sleep(0)

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def work() -> Any:
        assert transactions.current() is not None
        for _ in range(4):
            yield ndb.sleep(0)
        assert transactions.current() is not None

    beside = bystander()
    ndb.transaction_async(work).get_result()
    beside.get_result()

    assert outside == [None] * 4


def test_a_transaction_of_ndb_inside_one_of_db_is_the_inner_one() -> None:
    """The innermost transaction counts. The SDK has none of db inside one of ndb."""
    found: list[Any] = []

    def outer() -> None:
        found.append(transactions.current())
        in_ndb(lambda: found.append(transactions.current()))
        found.append(transactions.current())

    in_db(outer)

    assert found[0] is found[2] is not None
    assert found[1] is not None
    assert found[1] is not found[0]
    assert transactions.current() is None
