"""The middleware behaves the same beneath other layers and above frameworks that need no integration."""

from __future__ import annotations

import io
import wsgiref.util
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import bottle
import falcon
import google.cloud.ndb as cloud_ndb
import pyramid.config
import pyramid.response
import pytest
import webtest
from google.appengine.ext import ndb, testbed
from google.auth.credentials import AnonymousCredentials

from deferred_middleware import DeferredMiddleware, defer, defer_async
from deferred_middleware.testing import capture_tasks

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

seen: list[Any] = []


def note(value: object) -> None:
    """Record a value."""
    seen.append(("task", value))


def fail() -> None:
    """Raise."""
    raise RuntimeError("in a task")


class Closing:
    """A response iterable that records calls of its close()."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the parts."""
        return self._parts

    def close(self) -> None:
        """Record the call."""
        seen.append("closed")


def stream() -> Iterator[bytes]:
    """Yield a response in parts."""
    yield b"one "
    yield b"two"


def plain() -> WSGIApplication:
    """Return a plain WSGI app."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/error":
            raise ZeroDivisionError("in the app")
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Method", method)])
        if path == "/file":
            wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(b"from a file"))
            return wrapped
        if path == "/stream":
            return Closing(stream())
        return [] if method == "HEAD" else [b"hello"]

    return app


def with_bottle() -> WSGIApplication:
    """Return a Bottle app."""
    app = bottle.Bottle()
    app.config["catchall"] = False

    @app.route("/", method=["GET", "OPTIONS"])  # type: ignore[untyped-decorator]
    def index() -> str:
        bottle.response.content_type = "text/plain"
        bottle.response.set_header("X-Method", bottle.request.method)
        return "hello"

    @app.route("/stream")  # type: ignore[untyped-decorator]
    def streaming() -> Any:
        bottle.response.content_type = "text/plain"
        return Closing(stream())

    @app.route("/file")  # type: ignore[untyped-decorator]
    def file() -> Any:
        bottle.response.content_type = "text/plain"
        return io.BytesIO(b"from a file")

    @app.route("/error")  # type: ignore[untyped-decorator]
    def error() -> None:
        raise ZeroDivisionError("in the app")

    return app  # type: ignore[no-any-return]


def with_falcon() -> WSGIApplication:
    """Return a Falcon app."""

    class Everything:
        def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
            if request.path == "/error":
                raise ZeroDivisionError("in the app")
            response.content_type = "text/plain"
            response.set_header("X-Method", request.method)
            if request.path == "/stream":
                response.stream = Closing(stream())
            elif request.path == "/file":
                response.stream = io.BytesIO(b"from a file")
            else:
                response.text = "hello"

        on_head = on_options = on_get

    app = falcon.App()

    def reraise(request: falcon.Request, response: falcon.Response, error: Exception, params: Any) -> None:
        raise error

    app.add_error_handler(ZeroDivisionError, reraise)
    for path in ("/", "/stream", "/file", "/error"):
        app.add_route(path, Everything())
    return app  # type: ignore[return-value] # its own type of start_response


def with_pyramid() -> WSGIApplication:
    """Return a Pyramid app."""

    def view(request: Any) -> Any:
        if request.path == "/error":
            raise ZeroDivisionError("in the app")
        response = pyramid.response.Response(content_type="text/plain", headerlist=None)
        response.headers["X-Method"] = request.method
        if request.path == "/stream":
            response.app_iter = Closing(stream())
        elif request.path == "/file":
            response.app_iter = request.environ["wsgi.file_wrapper"](io.BytesIO(b"from a file"))
        elif request.method != "HEAD":
            response.text = "hello"
        return response

    with pyramid.config.Configurator() as config:
        config.add_route("any", "/*path")
        config.add_view(view, route_name="any")
        return config.make_wsgi_app()  # type: ignore[no-any-return]


class Layer:
    """A middleware around ours that records requests and responses."""

    def __init__(self, app: WSGIApplication, name: str) -> None:
        self._app = app
        self._name = name

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Record the request."""
        seen.append(f"into {self._name}")
        result = self._app(environ, start_response)
        seen.append(f"out of {self._name}")
        return result


FRAMEWORKS = [plain, with_bottle, with_falcon, with_pyramid]
each_framework = pytest.mark.parametrize("make", FRAMEWORKS, ids=lambda make: make.__name__)
Make = Callable[[], Any]


@pytest.fixture(autouse=True)
def forget() -> None:
    """Clear the records."""
    seen.clear()


def client(make: Make) -> webtest.TestApp:
    """Return a client for an app inside the middleware, with PEP 3333 validators on both sides."""
    environ = {"wsgi.file_wrapper": wsgiref.util.FileWrapper}
    return webtest.TestApp(validator(DeferredMiddleware(make())), extra_environ=environ, lint=False)


@each_framework
def test_layers_run_for_tasks_in_their_order(make: Make) -> None:
    """A layer around the middleware runs for tasks as for pages; a layer inside it doesn't run for tasks."""
    app = Layer(Layer(DeferredMiddleware(make()), "inner"), "outer")
    with capture_tasks(app) as tasks:
        defer(note, 1)
        tasks.run()

    assert seen == ["into outer", "into inner", ("task", 1), "out of inner", "out of outer"]


