"""Under ``serve`` and ``wrap_wsgi_app``, a request that enqueues without waiting loses no task at its end."""

from __future__ import annotations

import http.client
import threading
from typing import Any

from tests.support.running import TELL, Recorder, Serve, Server

MAIN = (
    TELL
    + """
import threading
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer_async
from deferred_middleware.server.apps import api_client

gate = threading.Event()

def work(number):
    tell(ran=number)

def hold():
    # An answer of the queue process is not read until the test says so.
    receive = api_client.receive_frame

    def held(connection):
        tell(held=True)
        assert gate.wait(60)
        return receive(connection)

    api_client.receive_frame = held

def pages(environ, start_response):
    page, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if page == "/hold":
        hold()
    elif page == "/let-go":
        tell(over=page)
        gate.set()
    elif page == "/defer":
        defer_async(work, 1, _queue=query or None)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"done"]

inside = wrap_wsgi_app(DeferredMiddleware(pages))

def app(environ, start_response):
    yield from inside(environ, start_response)
    if environ["PATH_INFO"] == "/defer":
        tell(over="/defer")
"""
)


def ask(server: Server, path: str) -> None:
    """Make a request, and read the whole response."""
    address = server.services["default"].removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path)
        assert connection.getresponse().read() == b"done"
    finally:
        connection.close()


def test_a_request_ends_after_what_it_has_started(serve: Serve, recorder: Recorder) -> None:
    """A request ends only after its pending enqueues, so that the instance can't be frozen before.

    The SDK's wrap_wsgi_app collects the response before it returns it, so the client waits too.
    """
    server = serve(MAIN)
    ask(server, "/hold")

    deferring = threading.Thread(target=ask, args=(server, "/defer"))
    deferring.start()
    # The task may run before its enqueue is known to have succeeded.
    before: list[dict[str, Any]] = []
    while (one := recorder.next()) != {"held": True}:
        before.append(one)
    assert before in ([], [{"ran": 1}])
    ask(server, "/let-go")
    deferring.join(60)

    assert not deferring.is_alive()
    told = [*before, *(recorder.next() for _ in range(3 - len(before)))]
    assert [one for one in told if "over" in one] == [{"over": "/let-go"}, {"over": "/defer"}]
    assert {"ran": 1} in told


def test_what_fails_is_an_error(serve: Serve) -> None:
    """If nobody waits for an enqueue and the queue refuses it, the log has an ERROR with the call's name."""
    server = serve(MAIN)

    ask(server, "/defer?nowhere")

    server.wait_for_output("main/work was not enqueued to queue 'nowhere'")
    [line] = [line for line in server.output.splitlines() if "main/work was not enqueued" in line and "ERROR" in line]
    assert "nothing waited" in line
