"""Tests of ``defer`` and of the errors it raises, on the SDK's own queue stub."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub, apiproxy_stub_map, datastore_errors, taskqueue
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as pb
from google.appengine.ext import ndb, testbed
from google.appengine.runtime import apiproxy_errors

from deferred_middleware import (
    ArgumentsError,
    EnqueueError,
    NoEngineError,
    NotImportableError,
    Settings,
    TaskTooLargeError,
    UnpicklableArgumentError,
    call,
    defer,
)
from deferred_middleware.calls import payload
from deferred_middleware.config import process
from deferred_middleware.config.process import Deployment, install_settings
from deferred_middleware.enqueue.api import enqueue
from deferred_middleware.errors.sdk import TargetError
from tests.support import sample
from tests.support.delivering import Queued
from tests.support.repository import ROOT


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as version v1 of the default service."""
    monkeypatch.setattr(process, "_deployment", Deployment(service="default", version="v1"))


def test_a_deferred_call_is_in_the_queue(queued: Queued) -> None:
    """defer() enqueues a POST of the payload to the URL that names the call, and returns that task."""
    task = defer(sample.pair, 1, second=[2])

    assert task.was_enqueued
    in_queue = queued.one()
    assert in_queue.name == task.name
    assert (in_queue.method, in_queue.url) == ("POST", "/_cb/deferred/tests.support.sample/pair")
    assert in_queue.headers["Content-Type"] == "application/octet-stream"
    payload.loads(in_queue.payload).run()
    assert sample.ran == [(1, [2])]


def test_a_prepared_call_is_enqueued_alike(queued: Queued) -> None:
    """call() followed by enqueue() does the same as defer()."""
    enqueue(call(sample.pair, 1, _name="n1", _queue="quick"))

    assert [task.name for task in queued.in_queue("quick")] == ["n1"]


def test_options_reach_the_task(queued: Queued) -> None:
    """The task has the name, ETA, retry options, headers and URL that the options set."""
    eta = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)

    task = defer(
        sample.note,
        _name="n1",
        _eta=eta,
        _retry_options={"task_retry_limit": 3, "min_backoff_seconds": 2},
        _headers={"X-Mine": "yes"},
        _url="/elsewhere",
        _deadline=datetime.timedelta(minutes=2),
        _queue="slow",
    )

    (in_queue,) = queued.in_queue("slow")
    assert (in_queue.name, in_queue.url) == ("n1", "/elsewhere")
    assert task.eta_posix == pytest.approx(eta.timestamp(), abs=1e-6)
    assert in_queue.eta_posix == int(eta.timestamp())  # the stub returns whole seconds
    assert in_queue.headers["X-Mine"] == "yes"
    assert in_queue.headers["X-Deferred-Retry-Limit"] == "3"
    assert task.retry_options is not None
    assert task.retry_options.task_retry_limit == 3
    assert task.dispatch_deadline_usec == 120_000_000


def test_a_countdown_is_an_eta(queued: Queued) -> None:
    """A countdown sets an ETA relative to the time of the defer()."""
    before = time.time()

    task = defer(sample.note, _countdown=3600)

    assert before + 3599.999 <= task.eta_posix <= time.time() + 3600.001
    assert int(task.eta_posix) == queued.one().eta_posix


def test_the_retry_limit_is_not_told_where_an_age_limit_decides_too(queued: Queued) -> None:
    """With a retry limit and an age limit, no header has the limit, because retries go on while either allows them."""
    defer(sample.note, _retry_options={"task_retry_limit": 3, "task_age_limit": 60})

    assert "X-Deferred-Retry-Limit" not in queued.one().headers


def test_the_default_queues_are_used(queued: Queued) -> None:
    """Calls without a queue use the configured queues."""
    install_settings(Settings(default_queues=("quick", "slow")))

    for _ in range(20):
        defer(sample.note)

    # The probability that one of the two queues gets none of 20 calls is about 1 in 500,000.
    assert queued.in_queue("quick")
    assert queued.in_queue("slow")
    assert not queued.in_queue("default")


def test_a_background_module_is_the_target(queued: Queued, deployed: None) -> None:
    """A call from the default service targets the host of the background module, at the same version."""
    install_settings(Settings(background_module="background"))

    task = defer(sample.note)

    assert task.target == "v1.background"
    assert queued.one().headers["Host"] == "v1.background.app.example.com"


def test_without_one_a_call_stays_in_its_service(queued: Queued, deployed: None) -> None:
    """Without a background module, the target is the enqueuing service and version, whatever the request's host is."""
    os.environ["HTTP_HOST"] = "www.customer.example"

    defer(sample.note)

    assert queued.one().headers["Host"] == "v1.default.app.example.com"


