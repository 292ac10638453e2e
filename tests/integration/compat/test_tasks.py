"""The module in place of freshplanet's: its documented behaviour, without its defects."""

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
    """The tasks of a test; the module's settings are as without an environment, and its handler is made anew."""
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
    """Return a webapp2 app with the route that freshplanet's README gives."""
    return webapp2.WSGIApplication([webapp2.Route("/_cb/deferred/<module>/<name>", module.DeferredHandler)])


def look_around() -> None:
    """Note what the module's helpers say inside a task."""
    sample.ran.append((module.isFromTaskQueue(), module.getRetryCount(), webapp2.get_request().path))
    module.logAsRetried("tried %d times", module.getRetryCount())
    raise RuntimeError


def test_a_call_is_enqueued_and_run(tasks: DeferredTasks) -> None:
    """AddTask yields True, and the handler runs the call at its URL."""
    assert module.addTask("default", sample.pair, 1, second=2, _countdown=5).get_result() is True

    tasks.assert_enqueued(sample.pair, 1, 2, _queue="default", _countdown=5)
    tasks.app = app()
    tasks.run()
    assert sample.ran == [(1, 2)]


def test_it_can_be_yielded_in_a_tasklet(tasks: DeferredTasks) -> None:
    """What addTask returns is an ndb Future."""

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def both() -> Any:
        results = yield [module.addTask(["a"], sample.note, 1), module.addTask(["a"], sample.note, 2)]
        raise ndb.Return(results)

    assert both().get_result() == [True, True]
    assert len(tasks.enqueued) == 2


@pytest.mark.parametrize(("queues", "expected"), [("mail", {"mail"}), (["mail"], {"mail"}), ("default", {"a", "b"})])
def test_queues(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch, queues: Any, expected: set[str]) -> None:
    """A list is spread over, a single name is that queue, and 'default' means the assigned default queues."""
    monkeypatch.setattr(module, "DEFAULT_QUEUES", ["a", "b"])

    for number in range(40):
        module.addTask(queues, sample.note, number).get_result()

    assert {task.queue for task in tasks.enqueued} == expected


def test_a_name_that_is_taken(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """A taken name yields False and is logged at INFO; with _raiseIfExists it is raised."""
    caplog.set_level(logging.INFO)
    assert module.addTask("q", sample.note, _name="once").get_result() is True

    assert module.addTask("q", sample.note, _name="once").get_result() is False
    assert "once" in caplog.text
    with pytest.raises(taskqueue.TaskAlreadyExistsError):
        module.addTask("q", sample.note, _name="once", _raiseIfExists=True).get_result()


def test_a_failed_enqueue_is_raised(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps a task from being enqueued is no mere False."""

    def refuse(*args: Any) -> None:
        from google.appengine.runtime import apiproxy_errors

        code = taskqueue.taskqueue_service_bytes_pb2.TaskQueueServiceError.PERMISSION_DENIED
        raise apiproxy_errors.ApplicationError(code)

    monkeypatch.setattr(tasks._stub, "_Dynamic_BulkAdd", refuse)

    with pytest.raises(taskqueue.PermissionDeniedError):
        module.addTask("q", sample.note).get_result()


def test_wrong_arguments_are_raised_at_once(tasks: DeferredTasks) -> None:
    """What is wrong with the call itself needs no waiting."""
    with pytest.raises(ArgumentsError):
        module.addTask("q", sample.pair)


def test_an_eta_may_be_a_timestamp_and_a_parent_is_taken(tasks: DeferredTasks) -> None:
    """_eta in seconds and _parent are options of that module's."""
    module.addTask("q", sample.note, _eta=time.time() + 3600, _parent=None).get_result()

    assert 3500 < (tasks.enqueued[0].eta - tasks.enqueued[0].enqueued).total_seconds() <= 3600


def test_the_background_module(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of the default service go to the assigned module, at the same version."""
    monkeypatch.setattr(module, "BACKGROUND_MODULE", "background")
    deployment = Deployment(service="default", version="v7", environment="standard")
    monkeypatch.setattr(process, "_deployment", deployment)

    module.addTask("q", sample.note).get_result()

    assert tasks.enqueued[0].target == "v7.background"


def test_the_warmup_module_is_imported_before_a_task(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was assigned to WARMUP_MODULE reaches the handler."""
    monkeypatch.setattr(module, "WARMUP_MODULE", "this_is_nowhere")

    with pytest.raises(Exception, match="this_is_nowhere"):
        _ = module.DeferredHandler

    assert current_settings().warmup_module == "this_is_nowhere"


def test_the_helpers_in_a_task(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """A task knows that it is one and how often it was tried, and logs the louder for it."""
    caplog.set_level(logging.DEBUG)
    tasks.app = app()
    module.addTask("q", look_around).get_result()

    tasks.run(attempts=2, raise_errors=False)

    path = f"/_cb/deferred/{__name__}/look_around"
    assert sample.ran == [(True, 0, path), (True, 1, path)]
    levels = [record.levelname for record in caplog.records if record.getMessage().startswith("tried")]
    assert levels == ["INFO", "WARNING"]


def test_the_helpers_outside_of_a_task(caplog: pytest.LogCaptureFixture) -> None:
    """Outside of tasks the helpers say so, and a request can be asked."""
    assert module.isFromTaskQueue() is False
    assert module.getRetryCount() == 0
    assert module.isFromTaskQueue(webapp2.Request.blank("/", headers={"X-AppEngine-TaskName": "x"})) is True
    assert module.isFromTaskQueue(webapp2.Request.blank("/")) is False
    module.logAsRetried("failed")
    assert caplog.records[0].levelname == "ERROR"
    assert caplog.records[0].funcName == "test_the_helpers_outside_of_a_task"
