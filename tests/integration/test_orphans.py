"""Payloads in the datastore: whatever a queue answers, none is orphaned, and every task has the one that it needs."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, datastore
from google.appengine.runtime import apiproxy_errors, default_api_stub

from deferred_middleware import EnqueueError, Settings, call, defer_many
from deferred_middleware.calls import payload
from deferred_middleware.config.process import install_settings
from deferred_middleware.engines.answers import Answer
from deferred_middleware.enqueue import add as attempts
from deferred_middleware.wire import overflow, protocol
from deferred_middleware.wire.overflow import Reference, sweep
from tests.support import faults, sample
from tests.support.faults import Fault, FaultyServer
from tests.support.queue_answers import each_answer, each_that_passes
from tests.support.timed_adds import Clock, add

# Two chunks; too large for a task even after compression, because the bytes are random.
LARGE_BYTES = 1_200_000
CHUNKS = 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """Run a server that fails on demand, with a working datastore."""
    server = FaultyServer()
    install_settings(Settings(enqueue_seconds=0.5))
    monkeypatch.setattr(default_api_stub, "DEADLINE_DELTA_SECONDS", 0.1)
    with faults.connected(server, lambda bed: bed.init_datastore_v3_stub()):
        yield server
    server.close()


@pytest.fixture
def clock() -> Clock:
    """Return a fake clock for the attempts."""
    return Clock()


def kept() -> list[Any]:
    """Return the payload chunks in the datastore."""
    return [entity for entity in datastore.Query(overflow.KIND, namespace="").Run() if "data" in entity]


def let_expire() -> None:
    """Make all payloads expire."""
    found = list(datastore.Query(overflow.KIND, namespace="").Run())
    for entity in found:
        entity[overflow.EXPIRES] -= datetime.timedelta(days=70)
    datastore.Put(found)


def contents_of(server: FaultyServer) -> list[bytes]:
    """Return the only argument of each task on the server, decoded as a worker would."""
    found = []
    for task in server.tasks:
        reference = Reference.parse(task.body, 10_000_000)
        assert reference is not None
        found.append(payload.loads(overflow.fetch(reference)).args[0])
    return found


@each_answer
def test_an_answer_that_lasts(server: FaultyServer, clock: Clock, answer: Answer, fault: Fault, added: bool) -> None:
    """A task that is certainly not enqueued leaves no payload; one that may be enqueued keeps it until the sweep."""
    server.fail(fault, lasting=True)
    content = os.urandom(LARGE_BYTES)

    if answer.exists:
        add(clock, content)
        assert len(kept()) == CHUNKS
    else:
        with pytest.raises(EnqueueError):
            add(clock, content)
        assert len(kept()) == (CHUNKS if answer.maybe_enqueued else 0)
    assert contents_of(server) == [content] * len(server.tasks)

    assert sweep() == 0
    let_expire()
    sweep()
    assert kept() == []


@each_that_passes
def test_an_answer_that_passes(server: FaultyServer, clock: Clock, answer: Answer, fault: Fault, added: bool) -> None:
    """If a task is enqueued after retries, its payload is stored once."""
    server.fail(fault)
    content = os.urandom(LARGE_BYTES)

    add(clock, content)

    assert contents_of(server) == [content]
    assert len(kept()) == CHUNKS


@each_answer
def test_a_name_of_the_callers(server: FaultyServer, clock: Clock, answer: Answer, fault: Fault, added: bool) -> None:
    """A named task has its payload if it exists or may exist; otherwise nothing is left."""
    server.fail(fault)
    content = os.urandom(LARGE_BYTES)

    if answer.retried and not added:
        add(clock, content, _name="mine")
    else:
        with pytest.raises(EnqueueError) as caught:
            add(clock, content, _name="mine")
        assert len(kept()) == (CHUNKS if caught.value.maybe_enqueued else 0)
    assert contents_of(server) == [content] * len(server.tasks)


@each_answer
def test_many(server: FaultyServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, fault: Fault, added: bool) -> None:
    """Of many calls, only those that exist or may exist have a payload."""
    monkeypatch.setattr(attempts, "MAX_RPC_SECONDS", 0.2)
    install_settings(Settings(enqueue_seconds=30))
    server.fail(fault, None)
    contents = [os.urandom(LARGE_BYTES) for _ in range(2)]

    report = defer_many((call(sample.note, content) for content in contents), raise_errors=False)

    found = contents_of(server)
    assert sorted(found) == sorted(set(found))
    assert set(found) <= set(contents)
    assert len(found) <= report.enqueued
    doubtful = sum(getattr(error, "maybe_enqueued", True) for _, error in report.errors)
    assert len(kept()) == CHUNKS * (report.enqueued + doubtful)


def test_a_payload_that_may_not_be_written_is_taken_back(
    server: FaultyServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If writing a payload fails, the call raises, the queue gets no request, and the written chunks are deleted."""
    stub = apiproxy_stub_map.apiproxy.GetStub("datastore_v3")
    written = stub._Dynamic_Put

    def put(*args: Any) -> None:
        written(*args)
        raise apiproxy_errors.ApplicationError(3, "as told")  # the datastore's code for internal errors

    monkeypatch.setattr(stub, "_Dynamic_Put", put)

    with pytest.raises(EnqueueError, match="as told"):
        add(clock, os.urandom(LARGE_BYTES))

    assert server.attempts == []
    assert kept() == []


def test_a_reference_is_what_the_task_carries(server: FaultyServer, clock: Clock) -> None:
    """A task with a stored payload carries a small reference."""
    add(clock, os.urandom(LARGE_BYTES))

    [task] = server.tasks
    assert task.body.startswith(protocol.OVERFLOW_MAGIC)
    assert len(task.body) < 500
