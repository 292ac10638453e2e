"""The replacement for the SDK's ``deferred`` module, beside the SDK's own: each runs what the other enqueues."""

from __future__ import annotations

import http
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from google.appengine.api import taskqueue
from google.appengine.ext import db, testbed
from google.appengine.ext import deferred as sdk

from deferred_middleware import DeferredMiddleware, Settings
from deferred_middleware.compat import deferred
from deferred_middleware.config import process
from deferred_middleware.config.process import Deployment
from deferred_middleware.errors import CallableNotFoundError, PayloadError
from deferred_middleware.testing import DeferredTasks, EnqueuedTask, capture_tasks
from tests.support import sample

LEGACY_URL = "/_ah/queue/deferred"


def not_found(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"nothing here\n"]


@pytest.fixture
def tasks() -> Iterator[DeferredTasks]:
    """Set up the SDK's datastore and an app that runs our tasks and the older library's."""
    bed = testbed.Testbed()
    bed.activate()
    bed.init_datastore_v3_stub()
    with capture_tasks(DeferredMiddleware(not_found, settings=Settings(legacy_urls=(LEGACY_URL,)))) as captured:
        yield captured
    bed.deactivate()


def environ_of(task: EnqueuedTask, **more: Any) -> dict[str, Any]:
    """Return a task's request for the SDK's handler."""
    import io

    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": task.url,
        "CONTENT_LENGTH": str(len(task.body)),
        "HTTP_X_APPENGINE_TASKNAME": task.name,
        "HTTP_X_APPENGINE_QUEUENAME": task.queue,
        "SERVER_SOFTWARE": "gunicorn",
        "REMOTE_ADDR": "0.1.0.2",
        "wsgi.input": io.BytesIO(task.body),
    }
    return {**environ, **more}


@pytest.mark.parametrize(
    ("func", "args", "result"),
    [
        (operator.add, (1, 2), 3),
        (dict, ([(1, 2)],), {1: 2}),
        ("text".upper, (), "TEXT"),
        (len, ([1, 2],), 2),
    ],
)
def test_serialize_and_run(func: Any, args: tuple[Any, ...], result: object) -> None:
    """run() of both modules runs a serialized call and returns what the function returns."""
    data = deferred.serialize(func, *args)

    assert deferred.run(data) == result
    assert sdk.run(data) == result
    assert deferred.run(sdk.serialize(func, *args)) == result


def test_serialize_takes_any_argument() -> None:
    """A call may have arguments with the names that the SDK's functions use for their own."""
    deferred.run(deferred.serialize(sample.note, obj=1, membername=2, _countdown=3))

    assert sample.ran == [((), {"obj": 1, "membername": 2, "_countdown": 3})]


@pytest.mark.parametrize("error", [pickle.PicklingError, AttributeError])
def test_what_import_cannot_find_is_the_error_that_it_was(error: type[Exception]) -> None:
    """serialize() raises for a lambda, with an error of every type that pickle raises on any Python version."""
    with pytest.raises(error):
        deferred.serialize(lambda: None)
    with pytest.raises(ValueError, match="can't be called"):
        deferred.serialize("no function")  # type: ignore[arg-type]


def test_run_does_not_take_a_missing_callable_for_a_permanent_failure() -> None:
    """A callable that this version lacks is no permanent failure, because another version may have it."""
    with pytest.raises(CallableNotFoundError):
        deferred.run(b"ctests.support.sample\nmissing\n.")
    with pytest.raises(PayloadError):
        deferred.run(b"")


def test_the_exceptions_are_the_sdks() -> None:
    """Existing except clauses for the SDK's exceptions still work."""
    assert deferred.PermanentTaskFailure is sdk.PermanentTaskFailure
    assert deferred.SingularTaskFailure is sdk.SingularTaskFailure
    assert issubclass(deferred.PermanentTaskFailure, deferred.Error)


def test_defer_takes_the_options_of_the_sdk(tasks: DeferredTasks) -> None:
    """Options and headers arrive as with the SDK's module, and None means "not given"."""
    task = deferred.defer(
        sample.pair,
        1,
        second=2,
        _name="foo",
        _countdown=10,
        _queue="mail",
        _headers={"X-AppEngine-Fail-Fast": "true", "Content-Type": "text/plain"},
        _retry_options=taskqueue.TaskRetryOptions(task_retry_limit=3),
        _url=None,
        _transactional=False,
    )

    assert (task.name, task.headers["X-AppEngine-Fail-Fast"], task.headers["Content-Type"]) == (
        "foo",
        "true",
        "text/plain",
    )
    tasks.assert_enqueued(sample.pair, 1, 2, _queue="mail", _name="foo", _countdown=10)
    tasks.run()
    assert sample.ran == [(1, 2)]


