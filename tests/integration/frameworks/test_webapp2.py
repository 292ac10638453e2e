"""The webapp2 integration with the real webapp2: tasks have its request globals."""

from __future__ import annotations

from typing import Any

import pytest
import webapp2
from google.appengine.api import wrap_wsgi_app

from deferred_middleware import PermanentTaskFailure, Settings, defer
from deferred_middleware.contrib.webapp2 import Deferred
from deferred_middleware.errors import LayerError
from deferred_middleware.testing import capture_tasks

seen: list[Any] = []


def look_around(value: object) -> None:
    """Record what webapp2 provides for a task."""
    seen.append((value, webapp2.get_request().path, webapp2.get_app().config.get("name")))


def fail(error: Exception) -> None:
    """Raise ``error``."""
    raise error


class MainPage(webapp2.RequestHandler):  # type: ignore[misc] # webapp2 has no types
    """The app's own page."""

    def get(self) -> None:
        """Say hello."""
        self.response.write("hello")


def make_app(**settings: Any) -> Any:
    """Return an app with a page and tasks."""
    seen.clear()
    app = webapp2.WSGIApplication([("/", MainPage), ("/.*", MainPage)], config={"name": "shop"})
    app.error_handlers[500] = lambda request, response, error: response.set_status(200)
    return Deferred(app, settings=Settings(**settings))


def test_the_request_is_there_for_a_task() -> None:
    """webapp2.get_request() and get_app() work in a task, inside wrap_wsgi_app."""
    with capture_tasks(wrap_wsgi_app(make_app())) as tasks:
        defer(look_around, 1)
        assert tasks.run().ok

    assert seen == [(1, f"/_cb/deferred/{__name__}/look_around", "shop")]


def test_an_older_librarys_task_is_a_request_too() -> None:
    """A task that is posted to one of the legacy URLs runs inside the app."""
    with capture_tasks(make_app(legacy_urls=("/_ah/queue/deferred", "/old"))) as tasks:
        defer(look_around, 1, _url="/old")
        assert tasks.run().ok

    assert seen == [(1, "/old", "shop")]


@pytest.mark.parametrize("path", ["/old.x", "/old.x/", "/old.x/shop//buy", "/old.xy"])
def test_a_star_stands_for_any_text_in_a_legacy_url(path: str) -> None:
    """A task that is posted to a path that starts like a legacy URL with a star runs; other paths are the app's."""
    app = make_app(legacy_urls=("/old.x*",))
    with capture_tasks(app) as tasks:
        defer(look_around, 1, _url=path)
        assert tasks.run().ok

    assert seen == [(1, path, "shop")]
    assert webapp2.Request.blank("/oldxx", POST=b"").get_response(app).status_int != 403


def test_other_requests_are_as_before() -> None:
    """The app's own pages are unchanged."""
    assert webapp2.Request.blank("/").get_response(make_app()).body == b"hello"


@pytest.mark.parametrize(("error", "status"), [(ValueError("x"), 500), (PermanentTaskFailure("x"), 200)])
def test_the_queue_hears_the_outcome(error: Exception, status: int) -> None:
    """The queue gets a failure's status, whatever the app's error handlers return."""
    with capture_tasks(make_app()) as tasks:
        defer(fail, error)
        run = tasks.run(raise_errors=False)

    assert run.status == status
    assert run.error is not None


def raise_after(response: Any) -> None:
    """Fail after the handler."""
    raise LookupError("after")


@pytest.mark.parametrize("after", [raise_after, lambda response: setattr(response, "status", 503)])
def test_a_layer_that_fails_fails_a_task_that_was_done(after: Any) -> None:
    """A dispatcher that raises or answers with 503 after the task was done makes the attempt fail."""
    app = webapp2.WSGIApplication([("/", MainPage)], config={"name": "shop"})
    deferred_app = Deferred(app)
    dispatch = app.router.dispatch

    def failing(request: Any, response: Any) -> Any:
        answer = dispatch(request, response)
        after(answer)
        return answer

    app.router.set_dispatcher(lambda router, request, response: failing(request, response))
    with capture_tasks(deferred_app) as tasks:
        defer(look_around, 1)
        run = tasks.run(raise_errors=False)

    assert (run.status, str(run.outcome)) == (500, "Outcome.FAILED")
    assert isinstance(run.error, LookupError if after is raise_after else LayerError)


def test_a_request_that_is_not_the_queues_is_refused() -> None:
    """A request without the queue's headers gets a 403, and a method other than POST gets a 405."""
    app = make_app()

    assert webapp2.Request.blank("/_cb/deferred/x/y", method="POST").get_response(app).status_int == 403
    assert webapp2.Request.blank("/_cb/deferred/x/y").get_response(app).status_int == 405
