"""Tests of payloads larger than a task and of the sweep that removes them, on the SDK's own stubs."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from google.appengine.api import apiproxy_stub_map, datastore, namespace_manager, taskqueue
from google.appengine.ext import ndb, testbed
from google.appengine.ext.deferred import PermanentTaskFailure
from google.appengine.runtime import apiproxy_errors
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import DeferredMiddleware, Settings, TaskTooLargeError, call, defer
from deferred_middleware.calls import payload
from deferred_middleware.config.process import install_settings
from deferred_middleware.errors import PayloadError, PayloadFinishedError, PayloadMissingError
from deferred_middleware.wire import entities as stored_entities
from deferred_middleware.wire import overflow, protocol
from deferred_middleware.wire.overflow import sweep
from tests.support import sample
from tests.support.delivering import Queued, Response, request, task_environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DAY = 24 * 3600


@pytest.fixture
def stored(engine: testbed.Testbed) -> testbed.Testbed:
    """Provide a datastore."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()
    return engine


def entities() -> list[Any]:
    """Return all payload entities in the datastore, from every namespace that the tests use."""
    found: list[Any] = []
    for namespace in ("", "tenant"):
        found += datastore.Query(overflow.KIND, namespace=namespace).Run()
    return found


def chunks() -> list[Any]:
    """Return the payload chunks in the datastore."""
    return [entity for entity in entities() if "data" in entity]


def deliver(
    task: taskqueue.Task, layer: Callable[[WSGIApplication], WSGIApplication] = lambda app: app, **environ: Any
) -> Response:
    """Deliver a queued task to an app with the middleware, and with ``layer`` around it."""
    headers = {protocol.environ_key(name): str(value) for name, value in task.headers.items()}
    headers.pop("HTTP_CONTENT_TYPE")
    headers.pop("HTTP_CONTENT_LENGTH", None)
    return request(
        layer(DeferredMiddleware(never_reached)), task_environ(task.payload, task.url, **{**headers, **environ})
    )


