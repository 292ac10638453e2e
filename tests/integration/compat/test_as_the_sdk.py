"""What ``compat.deferred`` takes because ``google.appengine.ext.deferred`` takes it."""

from __future__ import annotations

import datetime
import http
import operator
import pickle
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from google.appengine.ext import deferred as sdk
from google.appengine.ext import testbed

from deferred_middleware import DeferredMiddleware, OptionError, RetryLater, Settings, defer
from deferred_middleware.compat import deferred
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.process import install_settings
from deferred_middleware.testing import DeferredTasks, capture_tasks
from tests.support import sample
from tests.support.delivering import request, task_environ

URL = "/_ah/queue/deferred"


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Forget what ran."""
    sample.ran.clear()


@pytest.fixture
def tasks() -> Iterator[DeferredTasks]:
    """An app that sends all its calls to the older library's URL."""
    settings = Settings(default_url=URL)
    bed = testbed.Testbed()
    bed.activate()
    bed.init_datastore_v3_stub()
    with capture_tasks(DeferredMiddleware(lambda environ, start: [], settings=settings)) as captured:
        yield captured
    bed.deactivate()


@pytest.mark.parametrize("enqueue", [deferred.defer, defer])
@pytest.mark.parametrize("func", [sample.note, sample.Mailer("ann").send])
def test_one_url_for_all_calls(tasks: DeferredTasks, enqueue: Any, func: Any) -> None:
    """With the setting, every call goes to the one URL and runs there; ``_url`` takes precedence."""
    enqueue(func, "hello")
    (task,) = tasks.pending
    assert task.url == URL
    assert tasks.run().ok
    assert sample.ran
    enqueue(func, "hello", _url="/elsewhere")
    assert tasks.enqueued[-1].url == "/elsewhere"


@pytest.mark.parametrize("countdown", ["5", "5.0", " 5 ", 5, datetime.timedelta(seconds=5)])
def test_a_countdown_may_be_a_text(tasks: DeferredTasks, countdown: Any) -> None:
    """The older library converts a text with float()."""
    task = deferred.defer(sample.note, _countdown=countdown)

    assert task.eta_posix == pytest.approx(time.time() + 5, abs=2)


@pytest.mark.parametrize("countdown", ["soon", "nan", ""])
def test_a_text_that_is_no_number_is_an_error(tasks: DeferredTasks, countdown: str) -> None:
    """What isn't a number is refused."""
    with pytest.raises(OptionError):
        deferred.defer(sample.note, _countdown=countdown)


