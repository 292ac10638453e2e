"""The replacement for freshplanet's ``tasks`` module has the documented behaviour without the defects."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import webapp2
from google.appengine.api import taskqueue
from google.appengine.ext import ndb, testbed

from deferred_middleware import ArgumentsError, Settings
from deferred_middleware.compat import tasks as module
from deferred_middleware.config import process
from deferred_middleware.config.process import Deployment, current_settings
from deferred_middleware.testing import DeferredTasks, capture_tasks
from tests.support import sample


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeferredTasks]:
    """Capture a test's tasks, with default module settings and a new handler."""
    settings = Settings()
    monkeypatch.setattr(module, "DEFAULT_QUEUES", list(settings.default_queues))
    monkeypatch.setattr(module, "WARMUP_MODULE", None)
    monkeypatch.setattr(module, "BACKGROUND_MODULE", None)
    monkeypatch.delitem(vars(module), "DeferredHandler", raising=False)
    bed = testbed.Testbed()
    bed.activate()
    with capture_tasks() as captured:
        yield captured
    bed.deactivate()


def app() -> Any:
    """Return a webapp2 app with the route from freshplanet's README."""
    return webapp2.WSGIApplication([webapp2.Route("/_cb/deferred/<module>/<name>", module.DeferredHandler)])


SERVER = {"SERVER_SOFTWARE": "gunicorn/23.0.0"}


def look_around() -> None:
    """Record what the module's helpers return inside a task."""
    sample.ran.append((module.isFromTaskQueue(), module.getRetryCount(), webapp2.get_request().path))
    module.logAsRetried("tried %d times", module.getRetryCount())
    raise RuntimeError


def test_a_call_is_enqueued_and_run(tasks: DeferredTasks) -> None:
    """The future of addTask yields True, and the handler runs the call at its URL."""
    assert module.addTask("default", sample.pair, 1, second=2, _countdown=5).get_result() is True

    tasks.assert_enqueued(sample.pair, 1, 2, _queue="default", _countdown=5)
    tasks.app = app()
    tasks.run()
    assert sample.ran == [(1, 2)]


def test_it_can_be_yielded_in_a_tasklet(tasks: DeferredTasks) -> None:
    """The return value of addTask is an ndb Future."""

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def both() -> Any:
        results = yield [module.addTask(["a"], sample.note, 1), module.addTask(["a"], sample.note, 2)]
        raise ndb.Return(results)

    assert both().get_result() == [True, True]
    assert len(tasks.enqueued) == 2


@pytest.mark.parametrize(("queues", "expected"), [("mail", {"mail"}), (["mail"], {"mail"}), ("default", {"a", "b"})])
def test_queues(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch, queues: Any, expected: set[str]) -> None:
    """A list spreads tasks over its queues, a name is that queue, and 'default' is the assigned default queues."""
    monkeypatch.setattr(module, "DEFAULT_QUEUES", ["a", "b"])

    for number in range(40):
        module.addTask(queues, sample.note, number).get_result()

    assert {task.queue for task in tasks.enqueued} == expected


