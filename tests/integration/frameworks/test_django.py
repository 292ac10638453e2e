"""The Django integration with the real Django: tasks pass MIDDLEWARE, and the queue gets their outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings as django_settings
from django.core import checks, signals
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.core.wsgi import get_wsgi_application
from django.db import IntegrityError, connection
from django.http import HttpResponse, HttpResponseRedirect
from django.test import Client, override_settings

from deferred_middleware import (
    ArgumentsError,
    NotAllowedError,
    NotCallableError,
    PermanentTaskFailure,
    SingularTaskFailure,
    UnpicklableArgumentError,
    defer,
)
from deferred_middleware.calls import allowlist
from deferred_middleware.calls.payload import content_of
from deferred_middleware.config.process import current_settings, install_settings
from deferred_middleware.execution import dead_letters
from deferred_middleware.server.admin.views import view_of
from deferred_middleware.testing import DeferredTasks, capture_tasks
from tests.support import adds, django_site
from tests.support.django_site import seen

APPLICATION = django_site.application()
SETTINGS = current_settings()


@pytest.fixture
def tasks() -> Iterator[DeferredTasks]:
    """Capture a test's tasks; the site runs them."""
    install_settings(SETTINGS)
    seen.clear()
    django_site.answers.clear()
    django_site.kept.clear()
    with capture_tasks(APPLICATION) as captured:
        yield captured


def things() -> list[str]:
    """Return the names in the database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT value FROM things")
        found = [row[0] for row in cursor.fetchall()]
        cursor.execute("DELETE FROM things")
    return found


def test_a_task_goes_through_middleware(tasks: DeferredTasks) -> None:
    """The site's middleware sees the task's request, the CSRF check lets it pass, and the queue gets the outcome."""
    defer(django_site.note, 1)

    assert tasks.run().ok
    assert seen == [("middleware", "/_cb/deferred/tests.support.django_site/note"), ("ran", 1)]


def test_an_older_librarys_task_goes_through_middleware_too(tasks: DeferredTasks) -> None:
    """A task that is posted to one of the LEGACY_URLS runs as a request of the site, and the queue gets its outcome."""
    defer(django_site.note, 1, _url="/_ah/queue/deferred")
    defer(django_site.raise_it, SingularTaskFailure("x"), _url="/_ah/queue/deferred")

    done, again = tasks.run_all(raise_errors=False)

    assert (done.status, again.status) == (200, 408)
    assert seen[:2] == [("middleware", "/_ah/queue/deferred"), ("ran", 1)]


@pytest.mark.parametrize("path", ["/old", "/old/", "/old/shop//buy", "/older"])
def test_a_star_stands_for_any_text_in_a_legacy_url(tasks: DeferredTasks, path: str) -> None:
    """A task that is posted to a path that starts like a legacy URL with a star runs; other paths are the site's."""
    defer(django_site.note, 1, _url=path)

    assert tasks.run().ok
    assert seen[:2] == [("middleware", path), ("ran", 1)]
    assert Client().post("/ol").status_code == 404


def test_only_the_tasks_view_is_exempt_from_csrf(tasks: DeferredTasks) -> None:
    """Other views still refuse a POST without a CSRF token."""
    assert Client(enforce_csrf_checks=True).post("/signup/ann").status_code == 403


def test_a_request_that_is_not_the_queues_is_refused(tasks: DeferredTasks) -> None:
    """A request without the queue's headers gets a 403, and the settings' hook is called."""
    assert Client().post("/_cb/deferred/x/y", b"x", "application/octet-stream").status_code == 403
    assert "refused" in seen


def test_a_call_is_enqueued_when_the_transaction_commits(tasks: DeferredTasks) -> None:
    """defer_on_commit enqueues after the commit; after a rollback it enqueues nothing."""
    assert Client().post("/signup/nobody").status_code == 404
    tasks.assert_nothing_enqueued()

    assert Client().post("/signup/ann").status_code == 202
    tasks.assert_enqueued(django_site.note, "ann")