def test_an_eta_without_a_time_zone_is_local_time(tasks: DeferredTasks) -> None:
    """No warning: in the older library it is the usual form."""
    eta = datetime.datetime.now() + datetime.timedelta(minutes=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = deferred.defer(sample.note, _eta=eta)

    assert task.eta_posix == pytest.approx(eta.timestamp(), abs=1e-3)


@pytest.mark.parametrize("header", ["X-AppEngine-FailFast", "X-AppEngine-Fail-Fast"])
def test_the_platforms_header_for_tasks_is_passed_on(tasks: DeferredTasks, header: str) -> None:
    """App Engine reads the header X-AppEngine-FailFast of a task."""
    assert deferred.defer(sample.note, _headers={header: "true"}).headers[header] == "true"


CURRIED = [
    (sample.note, (1,)),
    (sample.Mailer("ann").send, (1,)),
    (operator.add, (1, 2)),
    (datetime.datetime(2020, 1, 1).isoformat, ()),
    (sample.Mailer, ("ann",)),
]


@pytest.mark.parametrize(("func", "args"), CURRIED)
def test_a_call_is_curried_as_in_the_older_library(func: Any, args: tuple[Any, ...]) -> None:
    """_curry_callable() returns a tuple that pickles, and that run() of both libraries runs."""
    curried = deferred._curry_callable(func, *args)

    assert curried[0] is (sdk.invoke_member if hasattr(func, "__self__") and func is not operator.add else func)
    data = pickle.dumps(curried)
    assert type(deferred.run(data)) is type(sdk.run(data))


def test_what_cannot_be_called_is_not_curried() -> None:
    """The error is the older library's."""
    with pytest.raises(ValueError, match="obj must be callable"):
        deferred._curry_callable("text")  # type: ignore[arg-type] # that is the test


@pytest.mark.parametrize("text", ["small", "x" * 200_000, "".join(map(chr, range(32, 40_000))) * 3])
def test_run_reads_every_body_that_we_write(tasks: DeferredTasks, text: str) -> None:
    """Also a compressed one, and one that refers to the datastore."""
    deferred.defer(sample.note, text)
    (task,) = tasks.pending

    deferred.run(task.body)

    assert sample.ran == [((text,), {})]


class TestHandler:
    """The handler class."""

    def environ(self, tasks: DeferredTasks) -> dict[str, Any]:
        """Return the environ of the pending task's request."""
        task = tasks.enqueued[0]
        headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in task.headers.items()}
        headers.pop("HTTP_CONTENT_TYPE", None)
        return task_environ(task.body, URL, **headers, HTTP_X_APPENGINE_TASKNAME=task.name)

    def test_post_and_run_from_request_can_be_overridden(self, tasks: DeferredTasks) -> None:
        """The WSGI app calls post(), and that calls run_from_request()."""
        seen: list[str] = []

        class Own(deferred.Handler):
            def run_from_request(self, environ: Any) -> Any:
                seen.append("run_from_request")
                return super().run_from_request(environ)

            def post(self, environ: Any) -> Any:
                seen.append("post")
                text, status, headers = super().post(environ)
                return f"own {text}", status, headers

        deferred.defer(sample.note, 1)

        response = request(Own(), self.environ(tasks))

        assert seen == ["post", "run_from_request"]
        assert (response.status, response.body) == (200, b"own done")
        assert sample.ran == [((1,), {})]

    @pytest.mark.parametrize(("error", "status"), [(sdk.SingularTaskFailure(), 408), (sdk.PermanentTaskFailure(), 200)])
    def test_an_override_may_raise_the_librarys_errors(self, error: Exception, status: int) -> None:
        """post() answers them as those of the task."""

        class Own(deferred.Handler):
            def run_from_request(self, environ: Any) -> Any:
                raise error

        assert Own().post({})[1] == status

    @pytest.mark.parametrize(
        ("error", "status"),
        [(sdk.SingularTaskFailure("x"), 408), (sdk.PermanentTaskFailure("x"), 200), (ValueError("x"), 500)],
    )
    def test_as_an_app_it_has_a_response_to_every_error(
        self, tasks: DeferredTasks, error: Exception, status: int
    ) -> None:
        """The status is that of the outcome."""
        deferred.defer(sample.raises, error)

        assert request(deferred.Handler(), self.environ(tasks)).status == status

    def test_a_task_that_is_enqueued_again_is_not_retried_too(self, tasks: DeferredTasks) -> None:
        """post() returns the response to RetryLater; a framework would turn an exception into a retry."""
        deferred.defer(sample.raises, RetryLater(60))

        _, status, _ = deferred.Handler().post(self.environ(tasks))

        assert status is http.HTTPStatus.OK
        assert len(tasks.enqueued) == 2

    def test_a_length_may_be_an_int_and_the_queue_missing(self, tasks: DeferredTasks) -> None:
        """The older library's handler needs only the task's name; the signature is checked nevertheless."""
        install_settings(Settings(default_url=URL, secret_keys=(SecretKey("k" * 40),), require_signature=True))
        deferred.defer(sample.note, 1)

        def status_of(**changed: Any) -> int:
            environ = {**self.environ(tasks), "HTTP_X_APPENGINE_QUEUENAME": None, **changed}
            environ = {name: value for name, value in environ.items() if value is not None}
            environ["CONTENT_LENGTH"] = int(environ["CONTENT_LENGTH"])
            return int(deferred.Handler().post(environ)[1])

        assert status_of(HTTP_X_DEFERRED_SIGNATURE="v1;") == 403
        assert status_of(HTTP_X_DEFERRED_SIGNATURE=None) == 403
        assert status_of(HTTP_X_APPENGINE_TASKNAME=None) == 403
        assert status_of(HTTP_X_APPENGINE_QUEUENAME="other") == 403
        assert sample.ran == []
        assert status_of() == 200
        assert sample.ran == [((1,), {})]