@pytest.mark.parametrize("version", [None, "v7"])
def test_a_target_of_one_label(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """A service's name alone is a valid target and is sent unchanged, even if the enqueueing version is unknown."""
    deployment = Deployment(service="default", version=version, environment="standard")
    monkeypatch.setattr(process, "_deployment", deployment)

    task = deferred.defer(sample.note, _target="backend")

    assert (task.target, task.headers["Host"]) == ("backend", "backend.app.test")
    assert tasks.enqueued[0].target == "backend"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, http.HTTPStatus.OK),
        (deferred.SingularTaskFailure("x"), http.HTTPStatus.REQUEST_TIMEOUT),
        (deferred.PermanentTaskFailure("x"), http.HTTPStatus.OK),
    ],
)
def test_the_handlers_post_answers(tasks: DeferredTasks, error: Exception | None, status: http.HTTPStatus) -> None:
    """post() returns the body, status and headers for a view of the app."""
    if error is None:
        deferred.defer(sample.note, _url="/run")
    else:
        deferred.defer(sample.raises, error, _url="/run")

    text, code, headers = deferred.Handler().post(environ_of(tasks.pending[0]))

    assert code is status
    assert isinstance(text, str)
    assert ("Content-Type", "text/plain; charset=UTF-8") in headers


def test_what_a_task_raises_leaves_post(tasks: DeferredTasks) -> None:
    """post() raises a task's exception, as the SDK's handler does; the WSGI app answers with a status instead."""
    deferred.defer(sample.raises, KeyError("mine"), _url="/run")

    with pytest.raises(KeyError, match="mine"):
        deferred.Handler().post(environ_of(tasks.pending[0]))

    tasks.clear()
    deferred.defer(sample.raises, deferred.SingularTaskFailure("x"), _url="/run")
    with pytest.raises(deferred.SingularTaskFailure):
        deferred.Handler().run_from_request(environ_of(tasks.pending[0]))


def test_a_request_that_is_not_the_queues_is_refused(tasks: DeferredTasks) -> None:
    """A request without the queue's header gets a 403, whatever the server software and the client's address are."""
    deferred.defer(sample.note, _url="/run")
    environ = environ_of(tasks.pending[0], SERVER_SOFTWARE="Development/1.0")
    del environ["HTTP_X_APPENGINE_TASKNAME"]

    assert deferred.Handler().post(environ)[1] is http.HTTPStatus.FORBIDDEN
    assert sample.ran == []


def test_the_handler_is_a_wsgi_app(tasks: DeferredTasks) -> None:
    """The WSGI app runs tasks at the app's own URL, answers GET with 405, and answers a failing task with an error."""
    tasks.app = deferred.application
    deferred.defer(sample.note, 1, _url="/run")
    deferred.defer(sample.raises, ValueError("x"), _url="/run")

    first, second = tasks.run_all(raise_errors=False)

    assert (first.status, second.status) == (200, 500)
    started: list[str] = []
    deferred.application({"REQUEST_METHOD": "GET"}, lambda status, headers: started.append(status))  # type: ignore[arg-type]
    assert started == ["405 Method Not Allowed"]