def never_reached(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Stand for the wrapped app, which tasks must not reach."""
    raise AssertionError(environ["PATH_INFO"])


def test_what_can_be_compressed_needs_no_datastore(queued: Queued) -> None:
    """A payload that fits after compression travels compressed in the task, and runs."""
    defer(sample.note, "x" * 1_000_000)

    task = queued.one()
    assert task.payload.startswith(b"\x78")
    assert len(task.payload) < 5_000
    assert deliver(task).status == 200
    assert sample.ran == [(("x" * 1_000_000,), {})]


def test_a_payload_that_fits_is_not_compressed(queued: Queued) -> None:
    """A payload that fits is not compressed, so that older versions and the older library can read it."""
    defer(sample.note, "x" * 90_000)

    assert queued.one().payload.startswith(b"\x80")


@pytest.mark.parametrize("size", [110_000, 999_900, 2_500_000])
def test_what_does_not_fit_is_kept_in_the_datastore(stored: testbed.Testbed, queued: Queued, size: int) -> None:
    """The task carries a reference to chunks below 1 MiB; when the task is done, only a receipt is left."""
    content = os.urandom(size)

    defer(sample.note, content)

    assert len(queued.one().payload) < 500
    assert len(chunks()) == size // 1_000_000 + 1
    assert all(len(chunk["data"]) < 2**20 for chunk in chunks())
    assert deliver(queued.one()).status == 200
    assert sample.ran == [((content,), {})]
    assert chunks() == []
    (receipt,) = entities()
    assert set(receipt) == {"expires", "retry_count"}


def test_a_task_that_is_done_is_not_run_again(
    stored: testbed.Testbed, queued: Queued, caplog: pytest.LogCaptureFixture
) -> None:
    """If a finished task is delivered again, the receipt shows that it is done, and the status is 200."""
    defer(sample.note, os.urandom(200_000))
    deliver(queued.one())

    with caplog.at_level(logging.DEBUG):
        assert deliver(queued.one()).status == 200

    assert len(sample.ran) == 1
    assert "is not run again: the task was already done" in caplog.text


def raises_after(app: WSGIApplication) -> WSGIApplication:
    """Return a layer that fails after the app has returned, before it reads the response."""

    def layer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        app(environ, start_response)
        raise LookupError("no commit")

    return layer


def answers_after(app: WSGIApplication) -> WSGIApplication:
    """Return a layer that answers with an error of its own."""

    def layer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        closing = app(environ, lambda *args: lambda data: None)
        if hasattr(closing, "close"):
            closing.close()
        start_response("502 Bad Gateway", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []

    return layer


def reads_and_raises(app: WSGIApplication) -> WSGIApplication:
    """Return a layer that fails after it has read the response."""

    def layer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        b"".join(app(environ, start_response))
        raise LookupError("no commit")

    return layer


@pytest.mark.parametrize("layer", [raises_after, answers_after])
def test_a_layer_outside_that_fails_leaves_the_payload(
    stored: testbed.Testbed, queued: Queued, layer: Callable[[WSGIApplication], WSGIApplication]
) -> None:
    """If a layer around the middleware fails, the retry has the payload, and removes it."""
    defer(sample.note, os.urandom(200_000))
    task = queued.one()

    if layer is raises_after:
        with pytest.raises(LookupError, match="no commit"):
            deliver(task, layer)
    else:
        assert deliver(task, layer).status == 502
    assert len(sample.ran) == len(chunks()) == 1
    retry: Any = {"HTTP_X_APPENGINE_TASKRETRYCOUNT": "1", "HTTP_X_APPENGINE_TASKPREVIOUSRESPONSE": "502"}
    assert deliver(task, **retry).status == 200

    assert len(sample.ran) == 2
    assert chunks() == []


@pytest.mark.parametrize(("retries", "previous", "lost"), [("1", "500", True), ("1", "0", False), ("0", None, False)])
def test_a_failure_after_the_payload_is_gone_is_a_dead_letter(
    stored: testbed.Testbed,
    queued: Queued,
    caplog: pytest.LogCaptureFixture,
    retries: str,
    previous: str | None,
    lost: bool,
) -> None:
    """If a layer failed after it had read the response, the retry is a permanent failure that says so."""
    defer(sample.note, os.urandom(200_000))
    with pytest.raises(LookupError, match="no commit"):
        deliver(queued.one(), reads_and_raises)

    retry: Any = {"HTTP_X_APPENGINE_TASKRETRYCOUNT": retries, "HTTP_X_APPENGINE_TASKPREVIOUSRESPONSE": previous}
    answer = deliver(queued.one(), **retry)

    assert answer.status == 200
    assert (answer.headers.get("x-deferred-outcome") == "permanent-failure") is lost
    assert ("a layer outside the middleware answered with 500" in caplog.text) is lost
    assert len(sample.ran) == 1


def test_a_task_that_fails_keeps_its_payload(stored: testbed.Testbed, queued: Queued) -> None:
    """A failed task keeps its payload, both for a retry and, after a permanent failure, for a replay."""
    for error, status in ((ValueError, 500), (PermanentTaskFailure, 200)):
        defer(sample.raises_new, error, os.urandom(200_000))
        task = queued.tasks()[-1]

        assert deliver(task).status == status
        assert overflow.fetch(reference_of(task))


def reference_of(task: taskqueue.Task) -> overflow.Reference:
    """Return the reference in a task's payload."""
    found = overflow.Reference.parse(task.payload, 2**31)
    assert found is not None
    return found


def test_missing_chunks_are_a_retry(stored: testbed.Testbed, queued: Queued, caplog: pytest.LogCaptureFixture) -> None:
    """If chunks are missing, the status is 500, and an ERROR names the missing payload."""
    defer(sample.note, os.urandom(2_200_000))
    datastore.Delete(chunks()[1].key())

    assert deliver(queued.one()).status == 500

    assert sample.ran == []
    assert reference_of(queued.one()).key in caplog.text
    with pytest.raises(PayloadMissingError, match="not in the datastore") as caught:
        overflow.fetch(reference_of(queued.one()))
    assert caught.value.key == reference_of(queued.one()).key
    assert not isinstance(caught.value, PayloadFinishedError)


def test_a_datastore_that_does_not_answer_is_a_retry(
    stored: testbed.Testbed, queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the datastore doesn't answer, the status is 500."""
    defer(sample.note, os.urandom(200_000))
    stub = stored.get_stub(testbed.DATASTORE_SERVICE_NAME)

    def fails(request: Any, response: Any, request_id: Any = None) -> None:
        raise apiproxy_errors.DeadlineExceededError("too slow")

    monkeypatch.setattr(stub, "_Dynamic_Get", fails)

    assert deliver(queued.one()).status == 500


@pytest.mark.parametrize("what", ["changed", "longer", "shorter"])
def test_a_changed_payload_is_not_loaded(stored: testbed.Testbed, queued: Queued, what: str) -> None:
    """A stored payload is checked against the task's signed reference before it is loaded."""
    defer(sample.note, os.urandom(200_000))
    (chunk,) = chunks()
    data = bytes(chunk["data"])
    changed = {"changed": data[:-1] + bytes([data[-1] ^ 1]), "longer": data + b"x", "shorter": data[:-1]}[what]
    chunk["data"] = datastore.datastore_types.Blob(changed)
    datastore.Put(chunk)

    assert deliver(queued.one()).status == 500
    assert sample.ran == []
    with pytest.raises(PayloadError, match="is not the payload of the enqueued task"):
        overflow.fetch(reference_of(queued.one()))


def test_the_namespace_does_not_matter(stored: testbed.Testbed, queued: Queued) -> None:
    """A tenant's payload is stored in the default namespace, so that it is found from every namespace."""
    namespace_manager.set_namespace("tenant")
    try:
        defer(sample.note, os.urandom(200_000))
        assert [chunk.key().namespace() for chunk in chunks()] == [""]
    finally:
        namespace_manager.set_namespace("")

    assert deliver(queued.one()).status == 200
    assert len(sample.ran) == 1


def test_without_a_datastore_the_error_says_so(queued: Queued) -> None:
    """Without a datastore, an oversized payload raises TaskTooLargeError, which says so."""
    with pytest.raises(TaskTooLargeError, match="no datastore here"):
        defer(sample.note, os.urandom(200_000))


def test_the_setting_limits_what_is_kept(stored: testbed.Testbed, queued: Queued) -> None:
    """A payload above DEFERRED_MAX_PAYLOAD_BYTES is refused, even if it would fit after compression."""
    install_settings(Settings(max_payload_bytes=300_000))

    for content in (os.urandom(300_000), b"x" * 300_000):
        with pytest.raises(TaskTooLargeError, match="DEFERRED_MAX_PAYLOAD_BYTES"):
            defer(sample.note, content)

    assert entities() == []
    assert queued.tasks() == []


def test_headers_alone_can_be_too_large(stored: testbed.Testbed, queued: Queued) -> None:
    """If the task is too large without its payload, nothing is written to the datastore."""
    with pytest.raises(TaskTooLargeError):
        defer(sample.note, _headers={"X-Large": "x" * 103_000})

    assert entities() == []


@pytest.mark.parametrize(
    ("problem", "left"),
    [
        (taskqueue.UnknownQueueError(), 0),
        (taskqueue.TaskAlreadyExistsError(), 0),
        (apiproxy_errors.OverQuotaError(), 0),
        (taskqueue.TransientError(), 1),
        (apiproxy_errors.DeadlineExceededError(), 1),
    ],
)
def test_a_failed_enqueue_leaves_nothing_unless_the_task_may_be_there(
    stored: testbed.Testbed, queued: Queued, monkeypatch: pytest.MonkeyPatch, problem: Exception, left: int
) -> None:
    """If the queue refuses a task, its chunks are removed; if the task may be enqueued, they are kept."""

    def fails(*args: Any) -> Any:
        raise problem

    rpc = SimpleNamespace(future=None, make_call=lambda *args: None, check_success=fails)
    monkeypatch.setattr(taskqueue, "create_rpc", lambda deadline: rpc)
    install_settings(Settings(enqueue_seconds=0))

    with pytest.raises(type(problem)):
        defer(sample.note, os.urandom(200_000), _name="n1")

    assert len(chunks()) == left


@pytest.mark.parametrize("commits", [True, False])
def test_what_a_transaction_has_stored_is_not_removed_after_it(stored: testbed.Testbed, commits: bool) -> None:
    """After the commit, the payload is that of a task that will run. Inside the transaction, it can be removed."""
    large = overflow.Overflowed(os.urandom(200_000), None, transactional=True)

    def enqueue() -> None:
        large.store()
        if not commits:
            large.remove()

    ndb.transaction(enqueue)
    before = len(chunks())
    large.remove()

    assert len(chunks()) == before == (1 if commits else 0)


def test_removal_that_fails_is_logged_and_changes_nothing(
    stored: testbed.Testbed, queued: Queued, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a payload can't be removed, a finished task stays done, and a refused one still raises the queue's error."""
    defer(sample.note, os.urandom(200_000))

    def fails(request: Any, response: Any, request_id: Any = None) -> None:
        raise apiproxy_errors.CapabilityDisabledError("read-only for now")

    monkeypatch.setattr(stored.get_stub(testbed.DATASTORE_SERVICE_NAME), "_Dynamic_Delete", fails)

    assert deliver(queued.one()).status == 200
    with pytest.raises(taskqueue.UnknownQueueError):
        defer(sample.note, os.urandom(200_000), _queue="nowhere")

    assert len(chunks()) == 2
    assert caplog.text.count("stays in the datastore until the next sweep") == 2


def test_the_sweep_removes_what_expired_and_nothing_else(stored: testbed.Testbed, queued: Queued) -> None:
    """The sweep removes expired chunks and receipts, and nothing else."""
    defer(sample.note, os.urandom(1_200_000))
    defer(sample.note, os.urandom(200_000))
    deliver(queued.tasks()[1])
    assert len(entities()) == 3

    assert sweep() == 0
    expire(entities()[:2])

    assert sweep() == 2
    assert len(entities()) == 1


def test_the_sweep_goes_on_until_its_time_is_over(stored: testbed.Testbed) -> None:
    """The sweep removes more than one batch, and stops when its time limit is reached."""
    with_one = [overflow.Overflowed(b"x", None, transactional=False) for _ in range(501)]
    for overflowed in with_one:
        overflowed.store()
    expire(entities())

    assert sweep(max_seconds=0) == 0
    assert sweep() == 501
    assert entities() == []


def expire(these: list[Any]) -> None:
    """Make entities expire."""
    for entity in these:
        entity["expires"] -= datetime.timedelta(days=33)
    datastore.Put(these)


@pytest.mark.parametrize("countdown", [None, 20 * DAY])
def test_a_payload_is_kept_for_as_long_as_its_task(
    stored: testbed.Testbed, queued: Queued, countdown: float | None
) -> None:
    """A payload expires no earlier than 31 days after its task is due, because a queue keeps a task that long."""
    due = time.time() + (countdown or 0)

    defer(sample.note, os.urandom(200_000), _countdown=countdown)

    assert due + 31 * DAY < reference_of(queued.one()).expires < due + 33 * DAY
    (chunk,) = chunks()
    kept_until = chunk["expires"].replace(tzinfo=datetime.timezone.utc).timestamp()
    assert kept_until == reference_of(queued.one()).expires


def test_only_a_reference_is_taken_for_one() -> None:
    """A call's payload, compressed or not, is not parsed as a reference."""
    for body in overflow.forms(payload.dumps(call(sample.note, "x" * 1000), 5)):
        assert overflow.Reference.parse(body, 1) is None


GOOD = dataclasses.asdict(overflow.Reference.to(b"content", None))


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "../../other"},
        {"key": 5},
        {"size": -1},
        {"size": 2**40},
        {"size": True},
        {"chunks": 0},
        {"chunks": 2},
        {"chunks": 10**9},
        {"size": 1_000_001},
        {"size": 9_000_000, "chunks": 9_000_000},
        {"size": 9_000_000, "chunks": 8},
        {"size": 0, "chunks": 0},
        {"chunks": "1"},
        {"sha256": ""},
        {"sha256": None},
        {"namespace": "tenant"},
        {"expires": "soon"},
        {"more": 1},
    ],
)
def test_a_damaged_reference_is_an_error(changed: dict[str, Any]) -> None:
    """A malformed reference raises an error before the datastore is read."""
    body = protocol.OVERFLOW_MAGIC + json.dumps({**GOOD, **changed}).encode()

    with pytest.raises(PayloadError):
        overflow.Reference.parse(body, 10_000_000)