def test_a_failing_task_rolls_back(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """With ATOMIC_REQUESTS a failed task's writes are rolled back, and the log has one record of the failure."""
    defer(django_site.use_database, "good")
    defer(django_site.use_database, "bad")

    good, bad = tasks.run_all(raise_errors=False)

    assert (good.status, bad.status, str(bad.outcome)) == (200, 500, "Outcome.FAILED")
    assert things() == ["good"]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


@pytest.mark.parametrize(("error", "status"), [(PermanentTaskFailure("x"), 200), (SingularTaskFailure("x"), 408)])
def test_failures_that_speak_to_the_queue(tasks: DeferredTasks, error: Exception, status: int) -> None:
    """The queue gets the outcome that the task's exception asks for."""
    defer(django_site.raise_it, error)

    assert tasks.run(raise_errors=False).status == status


def test_a_page_in_the_tasks_place_does_not_drop_it(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """If a middleware answers 200 in the task's place, the task doesn't run and the queue must retry it."""
    django_site.answers["all"] = HttpResponse("maintenance")
    defer(django_site.note, 1)

    assert tasks.run(raise_errors=False).status == 500
    assert "the task did not run" in caplog.text


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_in_the_tasks_place_is_an_error(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A middleware that redirects, as SecurityMiddleware does, is an ERROR with status and Location."""
    django_site.answers["all"] = HttpResponse(status=status, headers={"Location": "https://example.com/"})
    defer(django_site.note, 1)

    assert tasks.run(raise_errors=False).status == status
    assert f"with {status} to 'https://example.com/'" in caplog.text


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the error records in the log."""
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("page", [None, HttpResponse("sorry")])
@pytest.mark.parametrize("propagates", [False, True])
def test_a_commit_that_fails_is_a_failed_attempt(
    tasks: DeferredTasks,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    page: HttpResponse | None,
    propagates: bool,
) -> None:
    """If the COMMIT of ATOMIC_REQUESTS is refused, the attempt fails, and the log has one ERROR with the traceback."""
    monkeypatch.setattr(django_site.Noting, "page", page)
    defer(django_site.refuse_commit, 1)

    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=propagates):
        run = tasks.run(raise_errors=False)

    assert (run.status, str(run.outcome), type(run.error)) == (500, "Outcome.FAILED", IntegrityError)
    (record,) = errors(caplog)
    assert "failed and will be retried: tests.support.django_site/refuse_commit(1)" in record.getMessage()
    assert record.exc_info
    assert record.exc_info[1] is run.error
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM parts")
        assert cursor.fetchall() == []


def raise_after(response: HttpResponse) -> HttpResponse:
    """Fail after the view."""
    raise LookupError("after")


def deny_after(response: HttpResponse) -> HttpResponse:
    """Fail after the view with an exception that Django answers with 403."""
    raise PermissionDenied


LAYERS: dict[str, Callable[[HttpResponse], HttpResponse]] = {
    "raises": raise_after,
    "denies": deny_after,
    "answers 503": lambda response: HttpResponse(status=503),
    "redirects": lambda response: HttpResponseRedirect("/login"),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (None, 500, "Outcome.FAILED"),
        (ValueError("x"), 500, "Outcome.FAILED"),
        (SingularTaskFailure("x"), 408, "Outcome.RETRY"),
        (PermanentTaskFailure("x"), 200, "Outcome.PERMANENT_FAILURE"),
    ],
)
def test_a_layer_that_fails_fails_only_a_task_that_was_done(
    tasks: DeferredTasks,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    layer: str,
    error: Exception | None,
    status: int,
    outcome: str,
) -> None:
    """A middleware that raises or answers with another status than 2xx fails a finished task; other outcomes stand."""
    monkeypatch.setattr(django_site.Noting, "after", staticmethod(LAYERS[layer]))
    if error is None:
        defer(django_site.note, 1)
    else:
        defer(django_site.raise_it, error)

    run = tasks.run(raise_errors=False)

    assert (run.status, str(run.outcome)) == (status, outcome)
    texts = [record.getMessage() for record in errors(caplog)]
    if error is None:
        assert len([text for text in texts if "failed and will be retried" in text]) == 1
        assert {"raises": "after", "answers 503": "with 503", "redirects": "with 302"}.get(layer, "") in str(run.error)
    if layer == "raises" and error is not None:
        assert len([text for text in texts if "the task keeps its outcome" in text]) == 1


def test_a_layer_that_fails_in_the_last_attempt_makes_a_dead_letter(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the attempt was the last that the task's options allow, the failure of a layer makes it a dead letter."""
    monkeypatch.setattr(django_site.Noting, "after", staticmethod(raise_after))
    defer(django_site.note, 1, _retry_options={"task_retry_limit": 0})

    assert tasks.run(raise_errors=False).status == 500
    assert "failed in its last attempt" in caplog.text
    assert dead_letters.MARK in caplog.text


def test_the_body_may_have_been_read_before(tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a middleware reads request.body, the task can still read it."""
    monkeypatch.setattr(django_site.Noting, "read_body", True)
    defer(django_site.note, "x" * 1000)

    assert tasks.run().ok
    assert seen[-1] == ("ran", "x" * 1000)


def test_a_request_ends_as_any_other(tasks: DeferredTasks) -> None:
    """Django sends request_finished once, and so closes what the request left open."""
    finished: list[Any] = []

    def finish(sender: Any, **kwargs: Any) -> None:
        finished.append(sender)

    signals.request_finished.connect(finish)
    try:
        defer(django_site.note, 1)
        tasks.run()
    finally:
        signals.request_finished.disconnect(finish)

    assert len(finished) == 1


@pytest.mark.parametrize("coalesce", [False, True])
def test_a_tasks_request_waits_for_what_a_middleware_defers(
    tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, coalesce: bool
) -> None:
    """If a layer's enqueue fails, the log has an ERROR at the end of the request, and the task's outcome stays."""
    monkeypatch.setattr(django_site.Noting, "defers", True)
    install_settings(dataclasses.replace(SETTINGS, coalesce=coalesce))
    tasks.app = get_wsgi_application()
    defer(django_site.note, 1)

    with adds.refused("quick"):
        assert tasks.run().ok
    assert caplog.text.count("tests.support.django_site/note was not enqueued to queue 'quick'") >= 3


def test_settings_come_from_the_site_as_well(tasks: DeferredTasks) -> None:
    """settings.DEFERRED overrides the environment's settings."""
    assert SETTINGS.log_level == logging.INFO


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"LOGLEVEL": 1}, r"did you mean 'LOG_LEVEL'\?"),
        ({"URL_PREFIX": "no/slash"}, "DEFERRED_URL_PREFIX='no/slash' can't be used"),
    ],
)
def test_a_wrong_setting_is_told(tasks: DeferredTasks, given: dict[str, Any], told: str) -> None:
    """If a key is misspelt or a value is wrong, the site doesn't start and the error explains why."""
    from deferred_middleware.contrib.django.apps import install

    with pytest.raises(ImproperlyConfigured, match=told):
        install(given)


