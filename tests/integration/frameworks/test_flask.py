"""The Flask integration with the real Flask: tasks are requests of the app, and the queue gets their outcome."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import flask
import pytest
from google.appengine.api import datastore, wrap_wsgi_app
from google.appengine.ext import testbed

from deferred_middleware import PermanentTaskFailure, Settings, SingularTaskFailure, defer, defer_async
from deferred_middleware.contrib.flask import ENDPOINT, Deferred
from deferred_middleware.errors import LayerError
from deferred_middleware.testing import DeferredTasks, capture_tasks
from deferred_middleware.wire import overflow
from tests.support import adds

seen: list[Any] = []


def look_around(value: object) -> None:
    """Record what Flask provides for a task."""
    seen.append((value, flask.current_app.name, flask.g.user, flask.request.endpoint, flask.request.method))


def fail(error: Exception) -> None:
    """Raise ``error``."""
    raise error


class MissingError(Exception):
    """An exception that has an error handler."""


def make_app(settings: Settings | None = None, **config: Any) -> flask.Flask:
    """Return an app whose layers record the requests."""
    seen.clear()
    app = flask.Flask("shop")
    app.config.update(config)
    Deferred(app, settings=settings)

    @app.before_request
    def before() -> Any:
        flask.g.user = "nobody"
        if app.config.get("READ_BODY"):
            seen.append(len(flask.request.get_data()))
        return app.config.get("ANSWER")

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        if app.config.get("DEFERS"):
            flask.current_app.extensions["kept"] = defer_async(look_around, 2, _queue="quick")
        return response

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        seen.append(("teardown", type(error).__name__))

    @app.errorhandler(MissingError)
    def missing(error: MissingError) -> tuple[str, int]:
        seen.append(("handled", str(error)))
        return "sorry", 200

    @app.get("/")
    def index() -> str:
        return "hello"

    app.wsgi_app = wrap_wsgi_app(app.wsgi_app)  # type: ignore[method-assign]
    return app


def run(app: flask.Flask, tasks: DeferredTasks) -> Any:
    """Run the one pending task."""
    tasks.app = app.wsgi_app
    return tasks.run(raise_errors=False)


def test_a_task_is_a_request_of_the_app() -> None:
    """A task has before_request, g, current_app and teardown, and the queue gets a success."""
    app = make_app()
    with capture_tasks() as tasks:
        defer(look_around, 1)
        assert run(app, tasks).ok

    assert seen == [(1, "shop", "nobody", ENDPOINT, "POST"), ("teardown", "NoneType")]


def test_an_older_librarys_task_is_a_request_too() -> None:
    """A task that is posted to one of the legacy URLs runs inside the app, and the queue gets its outcome."""
    app = make_app(Settings(legacy_urls=("/_ah/queue/deferred",)))
    with capture_tasks() as tasks:
        defer(look_around, 1, _url="/_ah/queue/deferred")
        assert run(app, tasks).ok
        defer(fail, MissingError("gone"), _url="/_ah/queue/deferred")
        assert run(app, tasks).status == 500

    assert seen[0] == (1, "shop", "nobody", ENDPOINT, "POST")


@pytest.mark.parametrize("path", ["/old", "/old/", "/old/shop//buy", "/older"])
def test_a_star_stands_for_any_text_in_a_legacy_url(path: str) -> None:
    """A task that is posted to a path that starts like a legacy URL with a star runs; other paths are the app's."""
    app = make_app(Settings(legacy_urls=("/old*",)))
    with capture_tasks() as tasks:
        defer(look_around, 1, _url=path)
        assert run(app, tasks).ok

    assert seen[0] == (1, "shop", "nobody", ENDPOINT, "POST")
    assert app.test_client().post("/ol").status_code == 404


def test_other_requests_are_as_before() -> None:
    """The app's own pages are unchanged, and the task's URL accepts only POST."""
    client = make_app().test_client()

    assert client.get("/").data == b"hello"
    assert client.get("/_cb/deferred/x/y").status_code == 405
    assert client.get("/nowhere").status_code == 404


