"""In an app's own requests, with each framework, calls that are deferred without waiting leave before the end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator

import flask
import pytest
import webapp2
from django.test import Client
from werkzeug.test import Client as WSGIClient

from deferred_middleware import EnqueueFuture, Settings, defer_async
from deferred_middleware.config.process import current_settings, install_settings
from deferred_middleware.contrib.flask import Deferred as FlaskDeferred
from deferred_middleware.contrib.webapp2 import Deferred as Webapp2Deferred
from deferred_middleware.enqueue import request_end
from deferred_middleware.testing import DeferredTasks, capture_tasks
from tests.support import adds, django_site, sample

django_site.application()
SITE_SETTINGS = current_settings()

Post = Callable[[str], int]
"""Makes a request and returns its status."""


kept: list[EnqueueFuture] = []
"""The pending calls. They are kept because a deleted future logs its failure itself."""


def work(name: str) -> None:
    """Run the view ``name``: defer some calls, and then do what the name says."""
    for number in range(3):
        kept.append(defer_async(sample.note, number, _queue="quick" if name == "quick" else None))
    if name == "raises":
        raise LookupError(name)


def with_django(settings: Settings) -> Post:
    """Return a client of the Django site."""
    install_settings(dataclasses.replace(SITE_SETTINGS, coalesce=settings.coalesce))
    client = Client(raise_request_exception=False)
    return lambda name: int(client.post(f"/several/{name}").status_code)


def with_flask(settings: Settings) -> Post:
    """Return a client of a Flask app that has an error page."""
    app = flask.Flask("shop")
    FlaskDeferred(app, settings=settings)

    @app.post("/several/<name>")
    def several(name: str) -> tuple[str, int]:
        work(name)
        return flask.abort(404) if name == "aborts" else ("", 202)

    @app.errorhandler(500)
    def page(error: Exception) -> tuple[str, int]:
        return "sorry", 500

    client = WSGIClient(app)
    return lambda name: client.post(f"/several/{name}", buffered=True).status_code


def with_webapp2(settings: Settings) -> Post:
    """Return a client of a webapp2 app that has an error page."""

    class Several(webapp2.RequestHandler):  # type: ignore[misc] # webapp2 has no types
        def post(self, name: str) -> None:
            work(name)
            self.abort(404) if name == "aborts" else self.response.set_status(202)

    app = webapp2.WSGIApplication([("/several/(.*)", Several)])
    app.error_handlers[500] = lambda request, response, error: response.set_status(500)
    client = WSGIClient(Webapp2Deferred(app, settings=settings))
    return lambda name: client.post(f"/several/{name}", buffered=True).status_code


each_glue = pytest.mark.parametrize("make", [with_django, with_flask, with_webapp2], ids=lambda make: make.__name__)
Make = Callable[[Settings], Post]


@pytest.fixture
def tasks() -> Iterator[DeferredTasks]:
    """Capture a test's tasks."""
    with capture_tasks() as captured:
        yield captured
    kept.clear()
    django_site.kept.clear()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of the error records in the log."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@each_glue
@pytest.mark.parametrize(("coalesce", "rpcs"), [(False, [1, 1, 1]), (True, [3])])
def test_what_a_request_deferred_leaves_before_it_ends(
    tasks: DeferredTasks, make: Make, coalesce: bool, rpcs: list[int]
) -> None:
    """When the client has its answer, all calls are enqueued, with DEFERRED_COALESCE in one RPC."""
    with adds.counted() as counts:
        assert make(Settings(coalesce=coalesce))("default") == 202

    assert counts == rpcs
    assert len(tasks.enqueued) == 3
    assert not request_end.UNDER_WAY


@each_glue
def test_a_view_that_raises_sends_none(tasks: DeferredTasks, make: Make) -> None:
    """With DEFERRED_COALESCE, a view that raises enqueues nothing, even if the framework returns an error page."""
    post = make(Settings(coalesce=True))

    assert post("raises") == 500
    tasks.assert_nothing_enqueued()
    assert post("default") == 202
    assert len(tasks.enqueued) == 3


@pytest.mark.parametrize("make", [with_flask, with_webapp2])
def test_an_answer_by_abort_is_an_answer(tasks: DeferredTasks, make: Make) -> None:
    """A view that answers with an HTTP exception has not failed, so its calls are enqueued."""
    assert make(Settings(coalesce=True))("aborts") == 404

    assert len(tasks.enqueued) == 3


@each_glue
@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.usefixtures("tasks")
def test_an_enqueue_that_fails_is_logged(caplog: pytest.LogCaptureFixture, make: Make, coalesce: bool) -> None:
    """If nobody waits for a call and the queue refuses it, the log has an ERROR with its name when the request ends."""
    with adds.refused("quick"):
        assert make(Settings(coalesce=coalesce))("quick") == 202

    assert len(errors(caplog)) == 3
    assert all("/note was not enqueued to queue 'quick'" in error for error in errors(caplog))
