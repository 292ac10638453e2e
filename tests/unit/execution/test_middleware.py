"""Tests of the middleware: requests that pass through, and the statuses of tasks."""

from __future__ import annotations

import asyncio
import functools
import io
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from google.appengine.ext import deferred

from deferred_middleware import DeferredMiddleware, Settings, SettingsError, call, current_task, defer
from deferred_middleware.calls import payload
from deferred_middleware.config.process import current_settings
from tests.support import sample
from tests.support.delivering import APP_ENGINE_STANDARD, Queued, Response, request, task_environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Stand for the user's app."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-From", "app")])
    return [b"app"]


def deliver(func: Any, *args: Any, settings: Settings | None = None, **environ: Any) -> Response:
    """Run a call through the middleware as the queue would."""
    made = call(func, *args)
    body = payload.dumps(made, 5)
    path = f"/_cb/deferred/{made.label.path}"
    return request(DeferredMiddleware(app, settings=settings), task_environ(body, path, **environ))


class Recorder:
    """A WSGI app that records its arguments."""

    def __init__(self) -> None:
        self.called_with: tuple[Any, Any] | None = None
        self.iterable = [b"x"]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Return the same iterable each time."""
        self.called_with = (environ, start_response)
        return self.iterable


@pytest.mark.parametrize(
    "path", ["/", "", None, "/_cb/deferred", "/_cb/deferred2/a/b", "/x/_cb/deferred/a/b", "/_CB/deferred/a/b"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_other_requests_pass_untouched(path: str | None, method: str) -> None:
    """The wrapped app gets the same environ and start_response, and the server gets the app's own iterable."""
    recorder = Recorder()
    environ = task_environ(b"", PATH_INFO=path, REQUEST_METHOD=method)
    before = dict(environ)

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        raise AssertionError("nobody answers here")

    result = DeferredMiddleware(recorder)(environ, start_response)

    assert result is recorder.iterable
    assert recorder.called_with is not None
    assert recorder.called_with[0] is environ
    assert recorder.called_with[1] is start_response
    assert environ == before