def test_a_dropped_target_is_an_error(answering: Any, deployed: None) -> None:
    """If the SDK would silently drop the target, nothing is enqueued and the error says why."""
    answering(AssertionError("the queue is asked"))
    del os.environ["DEFAULT_VERSION_HOSTNAME"]

    with pytest.raises(TargetError, match=r"'background' can't be addressed.*DEFAULT_VERSION_HOSTNAME"):
        defer(sample.note, _target="background")


def test_on_the_sdks_stub_a_target_is_dropped_as_by_the_sdk(queued: Queued, deployed: None) -> None:
    """With the SDK's stub, which has no hostnames, the target is dropped without an error, as in the SDK."""
    del os.environ["DEFAULT_VERSION_HOSTNAME"]

    task = defer(sample.note, _target="background")

    assert task.target == "background"
    assert "Host" not in queued.one().headers or "background" not in queued.one().headers["Host"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((sample.anonymous,), NotImportableError),
        ((sample.nested(),), NotImportableError),
        ((sample.generator,), TypeError),
        ((sample.pair,), ArgumentsError),
        ((sample.note, threading.Lock()), UnpicklableArgumentError),
        ((sample.note, os.urandom(110_000)), TaskTooLargeError),
    ],
)
def test_what_is_known_to_fail_is_not_enqueued(queued: Queued, arguments: Any, error: type[Exception]) -> None:
    """A call that can't run raises an error at the defer(), and nothing is enqueued."""
    with pytest.raises(error):
        defer(*arguments)

    assert queued.tasks() == []


def test_too_large_a_task_says_how_large(queued: Queued) -> None:
    """The error for too large a task has its size and the limit, as the platform counts them, and is the SDK's type."""
    with pytest.raises(taskqueue.TaskTooLargeError) as caught:
        defer(sample.note, os.urandom(110_000))

    assert isinstance(caught.value, TaskTooLargeError)
    assert caught.value.limit_bytes == 102_400
    assert 110_000 < caught.value.size_bytes < 111_000
    assert "102,400" in str(caught.value)
    assert "tests.support.sample/note" in str(caught.value)


def test_the_largest_task_passes(queued: Queued) -> None:
    """A task just under the platform's limit is enqueued, and one byte over the limit is not.

    The stub counts the bytes of its own protocol, some hundred more. So this test can't use the exact limit.
    """
    with pytest.raises(TaskTooLargeError) as caught:
        defer(sample.note, os.urandom(102_400))
    spare = 102_400 - (caught.value.size_bytes - 102_400)

    assert defer(sample.note, os.urandom(spare - 300)).size == 102_100
    with pytest.raises(TaskTooLargeError, match="takes 102,401 bytes"):
        defer(sample.note, os.urandom(spare + 1))


def test_the_setting_limits_the_payload(queued: Queued) -> None:
    """DEFERRED_MAX_PAYLOAD_BYTES can set a lower limit than the platform's, and the error names it."""
    install_settings(Settings(max_payload_bytes=1000))

    with pytest.raises(TaskTooLargeError, match="DEFERRED_MAX_PAYLOAD_BYTES") as caught:
        defer(sample.note, "x" * 2000)

    assert caught.value.limit_bytes == 1000


def test_an_unknown_queue_is_named(queued: Queued) -> None:
    """The error for an unknown queue names the callable, the queue and the remedy. The SDK's error has no text."""
    with pytest.raises(taskqueue.UnknownQueueError) as caught:
        defer(sample.note, _queue="nope")

    assert isinstance(caught.value, EnqueueError)
    assert (caught.value.label, caught.value.queue) == ("tests.support.sample/note", "nope")
    assert str(caught.value).startswith(
        "tests.support.sample/note was not enqueued to queue 'nope': the queue does not exist."
    )
    assert "queue.yaml" in str(caught.value)


def test_a_pull_queue_is_refused(queued: Queued) -> None:
    """A pull queue is rejected, because it doesn't deliver tasks."""
    with pytest.raises(taskqueue.InvalidQueueModeError, match="the queue is a pull queue") as caught:
        defer(sample.note, _queue="pull")

    assert isinstance(caught.value, EnqueueError)


def test_a_name_in_use_is_named(queued: Queued) -> None:
    """A second task with the same name raises the SDK's error, with the name and the queue in its text."""
    defer(sample.note, _name="n1")

    with pytest.raises(
        taskqueue.TaskAlreadyExistsError,
        match=r"queue 'default' as task 'n1'.*the queue already has a task with this name",
    ) as caught:
        defer(sample.note, _name="n1")

    assert isinstance(caught.value, EnqueueError)
    assert caught.value.name == "n1"
    assert isinstance(caught.value.__cause__, taskqueue.TaskAlreadyExistsError)