def test_the_check_finds_nothing_wrong(tasks: DeferredTasks) -> None:
    """A site that follows the documentation passes Django's system check."""
    assert [message.id for message in checks.run_checks() if "deferred" in str(message.id)] == []


def test_the_check_tells_what_is_missing(tasks: DeferredTasks) -> None:
    """If the middleware or the URLs are missing, manage.py check reports it."""
    with override_settings(MIDDLEWARE=list(django_settings.MIDDLEWARE)[1:], ROOT_URLCONF="django_empty"):
        sys.modules["django_empty"] = type(sys)("django_empty")
        sys.modules["django_empty"].urlpatterns = []  # type: ignore[attr-defined]
        found = {message.id for message in checks.run_checks() if "deferred" in str(message.id)}

    assert found == {"deferred_middleware.E001", "deferred_middleware.E002"}


def found_with(**settings: Any) -> list[str]:
    """Return the IDs of our checks that find something with these settings."""
    with override_settings(**settings):
        return [str(message.id) for message in checks.run_checks() if "deferred" in str(message.id)]


@pytest.mark.parametrize(
    ("debug", "allowed", "warned"),
    [
        (True, [], False),
        (True, ["localhost"], True),
        (True, [".localhost"], False),
        (True, ["shop.appspot.com"], True),
        (False, ["*"], False),
        (False, ["www.example.com"], True),
        (False, ["shop.ew.r.appspot.com"], False),
        (False, [".appspot.com"], False),
        (False, [".localhost"], False),
    ],
)
def test_the_check_tells_of_hosts(tasks: DeferredTasks, debug: bool, allowed: list[str], warned: bool) -> None:
    """manage.py check warns if ALLOWED_HOSTS refuses the hosts of tasks."""
    assert found_with(DEBUG=debug, ALLOWED_HOSTS=allowed) == ["deferred_middleware.W004"] * warned