def test_the_log_level_of_what_went_well(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """set_log_level sets the level of the log record for a successful task."""
    import logging

    caplog.set_level(logging.DEBUG)
    deferred.set_log_level(logging.WARNING)
    tasks.app = deferred.Handler()
    deferred.defer(sample.note, _url="/run")
    tasks.run()

    assert [record.levelname for record in caplog.records if "tests.support.sample/note" in record.getMessage()] == [
        "WARNING"
    ]


class TestTasksInFlight:
    """Tasks that the SDK's module enqueued before the migration."""

    @pytest.mark.parametrize("size", [10, 150_000])
    def test_it_runs(self, tasks: DeferredTasks, size: int) -> None:
        """A task at the older URL runs; if its payload is in the datastore, the payload is deleted afterwards."""
        sdk.defer(sample.note, "x" * size, flag=True)

        (task,) = tasks.pending
        assert task.url == LEGACY_URL
        assert tasks.run().ok
        assert sample.ran == [(("x" * size,), {"flag": True})]
        assert sdk.deferred._DeferredTaskEntity.all().count() == 0

    def test_a_method_runs(self, tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
        """A bound method, which the SDK stores as a call of its own function, runs and is logged under its own name."""
        import logging

        caplog.set_level(logging.DEBUG)
        sdk.defer(sample.Mailer("ann").send, "hello")

        assert tasks.run().ok
        assert "tests.support.sample/Mailer.send ran" in caplog.text

    def test_a_payload_that_is_not_there_yet_is_tried_again(self, tasks: DeferredTasks) -> None:
        """If the payload isn't in the datastore, the SDK drops the task; our handler fails it, so it is retried."""
        sdk.defer(sample.note, "x" * 150_000)
        (entity,) = sdk.deferred._DeferredTaskEntity.all().fetch(2)
        db.delete(entity)

        assert tasks.run(raise_errors=False).status == 500
        entity.put()
        assert tasks.run().ok

    def test_a_stored_payload_outlives_a_failure(self, tasks: DeferredTasks) -> None:
        """A task that fails keeps its payload for the next attempt; a task that fails for good doesn't."""
        sdk.defer(sample.raises, ValueError("x" * 150_000))
        assert tasks.run(raise_errors=False).status == 500
        assert sdk.deferred._DeferredTaskEntity.all().count() == 1

        tasks.clear()
        sdk.defer(sample.raises, sdk.PermanentTaskFailure("x" * 150_000))
        assert tasks.run(raise_errors=False).status == 200
        assert sdk.deferred._DeferredTaskEntity.all().count() == 1

    def test_without_the_setting_the_url_is_the_apps(self, tasks: DeferredTasks) -> None:
        """Unless DEFERRED_LEGACY_URLS names the older URL, the app itself handles it."""
        tasks.app = DeferredMiddleware(not_found, settings=Settings())
        sdk.defer(sample.note)

        assert tasks.run(raise_errors=False).status == 404

    def test_an_older_task_is_refused_without_the_queues_headers(self, tasks: DeferredTasks) -> None:
        """The older URL has the same security checks as ours."""
        sdk.defer(sample.note)
        environ = environ_of(tasks.pending[0])
        del environ["HTTP_X_APPENGINE_QUEUENAME"]
        started: list[str] = []

        assert tasks.app is not None
        tasks.app(environ, lambda status, headers: started.append(status))  # type: ignore[arg-type]

        assert started == ["403 Forbidden"]


@pytest.mark.parametrize("method", [sample.Mailer("ann").send, sample.note])
def test_after_a_roll_back_the_sdk_runs_what_ours_enqueued(tasks: DeferredTasks, method: Any) -> None:
    """The SDK's handler runs a task that our module sends to the older URL."""
    deferred.defer(method, "hello", _url=LEGACY_URL)

    _, status, _ = sdk.Handler().post(environ_of(tasks.pending[0]))

    assert status is http.HTTPStatus.OK
    assert sample.ran


class Troublesome:
    """An object whose attributes raise or can't be called."""

    number = 1

    @property
    def raises(self) -> Any:
        """Raise what no handler expects."""
        raise SystemExit("not me")

    @property
    def circular(self) -> Any:
        """Raise a RecursionError."""
        return self.circular


@pytest.mark.parametrize(
    "content",
    [
        (sdk.deferred.invoke_member, (), {}),
        (sdk.deferred.invoke_member, (1,), {}),
        (sdk.deferred.invoke_member, (Troublesome(), 1), {}),
        (sdk.deferred.invoke_member, (Troublesome(), "raises"), {}),
        (sdk.deferred.invoke_member, (Troublesome(), "circular"), {}),
        (sdk.deferred.invoke_member, (Troublesome(), "number"), {}),
        (sdk.deferred.invoke_member, (Troublesome(), "\ud800"), {}),
        (sdk.deferred.run_from_datastore, (), {}),
        (sdk.deferred.run_from_datastore, (1,), {}),
        (sdk.deferred.run_from_datastore, (None,), {}),
        (sdk.deferred.run_from_datastore, ("no key",), {}),
        (sdk.deferred.run_from_datastore, ("\ud800",), {}),
        (sdk.deferred.run_from_datastore, ([],), {}),
        (sdk.deferred.run_from_datastore, (["no", "key"],), {}),
    ],
)
def test_a_malformed_call_is_a_payload_error(content: Any) -> None:
    """A call of the older library that can't be resolved is unreadable, with an error that says so."""
    from deferred_middleware.execution import legacy

    bed = testbed.Testbed()
    bed.activate()
    bed.init_datastore_v3_stub()
    try:
        with pytest.raises((PayloadError, CallableNotFoundError)):
            legacy.resolved(content, Settings())
    finally:
        bed.deactivate()


def test_a_failing_datastore_leaves_the_task_in_the_queue(tasks: DeferredTasks) -> None:
    """If the datastore can't be asked, the task is answered with 500, and stays."""
    from tests.support.delivering import request, task_environ

    body = pickle.dumps((sdk.deferred.run_from_datastore, ("no key",), {}))

    assert tasks.app is not None
    assert request(tasks.app, task_environ(body, LEGACY_URL)).status == 500