def test_a_deep_reference_is_an_error() -> None:
    """JSON that is nested too deep to be read is damaged."""
    with pytest.raises(PayloadError, match="damaged"):
        overflow.Reference.parse(protocol.OVERFLOW_MAGIC + b'{"key":' + b"[" * 200_000, 10_000_000)


@given(st.binary(max_size=200))
def test_no_bytes_at_all_are_more_than_an_error(content: bytes) -> None:
    """For any bytes after the magic prefix, parsing raises nothing but PayloadError."""
    with pytest.raises(PayloadError):
        overflow.Reference.parse(protocol.OVERFLOW_MAGIC + content, 10_000_000)


@given(st.binary(min_size=1, max_size=2000), st.one_of(st.none(), st.floats(0, 4e9)))
def test_a_reference_is_read_as_it_was_written(body: bytes, eta: float | None) -> None:
    """A parsed reference equals the written one, and has the hash of the payload."""
    reference = overflow.Reference.to(body, eta)

    assert overflow.Reference.parse(bytes(reference), len(body)) == reference
    assert reference.sha256 == hashlib.sha256(body).hexdigest()
    with pytest.raises(PayloadError, match="DEFERRED_MAX_PAYLOAD_BYTES"):
        overflow.Reference.parse(bytes(reference), len(body) - 1)


def test_the_stub_map_is_asked_for_a_datastore(stored: testbed.Testbed) -> None:
    """A datastore is available if the SDK has a stub for it."""
    assert stored_entities.is_available()
    assert apiproxy_stub_map.apiproxy.GetStub("datastore_v3") is not None