def test_a_task_is_delivered_to_the_host_of_the_request(tasks: DeferredTasks) -> None:
    """A task that a view deferred has the host of the view's request; the next one outside of requests has it too."""
    with override_settings(ALLOWED_HOSTS=["shop.example.com"]):
        assert Client(headers={"Host": "shop.example.com"}).post("/signup/ann").status_code == 202
        assert tasks.run().ok
        defer(django_site.note, 1)
        assert tasks.run().ok

    assert {task.host for task in tasks.enqueued} == {"shop.example.com"}


LEGACY = r"^_ah/queue/deferred$"


@pytest.mark.parametrize(
    ("exempt", "warnings"),
    [
        ([], 3),
        ([r"^_cb/deferred/"], 2),
        ([r"^_cb/deferred/", LEGACY], 1),
        ([r"^_cb/", LEGACY, "^old"], 0),
        (["^s/"], 3),
    ],
)
def test_the_check_tells_of_redirects(tasks: DeferredTasks, exempt: list[str], warnings: int) -> None:
    """manage.py check warns of SECURE_SSL_REDIRECT unless each URL of tasks is exempt; the hint is what helps."""
    middleware = [*django_settings.MIDDLEWARE, "django.middleware.security.SecurityMiddleware"]
    settings: dict[str, Any] = {"MIDDLEWARE": middleware, "SECURE_SSL_REDIRECT": True}

    assert found_with(**settings, SECURE_REDIRECT_EXEMPT=exempt) == ["deferred_middleware.W005"] * warnings
    assert found_with(MIDDLEWARE=middleware, SECURE_SSL_REDIRECT=False) == []