@each_framework
def test_pages_are_untouched(make: Make) -> None:
    """A page keeps the app's content and headers."""
    response = client(make).get("/")

    assert (response.body, response.headers["X-Method"], response.content_type) == (b"hello", "GET", "text/plain")


@each_framework
def test_a_stream_is_passed_on_and_closed_once(make: Make) -> None:
    """A streaming response arrives complete, and its close() is called exactly once."""
    assert client(make).get("/stream").body == b"one two"
    assert seen.count("closed") == 1


@each_framework
def test_a_file_is_passed_on(make: Make) -> None:
    """The content of a wsgi.file_wrapper arrives, and the server can still recognise the wrapper."""
    assert client(make).get("/file").body == b"from a file"


def test_the_servers_file_wrapper_is_returned_itself() -> None:
    """The middleware returns the file wrapper's own object, because a server uses sendfile() only for that."""
    wrapped = wsgiref.util.FileWrapper(io.BytesIO(b"x"))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        return wrapped

    result = DeferredMiddleware(app)({"PATH_INFO": "/x"}, lambda *args: None)  # type: ignore[arg-type]
    assert result is wrapped


@each_framework
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_other_methods_are_untouched(make: Make, method: str) -> None:
    """HEAD and OPTIONS requests reach the app unchanged."""
    if make is with_bottle and method == "HEAD":
        response = client(make).head("/")
        assert response.headers["X-Method"] == "HEAD"
        return
    response = client(make).request("/", method=method)

    assert response.headers["X-Method"] == method


@each_framework
def test_what_the_app_raises_is_raised(make: Make) -> None:
    """An exception of the app reaches the layers around the middleware."""
    with pytest.raises(ZeroDivisionError, match="in the app"):
        client(make).get("/error")


@each_framework
def test_what_a_task_raises_is_an_answer(make: Make) -> None:
    """A task's failure is a 500 response, not an exception for the layers around the middleware."""
    with capture_tasks(DeferredMiddleware(make())) as tasks:
        defer(fail)

        assert tasks.run(raise_errors=False).status == 500


class Thing(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """An entity."""

    value = ndb.IntegerProperty()


def put_later() -> None:
    """Start to put an entity, without waiting for it."""
    Thing(id="one", value=1).put_async()


@pytest.fixture
def datastore() -> Iterator[testbed.Testbed]:
    """The SDK's datastore stub."""
    bed = testbed.Testbed()
    bed.activate()
    bed.init_datastore_v3_stub()
    bed.init_memcache_stub()
    yield bed
    bed.deactivate()


@cloud_ndb.tasklet  # type: ignore[untyped-decorator] # no types
def in_cloud_ndb(value: object) -> Any:
    """Run to its end as a google-cloud-ndb tasklet, in its client's context."""
    seen.append(cloud_ndb.get_context().client.project)
    found = yield half_way(value)
    seen.append(found)


@cloud_ndb.tasklet  # type: ignore[untyped-decorator] # no types
def half_way(value: object) -> Any:
    """Return ``value``, as a tasklet."""
    yield []
    raise cloud_ndb.Return(value)


def test_google_cloud_ndbs_context_around_the_middleware() -> None:
    """If a layer around the middleware enters the ndb client's context, tasks run in it and their tasklets complete."""
    client = cloud_ndb.Client(project="shop", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call] # no types
    app = DeferredMiddleware(plain())

    def with_context(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with client.context():
            return app(environ, start_response)

    with capture_tasks(with_context) as tasks:
        defer(in_cloud_ndb, 7)
        assert tasks.run().ok

    assert seen == ["shop", 7]


def test_ndb_toplevel_around_the_middleware(datastore: testbed.Testbed) -> None:
    """ndb.toplevel waits, at the end of a task's request, for what the task started."""
    with capture_tasks(ndb.toplevel(DeferredMiddleware(plain()))) as tasks:
        defer(put_later)
        tasks.run()

    assert Thing.get_by_id("one", use_cache=False, use_memcache=False).value == 1


@pytest.mark.usefixtures("engine")
def test_a_tasklet_of_google_cloud_ndb_waits_for_the_result() -> None:
    """A google-cloud-ndb tasklet that yields an EnqueueFuture raises an error, whose advice works."""
    client = cloud_ndb.Client(project="shop", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call] # no types

    @cloud_ndb.tasklet  # type: ignore[untyped-decorator] # no types
    def yields() -> Any:
        yield defer_async(note, 1)

    @cloud_ndb.tasklet  # type: ignore[untyped-decorator] # no types
    def waits() -> Any:
        yield cloud_ndb.sleep(0)
        raise cloud_ndb.Return(defer_async(note, 1).result())

    with client.context():
        with pytest.raises(RuntimeError, match=r"illegal value: <EnqueueFuture .*/note .*\.result\(\) waits for it"):
            yields().result()
        assert waits().result().was_enqueued