def test_a_request_that_is_not_the_queues_is_refused() -> None:
    """A request without the queue's headers gets a 403."""
    assert make_app().test_client().post("/_cb/deferred/x/y", data=b"x").status_code == 403


def test_what_a_task_raises_reaches_teardown_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Flask gets the exception, the queue gets a 500, and the log gets one record."""
    app = make_app()
    with capture_tasks() as tasks:
        defer(fail, ValueError("no"))
        answer = run(app, tasks)

    assert (answer.status, str(answer.outcome)) == (500, "Outcome.FAILED")
    assert seen == [("teardown", "ValueError")]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


def test_an_error_handler_is_called_and_does_not_hide_the_failure() -> None:
    """The app's error handler is called, but its page with status 200 doesn't make the queue drop the task."""
    app = make_app()
    with capture_tasks() as tasks:
        defer(fail, MissingError("gone"))
        answer = run(app, tasks)

    assert answer.status == 500
    assert ("handled", "gone") in seen


@pytest.mark.parametrize(("error", "status"), [(PermanentTaskFailure("x"), 200), (SingularTaskFailure("x"), 408)])
def test_failures_that_speak_to_the_queue(error: Exception, status: int) -> None:
    """The queue gets the outcome that the task's exception asks for."""
    app = make_app()
    with capture_tasks() as tasks:
        defer(fail, error)
        assert run(app, tasks).status == status


@pytest.mark.parametrize("config", [{"PROPAGATE_EXCEPTIONS": True}, {"TESTING": True}])
def test_propagated_exceptions_are_answered_all_the_same(config: dict[str, Any]) -> None:
    """If Flask is configured to propagate exceptions to the server, the queue still gets the outcome."""
    app = make_app(**config)
    with capture_tasks() as tasks:
        defer(fail, ValueError("no"))
        assert run(app, tasks).status == 500


@pytest.mark.parametrize("answer", [("maintenance", 200), ("", 204)])
def test_a_page_in_the_tasks_place_does_not_drop_it(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """If a before_request function answers 2xx, the task doesn't run and the queue must retry it."""
    app = make_app(ANSWER=answer)
    with capture_tasks() as tasks:
        defer(look_around, 1)
        assert run(app, tasks).status == 500

    assert "the task did not run" in caplog.text


def test_a_redirect_in_the_tasks_place_stands(caplog: pytest.LogCaptureFixture) -> None:
    """A response other than 2xx is passed on unchanged, and logged as an ERROR with its status and Location."""
    app = make_app(ANSWER=("", 302, {"Location": "/login"}))
    with capture_tasks() as tasks:
        defer(look_around, 1)
        assert run(app, tasks).status == 302

    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "with 302 to '" in record.getMessage()
    assert "/login'" in record.getMessage()


def raises(response: flask.Response) -> flask.Response:
    """Fail after the view."""
    raise LookupError("no commit")


def raises_at_teardown(error: BaseException | None) -> None:
    """Fail at the end of the request."""
    raise LookupError("no commit")


def raises_when_closed(response: flask.Response) -> flask.Response:
    """Let the end of the response fail."""
    response.call_on_close(lambda: raises(response))
    return response


LAYERS: dict[str, Callable[[flask.Flask], object]] = {
    "after_request raises": lambda app: app.after_request(raises),
    "teardown raises": lambda app: app.teardown_request(raises_at_teardown),
    "the end of the response raises": lambda app: app.after_request(raises_when_closed),
    "a signal's receiver raises": lambda app: app.extensions.update(
        receiver=flask.request_finished.connect(lambda sender, response: raises(response), app, weak=False)
    ),
    "after_request answers 500": lambda app: app.after_request(lambda response: flask.Response(status=500)),
    "after_request answers 404": lambda app: app.after_request(lambda response: flask.Response(status=404)),
    "after_request redirects": lambda app: app.after_request(lambda response: flask.redirect("/")),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "config", [{}, {"TESTING": True}, {"PAGE_STATUS": 200}], ids=["plain", "propagates", "answers the error with 200"]
)
@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [(None, 500, "Outcome.FAILED"), (PermanentTaskFailure("x"), 200, "Outcome.PERMANENT_FAILURE")],
)
def test_a_layer_that_fails_fails_only_a_task_that_was_done(
    caplog: pytest.LogCaptureFixture,
    layer: str,
    config: dict[str, Any],
    error: Exception | None,
    status: int,
    outcome: str,
) -> None:
    """A layer that raises or answers with another status than 2xx fails a finished task; other outcomes stand.

    The log has one ERROR with the traceback of the layer.
    """
    app = make_app(**config)
    if "PAGE_STATUS" in config:
        app.register_error_handler(500, lambda error: ("sorry", 200))
    LAYERS[layer](app)
    with capture_tasks() as tasks:
        if error is None:
            defer(look_around, 1)
        else:
            defer(fail, error)
        answer = run(app, tasks)

    assert (answer.status, str(answer.outcome)) == (status, outcome)
    if error is None:
        # Flask calls the functions of after_request for its error page too.
        errors = [record for record in caplog.records if record.levelno >= logging.ERROR and record.exc_info]
        (record,) = [record for record in errors if "while handling an error" not in record.getMessage()]
        assert "failed and will be retried" in record.getMessage()
        assert record.exc_info
        assert record.exc_info[1] is answer.error
        assert isinstance(answer.error, LookupError if "raises" in layer else LayerError)