@pytest.mark.parametrize(
    ("source", "main", "warned"),
    [
        ("application = get_wsgi_application()", None, True),
        ("application = wrap_wsgi_app(get_wsgi_application())", None, False),
        ("application = api.wrap_wsgi_app(get_wsgi_application())", None, False),
        ("application = get_wsgi_application()", "app = wrap_wsgi_app(application)", False),
        ("application = = # no Python", None, True),
    ],
)
def test_the_check_tells_of_a_missing_wrapper(
    tasks: DeferredTasks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    main: str | None,
    warned: bool,
) -> None:
    """manage.py check warns if neither the module of WSGI_APPLICATION nor main.py calls wrap_wsgi_app."""
    (tmp_path / "checked_wsgi.py").write_text(source)
    if main is not None:
        (tmp_path / "main.py").write_text(main)
    monkeypatch.delitem(sys.modules, "main", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    assert found_with(WSGI_APPLICATION="checked_wsgi.application") == ["deferred_middleware.W003"] * warned
    assert "checked_wsgi" not in sys.modules


if django.VERSION >= (6, 0):
    from django.tasks import TaskContext, TaskResult, task
    from django.tasks.exceptions import InvalidTask
    from django.tasks.signals import task_enqueued, task_finished, task_started

    @task
    def django_note(value: object) -> None:
        """Record a value, as one of Django's tasks."""
        seen.append(("django", value))

    @task(takes_context=True, queue_name="mail")
    async def django_attempt(context: TaskContext[Any, Any]) -> None:
        """Record the attempt's number, and fail."""
        seen.append(context.attempt)
        raise ValueError("no")

    @pytest.fixture
    def told() -> Iterator[list[str]]:
        """Collect Django's task signals."""
        heard: list[str] = []

        def on(sender: Any, task_result: TaskResult[Any, Any], signal: Any, **kwargs: Any) -> None:
            heard.append(f"{names[signal]} {task_result.status.name}")

        names = {task_enqueued: "enqueued", task_started: "started", task_finished: "finished"}
        for signal in names:
            signal.connect(on)
        yield heard
        for signal in names:
            signal.disconnect(on)

    def test_djangos_own_tasks_enqueue_through_us(tasks: DeferredTasks, told: list[str]) -> None:
        """Our defer enqueues a function that has Django's @task, and our handler runs it."""
        result = django_note.enqueue(7)

        assert tasks.run().ok
        assert result.status.name == "READY"
        assert seen[-1] == ("django", 7)
        assert told == ["enqueued READY", "started RUNNING", "finished SUCCESSFUL"]

    HERE = __name__

    @task
    def django_options(_queue: str, _countdwn: int = 0) -> None:
        """Record arguments that have the names of options."""
        seen.append((_queue, _countdwn))

    @task
    def django_generator() -> Iterator[None]:
        """Run nothing unless somebody iterates."""
        yield

    def test_a_django_task_is_named_by_its_own_function(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
        """The URL, the captured task, the local server and the log of a failure name the function and its arguments."""
        django_attempt.enqueue()
        django_note.enqueue({"a": [1]})

        attempt, noted = tasks.pending
        assert attempt.url == f"/_cb/deferred/{HERE}/django_attempt"
        assert str(noted.label) == f"{HERE}/django_note"
        assert view_of(noted.body).text == f"{HERE}.django_note({{'a': [1]}})"
        assert view_of(noted.body).callable == f"{HERE}.django_note"
        assert tasks.run(attempt, raise_errors=False).status == 500
        assert f"failed and will be retried: {HERE}/django_attempt()" in caplog.text
        assert "backend" not in attempt.url + noted.url

    @pytest.mark.parametrize(
        ("django_task", "args", "kwargs", "error", "problem"),
        [
            (django_note, (), {}, ArgumentsError, "missing a required argument: 'value'"),
            (django_note, (1, 2), {}, ArgumentsError, "too many positional arguments"),
            (django_note, (1,), {"valu": 2}, ArgumentsError, "unexpected keyword argument 'valu'"),
            (django_note, (1,), {"_queue": "mail"}, ArgumentsError, "unexpected keyword argument '_queue'"),
            (django_attempt, (1,), {}, ArgumentsError, "too many positional arguments"),
            (django_attempt, (), {"context": 1}, ArgumentsError, "unexpected keyword argument 'context'"),
            (django_note, ({"a": [0, object()]},), {}, UnpicklableArgumentError, r"args\[0\]\['a'\]\[1\]: object"),
            (django_note, (), {"value": [b"\xff"]}, UnpicklableArgumentError, r"kwargs\['value'\]\[0\]: bytes"),
            (django_note, ({(1, object()): 1},), {}, UnpicklableArgumentError, r"\(key tuple\)\[1\]: object"),
            (django_generator, (), {}, NotCallableError, "generator function"),
        ],
    )
    def test_djangos_enqueue_checks_arguments_as_defer_does(
        tasks: DeferredTasks,
        told: list[str],
        django_task: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        error: type[Exception],
        problem: str,
    ) -> None:
        """A call that could not run is an error at enqueue() that names the function and what is wrong."""
        with pytest.raises(error, match=f"{HERE}/{django_task.func.__name__}.*{problem}"):
            django_task.enqueue(*args, **kwargs)

        tasks.assert_nothing_enqueued()
        assert told == []

    def test_arguments_of_a_django_task_are_no_options(tasks: DeferredTasks) -> None:
        """A keyword argument that has the name of an option of defer is the function's."""
        django_options.enqueue(_queue="x", _countdwn=3)

        assert tasks.run().ok
        assert seen[-1] == ("x", 3)

    def test_a_nested_argument_of_a_django_task_is_told(tasks: DeferredTasks) -> None:
        """An argument that is nested too deep is an error that says so."""
        deep: list[Any] = []
        for _ in range(20_000):
            deep = [deep]

        with pytest.raises(UnpicklableArgumentError, match=r"args\[0\]: list is nested too deep"):
            django_note.enqueue(deep)

    def test_a_django_task_of_an_earlier_version_runs(tasks: DeferredTasks, told: list[str]) -> None:
        """A task in flight that names the backend's own function runs as before."""
        from django.utils import timezone

        from deferred_middleware.contrib.django import backend

        defer(backend.run, django_note, [7], {}, "an-id", timezone.now())

        assert tasks.run().ok
        assert seen[-1] == ("django", 7)
        assert told == ["started RUNNING", "finished SUCCESSFUL"]

    @pytest.mark.parametrize("replacement", [None, len])
    def test_a_django_task_that_is_gone_is_retried(
        tasks: DeferredTasks, monkeypatch: pytest.MonkeyPatch, replacement: object
    ) -> None:
        """If this version of the site has something else under the task's name, the queue gets a 500."""
        django_note.enqueue(1)
        monkeypatch.setitem(globals(), "django_note", replacement)

        assert tasks.run(raise_errors=False).status == 500

    @pytest.mark.parametrize(
        ("entry", "allowed"),
        [
            (f"{HERE}:django_note", True),
            (f"{HERE}:*", True),
            (f"{HERE}:django_options", False),
            ("deferred_middleware.contrib.django.backend:load_task", False),
            ("deferred_middleware.contrib.django.backend:TaskCall", False),
            ("deferred_middleware.contrib.django.backend:*", False),
        ],
    )
    def test_the_list_of_callables_names_the_functions_of_django_tasks(
        tasks: DeferredTasks, entry: str, allowed: bool
    ) -> None:
        """DEFERRED_ALLOWED_CALLABLES has the task's own function, before and after the payload is loaded."""
        django_note.enqueue(7)
        (task,) = tasks.pending
        settings = dataclasses.replace(SETTINGS, allowed_callables=(entry,))
        func = task.func
        assert func is not None

        for check in (
            lambda: content_of(task.body, settings, legacy=False),
            lambda: allowlist.check_callable(func, (entry,)),
            lambda: allowlist.check_payload(task.body, (entry,), legacy=False),
        ):
            with contextlib.nullcontext() if allowed else pytest.raises(NotAllowedError):
                check()

    def test_a_django_task_can_be_later_and_elsewhere(tasks: DeferredTasks) -> None:
        """run_after becomes the task's ETA, and its queue becomes the queue."""
        from datetime import timedelta

        from django.utils import timezone

        django_attempt.using(run_after=timezone.now() + timedelta(hours=1)).enqueue()

        (queued,) = tasks.pending
        assert queued.queue == "mail"
        assert 3500 < (queued.eta - queued.enqueued).total_seconds() <= 3600
        assert tasks.run_all() == []

    def test_a_django_task_knows_its_attempts_and_when_it_has_failed(tasks: DeferredTasks, told: list[str]) -> None:
        """A Django task's attempts are counted, and Django gets a signal when the failure is final."""
        django_attempt.enqueue()

        tasks.run(attempts=2, raise_errors=False)

        assert [value for value in seen if isinstance(value, int)] == [1, 2]
        assert told == ["enqueued READY", "started RUNNING", "started RUNNING", "finished FAILED"]

    def test_what_the_backend_cannot_do_is_told_by_django(tasks: DeferredTasks) -> None:
        """Priorities, and queues that are not in the settings, are refused when the task is created."""
        with pytest.raises(InvalidTask):
            django_note.using(priority=5)
        with pytest.raises(InvalidTask):
            django_note.using(queue_name="unknown")

    def test_a_wrong_option_of_the_backend_is_told(tasks: DeferredTasks) -> None:
        """OPTIONS accepts the options of defer and no others."""
        from deferred_middleware.contrib.django.backend import DeferredBackend

        with pytest.raises(ImproperlyConfigured, match="retires"):
            DeferredBackend("default", {"OPTIONS": {"retires": 1}})


def test_this_is_the_django_that_was_meant() -> None:
    """If the environment names a Django version, that version is installed."""
    import os

    wanted = os.environ.get("TEST_DJANGO")
    assert wanted is None or django.get_version().startswith(wanted)
    assert Path(django.__file__).is_file()