def test_a_used_name_is_explained(queued: Queued) -> None:
    """A tombstoned name raises the SDK's error, which says how long the tombstone lasts."""
    taskqueue.Queue("default").delete_tasks_by_name(defer(sample.note, _name="n1").name)

    with pytest.raises(taskqueue.TombstonedTaskError, match="9 days"):
        defer(sample.note, _name="n1")


def test_transactional_outside_a_transaction_is_an_error(queued: Queued) -> None:
    """A transactional call outside of a transaction is an error."""
    with pytest.raises(taskqueue.BadTransactionStateError, match="there is none") as caught:
        defer(sample.note, _transactional=True)

    assert isinstance(caught.value, EnqueueError)
    assert queued.tasks() == []


def test_a_transactional_call_comes_with_the_commit(engine: testbed.Testbed, queued: Queued) -> None:
    """A transactional call is enqueued if the transaction commits, and not if it rolls back."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()

    def transaction(fail: bool) -> None:
        defer(sample.pair, fail, _transactional=True)
        if fail:
            raise ndb.Rollback

    ndb.transaction(lambda: transaction(fail=True))
    assert queued.tasks() == []

    ndb.transaction(lambda: transaction(fail=False))
    assert payload.loads(queued.one().payload).args == (False,)


def test_no_engine_at_all_is_an_error_with_the_way_out() -> None:
    """If nothing answers the SDK, the error says how to set up an engine."""
    program = (
        "import deferred_middleware as d\nfrom tests.support import sample\n"
        "try:\n d.defer(sample.note)\nexcept d.NoEngineError as e: print(e)"
    )

    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert "tests.support.sample/note was not enqueued to queue 'default': nothing answers" in result.stdout
    assert "deferred-middleware serve MODULE:CALLABLE" in result.stdout
    assert issubclass(NoEngineError, EnqueueError)


class Answering(apiproxy_stub.APIProxyStub):  # type: ignore[misc]
    """A taskqueue stub that answers BulkAdd with a given answer."""

    def __init__(self, answer: Any) -> None:
        super().__init__("taskqueue")
        self.answer = answer

    def MakeSyncCall(self, service: str, method: str, request: Any, response: Any, request_id: Any = None) -> None:
        """Raise the answer, or copy it into the response."""
        if isinstance(self.answer, Exception):
            raise self.answer
        for code in self.answer:
            response.taskresult.add().result = code


@pytest.fixture
def answering(engine: testbed.Testbed) -> Any:
    """Make the engine return a given answer, with a single attempt."""

    def install(answer: Any) -> None:
        install_settings(Settings(enqueue_seconds=0))
        stub_map = apiproxy_stub_map.apiproxy
        stub_map.ReplaceStub("taskqueue", Answering(answer))

    return install


def test_a_skipped_task_is_an_error(answering: Any) -> None:
    """If the queue skips the task, defer() raises, although the SDK returns normally."""
    answering([pb.TaskQueueServiceError.SKIPPED])

    with pytest.raises(EnqueueError, match="not added, because another task"):
        defer(sample.note)


def test_an_empty_answer_is_an_error(answering: Any) -> None:
    """An answer without a result raises our error instead of the SDK's AssertionError."""
    answering([])

    with pytest.raises(EnqueueError, match=r"makes no sense.*0 results for 1 tasks"):
        defer(sample.note)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (apiproxy_errors.RPCFailedError("no ticket"), apiproxy_errors.RPCFailedError),
        (apiproxy_errors.DeadlineExceededError("slow"), apiproxy_errors.DeadlineExceededError),
        (apiproxy_errors.OverQuotaError("much"), apiproxy_errors.OverQuotaError),
        ([pb.TaskQueueServiceError.TRANSIENT_ERROR], taskqueue.TransientError),
        ([pb.TaskQueueServiceError.PERMISSION_DENIED], taskqueue.PermissionDeniedError),
        (
            apiproxy_errors.ApplicationError(pb.TaskQueueServiceError.INTERNAL_ERROR, "oops"),
            taskqueue.InternalError,
        ),
        # For this code, the SDK itself fails with a TypeError.
        ([pb.TaskQueueServiceError.DATASTORE_NEED_INDEX], datastore_errors.NeedIndexError),
    ],
)
def test_every_failure_is_ours_and_the_sdks(answering: Any, answer: Any, kind: type[Exception]) -> None:
    """An error of the SDK or of its transport is raised as our type and as its own type, with the call's name."""
    answering(answer)

    with pytest.raises(kind) as caught:
        defer(sample.note, _name="n1")

    assert isinstance(caught.value, EnqueueError)
    assert str(caught.value).startswith("tests.support.sample/note was not enqueued to queue 'default' as task 'n1': ")