def test_a_large_payload_is_kept_until_all_layers_are_done(engine: testbed.Testbed) -> None:
    """If a layer fails, the retry still has a payload from the datastore; after the success it is removed."""
    engine.init_datastore_v3_stub()
    app = make_app()
    refusals = [1]

    @app.after_request
    def commit(response: flask.Response) -> flask.Response:
        if refusals:
            refusals.pop()
            raise LookupError("no commit")
        return response

    content = os.urandom(200_000)
    with capture_tasks() as tasks:
        defer(look_around, content)
        tasks.app = app.wsgi_app
        answer = tasks.run(attempts=2, raise_errors=False)

    assert answer.ok
    assert [entry[0] for entry in seen] == [content, "teardown", content, "teardown"]
    assert [entity for entity in datastore.Query(overflow.KIND).Run() if "data" in entity] == []


def test_the_body_may_have_been_read_before() -> None:
    """If a before_request function reads the body, the task can still read it."""
    app = make_app(READ_BODY=True)
    with capture_tasks() as tasks:
        defer(look_around, "x" * 1000)
        assert run(app, tasks).ok

    assert isinstance(seen[0], int)
    assert seen[0] > 1000
    assert seen[1][0] == "x" * 1000


@pytest.mark.parametrize("coalesce", [False, True])
def test_a_tasks_request_waits_for_what_a_layer_defers(caplog: pytest.LogCaptureFixture, coalesce: bool) -> None:
    """If a layer's enqueue fails, the log has an ERROR at the end of the request, and the task's outcome stays."""
    app = make_app(Settings(coalesce=coalesce), DEFERS=True)
    with capture_tasks() as tasks:
        defer(look_around, 1)
        with adds.refused("quick"):
            assert run(app, tasks).ok

    assert f"{__name__}/look_around was not enqueued to queue 'quick'" in caplog.text


def test_init_app_later() -> None:
    """The extension can be created without an app, as usual in Flask."""
    app = flask.Flask("later")
    extension = Deferred()
    extension.init_app(app)
    flask_seen = []

    @app.before_request
    def before() -> None:
        flask.g.user = "x"
        flask_seen.append(flask.request.path)

    with capture_tasks(app.wsgi_app) as tasks:
        defer(look_around, 1)
        assert tasks.run().ok

    assert app.extensions[ENDPOINT] is extension
    assert flask_seen == [f"/_cb/deferred/{__name__}/look_around"]