def test_a_name_that_is_taken(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """A name that is in use yields False and an INFO record; with _raiseIfExists it raises."""
    caplog.set_level(logging.INFO)
    assert module.addTask("q", sample.note, _name="once").get_result() is True

    assert module.addTask("q", sample.note, _name="once").get_result() is False
    assert "once" in caplog.text
    with pytest.raises(taskqueue.TaskAlreadyExistsError):
        module.addTask("q", sample.note, _name="once", _raiseIfExists=True).get_result()


def test_a_failed_enqueue_is_raised(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a task can't be enqueued for another reason, the future raises instead of yielding False."""

    def refuse(*args: Any) -> None:
        from google.appengine.runtime import apiproxy_errors

        code = taskqueue.taskqueue_service_bytes_pb2.TaskQueueServiceError.PERMISSION_DENIED
        raise apiproxy_errors.ApplicationError(code)

    monkeypatch.setattr(tasks._stub, "_Dynamic_BulkAdd", refuse)

    with pytest.raises(taskqueue.PermissionDeniedError):
        module.addTask("q", sample.note).get_result()


def test_wrong_arguments_are_raised_at_once(tasks: DeferredTasks) -> None:
    """If the call itself is invalid, addTask raises at once, without a wait for the future."""
    with pytest.raises(ArgumentsError):
        module.addTask("q", sample.pair)


def test_an_eta_may_be_a_timestamp_and_a_parent_is_taken(tasks: DeferredTasks) -> None:
    """The options _eta (in seconds) and _parent of freshplanet's module are accepted."""
    module.addTask("q", sample.note, _eta=time.time() + 3600, _parent=None).get_result()

    assert 3500 < (tasks.enqueued[0].eta - tasks.enqueued[0].enqueued).total_seconds() <= 3600


def test_the_background_module(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default service's tasks go to the assigned module, at the same version."""
    monkeypatch.setattr(module, "BACKGROUND_MODULE", "background")
    deployment = Deployment(service="default", version="v7", environment="standard")
    monkeypatch.setattr(process, "_deployment", deployment)

    module.addTask("q", sample.note).get_result()

    assert tasks.enqueued[0].target == "v7.background"


def test_the_warmup_module_is_imported_before_a_task(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler imports the module that is assigned to WARMUP_MODULE."""
    monkeypatch.setattr(module, "WARMUP_MODULE", "this_is_nowhere")

    with pytest.raises(Exception, match="this_is_nowhere"):
        _ = module.DeferredHandler

    assert current_settings().warmup_module == "this_is_nowhere"


def test_the_helpers_in_a_task(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """In a task, isFromTaskQueue() and getRetryCount() describe it, and logAsRetried() logs louder after a retry."""
    caplog.set_level(logging.DEBUG)
    tasks.app = app()
    module.addTask("q", look_around).get_result()

    tasks.run(attempts=2, raise_errors=False)

    path = f"/_cb/deferred/{__name__}/look_around"
    assert sample.ran == [(True, 0, path), (True, 1, path)]
    levels = [record.levelname for record in caplog.records if record.getMessage().startswith("tried")]
    assert levels == ["INFO", "WARNING"]


def test_the_helpers_outside_of_a_task(caplog: pytest.LogCaptureFixture) -> None:
    """Outside a task, isFromTaskQueue() is false unless a task's request is given, and logAsRetried() logs an ERROR."""
    assert module.isFromTaskQueue() is False
    assert module.getRetryCount() == 0
    headers = {"X-AppEngine-TaskName": "x", "X-AppEngine-QueueName": "q"}
    assert module.isFromTaskQueue(webapp2.Request.blank("/", SERVER, headers=headers)) is True
    assert module.isFromTaskQueue(webapp2.Request.blank("/")) is False
    module.logAsRetried("failed")
    assert caplog.records[0].levelname == "ERROR"
    assert caplog.records[0].funcName == "test_the_helpers_outside_of_a_task"


@pytest.mark.parametrize("lacking", ["X-AppEngine-TaskName", "X-AppEngine-QueueName", "X-Appengine-User-IP"])
def test_a_request_without_the_queues_headers_is_not_from_it(lacking: str) -> None:
    """On App Engine standard, all headers of the queue are needed, and the IP of a user must be the queue's."""
    headers = {"X-AppEngine-TaskName": "x", "X-AppEngine-QueueName": "q", "X-Appengine-User-IP": "0.1.0.2"}
    assert module.isFromTaskQueue(webapp2.Request.blank("/", SERVER, headers=headers)) is True

    headers[lacking] = "1.2.3.4" if "IP" in lacking else ""

    assert module.isFromTaskQueue(webapp2.Request.blank("/", SERVER, headers=headers)) is False


@pytest.mark.parametrize("keys", [(), ("k" * 32,)])
def test_where_others_could_send_the_headers_they_prove_nothing(
    monkeypatch: pytest.MonkeyPatch, keys: tuple[Any, ...]
) -> None:
    """Outside App Engine standard, a request without a valid signature is not from the queue."""
    monkeypatch.setattr(process, "_deployment", Deployment())
    process.install_settings(Settings(secret_keys=keys))
    headers = {"X-AppEngine-TaskName": "x", "X-AppEngine-QueueName": "q"}

    assert module.isFromTaskQueue(webapp2.Request.blank("/", headers=headers, POST=b"body")) is False
    headers["X-Deferred-Signature"] = "v1;forged"
    assert module.isFromTaskQueue(webapp2.Request.blank("/", headers=headers, POST=b"body")) is False


def test_a_signed_request_is_from_the_queue(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature counts with its own body only, and the request can be read afterwards."""
    monkeypatch.setattr(process, "_deployment", Deployment())
    key: Any = "k" * 32
    process.install_settings(Settings(secret_keys=(key,)))
    module.addTask("q", look_around).get_result()
    (task,) = tasks.enqueued
    headers = {**task.headers, "X-AppEngine-TaskName": task.name, "X-AppEngine-QueueName": task.queue}

    request = webapp2.Request.blank(task.url, headers=headers, POST=task.body)
    assert module.isFromTaskQueue(request) is True
    assert request.body == task.body
    forged = webapp2.Request.blank(task.url, headers=headers, POST=task.body + b"x")
    assert module.isFromTaskQueue(forged) is False
    process.install_settings(Settings(secret_keys=(key,), max_payload_bytes=len(task.body) - 1))
    assert module.isFromTaskQueue(request) is False
