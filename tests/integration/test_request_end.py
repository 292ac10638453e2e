"""On a server that streams responses, the client doesn't wait for enqueues at the end of a request."""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import default_api_stub
from waitress.server import create_server

from deferred_middleware import DeferredMiddleware, Settings, defer_async
from deferred_middleware.config.process import install_settings
from tests.support import faults, sample
from tests.support.faults import BOUND_SECONDS, FaultyServer, Held

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.fixture
def queue() -> Iterator[FaultyServer]:
    """Run a task queue that can delay its answers."""
    server = FaultyServer()
    install_settings(Settings(enqueue_seconds=30))
    with faults.connected(server):
        yield server
    server.close()


@pytest.fixture
def over() -> threading.Event:
    """Return an event that is set when the server has finished the request."""
    return threading.Event()


@pytest.fixture
def port(queue: FaultyServer, over: threading.Event) -> Iterator[int]:
    """Serve an app that enqueues without waiting, and return its port."""

    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        default_api_stub.DefaultApiStub.SetUseRequestSecurityTicketForThread(True)
        defer_async(sample.note, 1)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
        return [b"do", b"ne"]

    wrapped = DeferredMiddleware(page)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        yield from wrapped(environ, start_response)
        over.set()

    server: Any = create_server(app, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server.effective_port
    server.close()
    thread.join(BOUND_SECONDS)


def ask(port: int) -> None:
    """Read the whole page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND_SECONDS)
    connection.request("GET", "/page")
    assert connection.getresponse().read() == b"done"
    connection.close()


def test_the_response_is_sent_before_the_wait(queue: FaultyServer, port: int, over: threading.Event) -> None:
    """The client gets the complete response before the queue answers, and the request ends after the queue's answer."""
    held = Held()
    queue.fail(held)

    ask(port)

    assert held.came.wait(BOUND_SECONDS)
    assert not over.is_set()
    held.let_go.set()
    assert over.wait(BOUND_SECONDS)
    assert len(queue.tasks) == 1


def test_what_fails_afterwards_is_an_error(
    queue: FaultyServer, port: int, over: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """If an enqueue fails after the response was sent, the log has an ERROR with the call's name."""
    held = Held(taskqueue_pb.TaskQueueServiceError.UNKNOWN_QUEUE)
    queue.fail(held)

    ask(port)
    held.let_go.set()

    assert over.wait(BOUND_SECONDS)
    [error] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert error.startswith("tests.support.sample/note was not enqueued to queue 'default'")
