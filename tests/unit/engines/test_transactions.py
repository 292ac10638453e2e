"""Tests of tasks in the transactions of the SDK's ndb and db, on the SDK's own stubs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from google.appengine.api import datastore, datastore_errors, taskqueue
from google.appengine.datastore import datastore_pb
from google.appengine.ext import db, ndb, testbed

from deferred_middleware import DeferredError, OptionError, defer
from deferred_middleware.calls import payload
from deferred_middleware.engines import transactions
from deferred_middleware.errors.sdk import CrossGroupError, TransactionError, TransactionLimitError
from deferred_middleware.wire import entities, overflow
from tests.support import sample
from tests.support.delivering import Queued


class Counter(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """An entity that ndb's transactions change."""

    count = ndb.IntegerProperty(default=0)


class DbCounter(db.Model):  # type: ignore[misc] # the SDK has no types
    """An entity that db's transactions change."""

    count = db.IntegerProperty(default=0)


@pytest.fixture(autouse=True)
def stored(engine: testbed.Testbed) -> testbed.Testbed:
    """A queue and a datastore."""
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
    """Return the stored payloads."""
    return list(datastore.Query(overflow.KIND, namespace="").Run())


@both
@either_size
@pytest.mark.parametrize("transactional", [True, "auto"])
def test_committed_means_enqueued(run: Any, size: int, transactional: object, queued: Queued) -> None:
    """A task is enqueued at the commit and not before, and so is its payload if that is large."""

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
    """A rolled back transaction leaves neither the task nor its payload."""

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
    """A transaction that is retried after a conflict leaves one task and one payload."""
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
    """Change an entity that the surrounding transaction has read, from outside of the transaction."""

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
    """Without the option, a call in a transaction is enqueued with its payload, even if the transaction rolls back."""

    def work() -> None:
        defer(sample.note, os.urandom(200_000))
        assert len(queued.tasks()) == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work)

    assert len(queued.tasks()) == len(kept()) == 1


def test_auto_outside_a_transaction_enqueues_at_once(queued: Queued) -> None:
    """Outside of a transaction, "auto" works like False, and a name is allowed."""
    defer(sample.note, _transactional="auto", _name="n1")

    assert queued.one().name == "n1"


def test_outside_a_transaction_is_an_error(queued: Queued) -> None:
    """Outside of a transaction, True raises an error that is also the SDK's type, without calling the queue."""
    with pytest.raises(
        taskqueue.BadTransactionStateError, match=r"tests\.support\.sample/note .* there is none"
    ) as caught:
        defer(sample.note, _transactional=True)

    assert isinstance(caught.value, TransactionError)


@both
def test_a_name_in_a_transaction_is_an_error(run: Any, queued: Queued) -> None:
    """A name in a transaction raises an error that says what to do."""
    with pytest.raises(OptionError, match="_transactional=False"):
        run(lambda: defer(sample.note, _name="n1", _transactional="auto"))
    with pytest.raises(OptionError, match="_name='n1'"):
        run(lambda: defer(sample.note, _name="n1", _transactional=True))

    assert queued.tasks() == []


@both
def test_the_sixth_task_is_an_error_before_the_queue_is_asked(
    run: Any, stored: testbed.Testbed, queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sixth task of a transaction is an error without calling the queue, and each transaction has its own count."""
    adds: list[object] = []
    stub = stored.get_stub(testbed.TASKQUEUE_SERVICE_NAME)
    original = stub.MakeSyncCall

    def counted(service: str, call: str, *args: Any) -> Any:
        if call == "BulkAdd":
            adds.append(args)
        return original(service, call, *args)

    monkeypatch.setattr(stub, "MakeSyncCall", counted)

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
    """The monitor drops a transaction after its commit or rollback."""

    def rolled_back() -> None:
        defer(sample.note, _transactional=True)
        raise ndb.Rollback

    in_db(lambda: defer(sample.note, _transactional=True))
    in_ndb(lambda: defer(sample.note, _transactional=True))
    in_ndb(rolled_back)

    assert len(transactions.MONITOR._transactions) == 0


def test_transactions_that_never_end_are_not_kept_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor has a limit, and drops the oldest transaction beyond it."""
    monkeypatch.setattr(transactions, "MAX_TRANSACTIONS", 3)
    monkeypatch.setattr(transactions.TransactionMonitor, "_after_call", lambda *_: None)

    for _ in range(5):
        in_ndb(lambda: defer(sample.note, _transactional=True))

    assert len(transactions.MONITOR._transactions) == 3
    transactions.MONITOR._transactions.clear()


@both
def test_a_large_payload_needs_a_cross_group_transaction(
    run: Any, queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the transaction uses another entity group, a large payload raises an error that names xg, without an RPC."""
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
    """A task with a small payload is not an entity, and fits in a transaction of one group."""

    def work() -> None:
        Counter(id="c").put() if run is in_ndb else DbCounter(key_name="c").put()
        defer(sample.note, _transactional=True)

    run(work, xg=False)

    assert len(queued.tasks()) == 1


def test_a_refused_task_leaves_no_payload_in_a_transaction_that_goes_on(
    queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the app catches the error and commits, the rejected task's payload is not stored."""

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
    """Each task is added to the transaction of its own tasklet, even if other tasklets run in between."""

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
    """A tasklet that runs while a transaction waits is outside of it, even on the transaction's connection."""
    outside: list[object] = []

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def bystander() -> Any:
        for _ in range(4):
            outside.append(entities.in_transaction())
            yield ndb.sleep(0)

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def work() -> Any:
        assert entities.in_transaction()
        for _ in range(4):
            yield ndb.sleep(0)
        assert entities.in_transaction()

    beside = bystander()
    ndb.transaction_async(work).get_result()
    beside.get_result()

    assert outside == [False] * 4


def test_a_transaction_of_ndb_inside_one_of_db_is_the_inner_one(queued: Queued) -> None:
    """A task belongs to the innermost transaction; the SDK doesn't allow one of db inside one of ndb."""

    def outer() -> None:
        defer(sample.note, "outer", os.urandom(200_000), _transactional=True)
        in_ndb(lambda: defer(sample.note, "inner", os.urandom(200_000), _transactional=True))
        assert len(queued.tasks()) == 1
        defer(sample.note, "outer too", _transactional=True)
        raise db.Rollback

    in_db(outer)

    (task,) = queued.tasks()
    reference = overflow.Reference.parse(task.payload, 2**31)
    assert reference is not None
    assert payload.loads(overflow.fetch(reference)).args[0] == "inner"
    assert len(kept()) == reference.chunks
    assert not entities.in_transaction()


def test_a_request_outside_of_a_transaction_names_none() -> None:
    """Its fields are read by their names, and an absent one has a value, too."""
    request = datastore_pb.GetRequest()
    request.key.add().app = "shop"
    assert transactions._handle_in(request) is None
    request.transaction.handle = 7
    request.transaction.app = "shop"
    assert transactions._handle_in(request) == 7