def test_an_error_of_the_app_passes_through() -> None:
    """The middleware doesn't catch exceptions of the wrapped app."""

    def broken(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        DeferredMiddleware(broken)(task_environ(b"", PATH_INFO="/"), lambda *args: None)  # type: ignore[arg-type]


def test_what_is_no_app_is_refused() -> None:
    """A wrapped object that is not callable raises an error at construction, not at the first request."""
    with pytest.raises(TypeError, match="wraps a WSGI app, not 'main:app'"):
        DeferredMiddleware("main:app")  # type: ignore[arg-type]


def test_a_task_that_returns_is_done() -> None:
    """The status is 200 if the call returns."""
    response = deliver(sample.pair, 1, 2)

    assert (response.status, response.body) == (200, b"done\n")
    assert "x-deferred-outcome" not in response.headers
    assert sample.ran == [(1, 2)]


def test_what_the_task_returns_stays_inside() -> None:
    """The call's return value is not in the response."""
    assert deliver(sample.coroutine, 1).body == b"done\n"


@pytest.mark.parametrize(
    ("error", "args", "status", "outcome"),
    [
        (deferred.SingularTaskFailure, (), 408, None),
        (deferred.PermanentTaskFailure, (), 200, "permanent-failure"),
        (ValueError, ("x",), 500, None),
        (SystemExit, (3,), 500, None),
        (GeneratorExit, (), 500, None),
        (RecursionError, (), 500, None),
        (MemoryError, (), 500, None),
        (ImportError, (), 500, None),
        (StopIteration, (), 500, None),
    ],
)
def test_the_status_says_how_a_task_failed(
    error: type[BaseException], args: tuple[Any, ...], status: int, outcome: str | None
) -> None:
    """Each kind of failure has its status; only failures that are not retried get a 2xx and an outcome header."""
    response = deliver(sample.raises_new, error, *args)

    assert response.status == status
    assert response.headers.get("x-deferred-outcome") == outcome


def test_an_interrupt_is_the_developers() -> None:
    """KeyboardInterrupt propagates; it is not a failure of the task."""
    with pytest.raises(KeyboardInterrupt):
        deliver(sample.raises_new, KeyboardInterrupt)


def test_a_failure_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The traceback is logged, and is not in the response."""
    response = deliver(sample.raises_new, ValueError, "secret")

    assert response.body == b"failed\n"
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        payload.dumps(call(sample.note, "x"), 5)[:-3],
        pickle.dumps("a call? no"),
        payload.dumps(call(sample.note), 0).replace(b"note", b"nope"),
        payload.dumps(call(sample.note), 0).replace(b"sample", b"simple"),
        pickle.dumps((sample.note, (sample.BadLoader(SystemExit(1)),), {})),
    ],
)
def test_what_cannot_be_read_is_retried(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A payload that this version can't decode is never acknowledged, because a newer version may decode it."""
    response = request(DeferredMiddleware(app), task_environ(body))

    assert response.status == 500
    assert sample.ran == []
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_a_hidden_generator_is_no_success() -> None:
    """A task whose body never ran is not acknowledged."""
    assert deliver(sample.hidden_generator).status == 500
    assert sample.ran == []


def test_async_functions_run() -> None:
    """An async function runs to its end before the task is acknowledged."""
    assert deliver(sample.coroutine, 7).status == 200
    assert sample.ran == [("awaited", 7)]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_tasks_are_posted(method: str) -> None:
    """A method other than POST gets status 405 with an Allow header."""
    response = request(DeferredMiddleware(app), task_environ(b"", REQUEST_METHOD=method))

    assert (response.status, response.headers["allow"]) == (405, "POST")
    assert response.body == (b"" if method == "HEAD" else b"send tasks with POST\n")


@pytest.mark.parametrize("missing", ["HTTP_X_APPENGINE_TASKNAME", "HTTP_X_APPENGINE_QUEUENAME"])
def test_strangers_are_refused(missing: str, caplog: pytest.LogCaptureFixture) -> None:
    """A request that is not from the queue gets 403 without details, logs a warning, and nothing is unpickled."""
    body = pickle.dumps((sample.note, ("evil",), {}))

    response = request(DeferredMiddleware(app), task_environ(body, **{missing: None}))

    assert (response.status, response.body) == (403, b"forbidden\n")
    assert sample.ran == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "evil" not in record.getMessage()


def test_a_payload_is_not_loaded_for_a_stranger() -> None:
    """An untrusted payload is not unpickled, because unpickling alone can run a stranger's code."""
    body = pickle.dumps((sample.note, (sample.BadLoader(AssertionError("unpickled")),), {}))

    assert request(DeferredMiddleware(app), task_environ(body, HTTP_X_APPENGINE_TASKNAME=None)).status == 403


def test_too_large_a_body_is_refused_unread() -> None:
    """A body over the limit gets 413, and none of it is read."""

    class Unreadable(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise AssertionError("read")

    environ = task_environ(b"", CONTENT_LENGTH="1001", **{"wsgi.input": Unreadable()})

    assert request(DeferredMiddleware(app, settings=Settings(max_payload_bytes=1000)), environ).status == 413


def test_a_chunked_body_is_read_to_its_end() -> None:
    """A body without a length is read to the end that the server signals, within the limit."""
    body = payload.dumps(call(sample.note, "chunked"), 5)
    ended: dict[str, Any] = {"CONTENT_LENGTH": None, "wsgi.input_terminated": True}
    small = DeferredMiddleware(app, settings=Settings(max_payload_bytes=len(body)))

    assert request(small, task_environ(body, "/_cb/deferred/tests.support.sample/note", **ended)).status == 200
    assert request(small, task_environ(body + b"x", "/_cb/deferred/tests.support.sample/note", **ended)).status == 413
    assert sample.ran == [(("chunked",), {})]


@pytest.mark.parametrize("length", ["", None])
def test_a_missing_length_loses_nothing(length: str | None) -> None:
    """A body of unknown length can't be read, and the task is not acknowledged."""
    body = payload.dumps(call(sample.note), 5)

    assert request(DeferredMiddleware(app), task_environ(body, CONTENT_LENGTH=length)).status == 411


def test_a_body_that_is_cut_off_is_retried() -> None:
    """A body that is shorter than announced is retried."""
    body = payload.dumps(call(sample.note), 5)

    assert request(DeferredMiddleware(app), task_environ(body, CONTENT_LENGTH=str(len(body) + 1))).status == 400
    assert sample.ran == []


@pytest.mark.parametrize(
    ("length", "status"), [("-1", "400"), ("abc", "400"), ("1.5", "400"), ("٣", "400"), ("9" * 5000, "413")]
)
def test_a_length_that_is_no_number_is_refused(length: str, status: str) -> None:
    """A malformed Content-Length is a client error, and nothing is read."""
    environ = task_environ(b"x" * 10, CONTENT_LENGTH=length)
    responses: list[str] = []

    # Without wsgiref's validator, which fails on such lengths.
    b"".join(DeferredMiddleware(app)(environ, lambda status, headers, exc=None: responses.append(status)))  # type: ignore[arg-type]

    assert responses[0][:3] == status


def test_a_connection_that_breaks_off_is_retried() -> None:
    """A connection error during the body makes the task retry, and raises no exception to the server."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError

    environ = task_environ(b"x", **{"wsgi.input": Broken()})

    assert request(DeferredMiddleware(app), environ).status == 400


def test_a_body_that_comes_in_pieces_is_put_together() -> None:
    """A server's input may return fewer bytes than requested."""

    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    body = payload.dumps(call(sample.note, "dripped"), 5)

    assert request(DeferredMiddleware(app), task_environ(body, **{"wsgi.input": Dripping(body)})).status == 200
    assert sample.ran == [(("dripped",), {})]


def test_the_url_must_name_the_call(caplog: pytest.LogCaptureFixture) -> None:
    """A payload is not run under another call's URL, so that URLs in logs and dashboards are reliable."""
    body = payload.dumps(call(sample.note), 5)

    for path in (
        "/_cb/deferred/tests.support.sample/pair",
        "/_cb/deferred/os/system",
        "/_cb/deferred/",
        "/_cb/deferred/tests.support.sample",
    ):
        assert request(DeferredMiddleware(app), task_environ(body, path)).status == 500

    assert sample.ran == []
    assert "the payload calls tests.support.sample/note" in caplog.text


def test_a_renamed_function_still_runs_under_its_old_url() -> None:
    """After a rename that keeps an alias, a task in flight under the old name still runs."""
    body = payload.dumps(call(sample.note), 5)

    assert (
        request(DeferredMiddleware(app), task_environ(body, "/_cb/deferred/tests.support.sample/old_name")).status
        == 200
    )


def test_nothing_is_imported_because_a_url_says_so() -> None:
    """A module is never imported because a URL names it."""
    assert "this" not in sys.modules
    body = payload.dumps(call(sample.note), 5)

    request(DeferredMiddleware(app), task_environ(body, "/_cb/deferred/this/note"))

    assert "this" not in sys.modules


def test_names_beyond_ascii_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callable with a non-ASCII name has a URL, and runs from it."""

    def größe() -> None:
        sample.ran.append("größe")

    größe.__module__, größe.__qualname__ = sample.__name__, "größe"
    monkeypatch.setattr(sample, "größe", größe, raising=False)

    assert deliver(größe).status == 200
    assert sample.ran == ["größe"]


def test_the_task_knows_itself() -> None:
    """During a call, the current task has the call's context; afterwards there is no current task."""
    seen: list[Any] = []

    def look() -> None:
        seen.append(current_task())

    look.__module__, look.__qualname__ = sample.__name__, "look"
    sample.look = look  # type: ignore[attr-defined]
    try:
        deliver(look, HTTP_X_APPENGINE_TASKRETRYCOUNT="2")
    finally:
        del sample.look  # type: ignore[attr-defined]

    (context,) = seen
    assert (context.label, context.name, context.attempt) == ("tests.support.sample/look", "task1", 3)
    assert current_task() is None


@pytest.mark.parametrize("loop_runs", [False, True])
def test_an_asynchronous_task_knows_itself(loop_runs: bool) -> None:
    """The current task is the same in a task's coroutine, in asyncio tasks that it starts, and in pool threads."""

    async def server() -> None:
        assert deliver(sample.notes_its_task, "first", HTTP_X_APPENGINE_TASKNAME="one").status == 200

    if loop_runs:
        asyncio.run(server())
    else:
        assert deliver(sample.notes_its_task, "first", HTTP_X_APPENGINE_TASKNAME="one").status == 200

    assert sample.ran == [("first", ["one"] * 4)]
    assert current_task() is None


def test_a_task_that_runs_another_inline_has_its_own_context_again() -> None:
    """An inner task sees its own context; after it, the outer task sees its own again."""
    seen: list[str] = []

    def outer() -> None:
        for inner in (True, False):
            if inner:
                assert deliver(look, HTTP_X_APPENGINE_TASKNAME="inner").status == 200
            look()

    def look() -> None:
        context = current_task()
        assert context is not None
        seen.append(context.name)

    for func in (outer, look):
        func.__module__, func.__qualname__ = sample.__name__, func.__name__
        setattr(sample, func.__name__, func)
    try:
        assert deliver(outer, HTTP_X_APPENGINE_TASKNAME="outer").status == 200
    finally:
        for func in (outer, look):
            delattr(sample, func.__name__)

    assert seen == ["inner", "outer", "outer"]


def test_given_settings_hold_for_both_sides(queued: Queued) -> None:
    """Settings given to the middleware also apply to ``defer``, so that tasks go where the middleware expects them."""
    settings = Settings(url_prefix="/tasks")
    middleware = DeferredMiddleware(app, settings=settings)

    task = defer(sample.pair, 1)

    assert current_settings() is settings
    assert task.url == "/tasks/tests.support.sample/pair"
    assert request(middleware, task_environ(task.payload, task.url)).status == 200


@pytest.mark.parametrize(
    ("path", "runs"),
    [
        ("/old", True),
        ("/old/", False),
        ("/older", False),
        ("/_ah/queue/deferred", True),
        ("/_ah/queue/deferred/shop/buy", True),
        ("/_ah/queue/deferred_2", True),
        ("/_ah/queue/defer", False),
        ("/x/_ah/queue/deferred", False),
        ("/_ah/queue/deferred*", True),
    ],
)
def test_a_star_at_the_end_of_a_legacy_url_stands_for_any_text(path: str, runs: bool) -> None:
    """Tasks run at the legacy URLs and at what starts like those with a star; other requests are the app's."""
    middleware = DeferredMiddleware(app, settings=Settings(legacy_urls=("/old", "/_ah/queue/deferred*")))

    response = request(middleware, task_environ(pickle.dumps((sample.note, (path,), {})), path))

    assert response.body == (b"done\n" if runs else b"app")
    assert sample.ran == ([((path,), {})] if runs else [])


def test_a_warm_up_module_that_is_not_there_stops_the_start() -> None:
    """A misspelt warm-up module raises an error at startup, before any task is lost."""
    with pytest.raises(SettingsError, match="DEFERRED_WARMUP_MODULE='no_such_module'"):
        DeferredMiddleware(app, settings=Settings(warmup_module="no_such_module"))
    with pytest.raises(SettingsError, match=r"DEFERRED_WARMUP_MODULE='no_such_package\.module'"):
        DeferredMiddleware(app, settings=Settings(warmup_module="no_such_package.module"))


def test_passing_on_needs_no_sdk() -> None:
    """Importing the package and passing requests through imports neither the SDK nor asyncio."""
    program = (
        "import sys, webob; from deferred_middleware import DeferredMiddleware; "
        "DeferredMiddleware(lambda e, s: [])({'PATH_INFO': '/'}, None); "
        "print([n for n in sys.modules if n.startswith(('google.appengine', 'asyncio'))])"
    )

    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, **APP_ENGINE_STANDARD},
    )

    assert result.stdout.strip() == "[]"


async def asgi_function(scope: Any, receive: Any, send: Any) -> None:
    """Stand for an ASGI app."""


class AsgiApp:
    """Stands for an ASGI app such as FastAPI, Starlette or Django's ``ASGIHandler``."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""


class PlainAsgiApp:
    """Stands for an ASGI app that returns an awaitable."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        """Answer a request."""
        return asgi_function(scope, receive, send)


@pytest.mark.parametrize(
    "app",
    [asgi_function, AsgiApp(), AsgiApp().handle, PlainAsgiApp(), functools.partial(asgi_function)],
    ids=lambda app: type(app).__name__,
)
def test_an_asgi_app_is_refused_when_it_is_wrapped(app: Any) -> None:
    """An ASGI app is an error at construction that says so, and not at the first request."""
    with pytest.raises(TypeError, match="is an ASGI app; give the framework's WSGI app"):
        DeferredMiddleware(app)


@pytest.mark.parametrize(
    "app",
    [mock.MagicMock(), lambda environ, start_response: [], functools.partial(print)],
    ids=["mock", "lambda", "partial"],
)
def test_other_callables_are_wrapped(app: Any) -> None:
    """A callable whose signature says nothing is taken for a WSGI app."""
    DeferredMiddleware(app)
