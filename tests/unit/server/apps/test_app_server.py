"""The server inside an app process; test_process covers starting, stopping and restarting the process."""

from __future__ import annotations

import dataclasses
import http.client
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from deferred_middleware.server.apps import app_server
from deferred_middleware.server.apps.app_server import AppServer, AppServerConfig
from deferred_middleware.server.config.handlers import HandlerRule

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

WAIT_SECONDS = 20.0

CONFIG = AppServerConfig(
    app="main:app",
    service="default",
    threads=4,
    socket_fd=3,
    status_fd=4,
    channel_fd=5,
    begun_fd=6,
    delivery_token="token",
    api_ticket="ticket",
    default_hostname="127.0.0.1:8080",
)


class Serving:
    """An AppServer that serves in a thread."""

    def __init__(self, app: WSGIApplication, *, grace_seconds: float = WAIT_SECONDS) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = AppServer(app, self.listener.dup(), threads=2)
        self.answered: list[bool] = []
        self._thread = threading.Thread(
            target=lambda: self.answered.append(self.server.serve(grace_seconds=grace_seconds))
        )
        self._thread.start()

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection to the server."""
        host, port = self.listener.getsockname()
        return http.client.HTTPConnection(host, port, timeout=WAIT_SECONDS)

    def stop(self) -> None:
        """Stop the server and wait until it has stopped."""
        if self._thread.is_alive():
            self.server.request_stop()
            self._thread.join(WAIT_SECONDS)
            assert not self._thread.is_alive()
        self.listener.close()


@pytest.fixture
def serving() -> Iterator[Callable[..., Serving]]:
    """Return a function that serves an app until the end of the test."""
    made: list[Serving] = []

    def serve(app: WSGIApplication, *, grace_seconds: float = WAIT_SECONDS) -> Serving:
        made.append(Serving(app, grace_seconds=grace_seconds))
        return made[-1]

    yield serve
    for server in made:
        server.stop()


def test_the_config_is_one_line() -> None:
    """The app process reads the same config that the supervisor writes, in one line."""
    rule = HandlerRule(pattern="/.*", http_headers={"X-A": "\n"}, login="admin")
    for config in (CONFIG, dataclasses.replace(CONFIG, handlers=(rule, rule))):
        line = config.to_line()
        assert line.count(b"\n") == 1
        assert AppServerConfig.from_line(line) == config


@pytest.mark.parametrize("line", [b"", b"{", b"{}", b'{"app": "main:app", "colour": "blue"}'])
def test_another_line_is_refused(line: bytes) -> None:
    """A line that isn't a complete config raises an error."""
    with pytest.raises(ValueError, match=r".+"):
        AppServerConfig.from_line(line)


def test_a_response_that_is_under_way_is_finished(serving: Callable[..., Serving]) -> None:
    """A stop waits for running requests, up to the last byte of a large response."""
    began, may_end = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began.set()
        assert may_end.wait(WAIT_SECONDS)
        start_response("200 OK", [("Content-Length", "5000000")])
        return [b"x" * 5_000_000]

    server = serving(app)
    connection = server.connection()
    connection.request("GET", "/")
    assert began.wait(WAIT_SECONDS)
    server.server.request_stop()
    may_end.set()
    assert len(connection.getresponse().read()) == 5_000_000
    connection.close()
    server.stop()
    assert server.answered == [True]


@pytest.mark.parametrize(
    ("parts", "headers", "sends"),
    [
        ([b"hello"], [("Content-Length", "5")], 1),
        ([b"", b"hel", b"lo"], [("Content-Length", "5")], 2),
        ([], [("Content-Length", "0")], 1),
        ([b"hello"], [], 1),
    ],
)
def test_a_response_begins_with_its_head_and_its_first_part(
    serving: Callable[..., Serving],
    monkeypatch: pytest.MonkeyPatch,
    parts: list[bytes],
    headers: list[tuple[str, str]],
    sends: int,
) -> None:
    """The head and the first part are sent together, so that the reader wakes once."""
    sent: list[bytes] = []
    send = app_server._Channel.send

    def note(channel: app_server._Channel, data: bytes, do_close: bool = True) -> object:
        sent.append(bytes(data))
        return send(channel, data, do_close)

    monkeypatch.setattr(app_server._Channel, "send", note)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return iter(parts)

    connection = serving(app).connection()
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"".join(parts)
    connection.close()
    # A body of unknown length ends with a chunk of its own.
    assert len([data for data in sent if data != b"0\r\n\r\n"]) == sends
    assert sent[0].startswith(b"HTTP/1.1 200 OK\r\n")


def test_who_connects_after_the_stop_waits_in_the_backlog(serving: Callable[..., Serving]) -> None:
    """A connection that is made during a stop isn't accepted, so that the next process can accept it."""
    began, may_end = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began.set()
        assert may_end.wait(WAIT_SECONDS)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    server = serving(app)
    first = server.connection()
    first.request("GET", "/")
    assert began.wait(WAIT_SECONDS)
    server.server.request_stop()
    deadline = time.monotonic() + WAIT_SECONDS
    while server.server._server.accepting:
        assert time.monotonic() < deadline
        os.sched_yield()
    second = server.connection()
    second.request("GET", "/")
    may_end.set()
    assert first.getresponse().status == 200
    server._thread.join(WAIT_SECONDS)
    # The listener is still open, and the connection still waits in its backlog.
    accepted, _address = server.listener.accept()
    assert accepted.recv(100).startswith(b"GET / ")
    accepted.close()
    first.close()
    second.close()


def test_what_does_not_end_is_given_up(serving: Callable[..., Serving]) -> None:
    """A request that outlasts the grace period is abandoned, and serve() returns False."""
    began, may_end = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began.set()
        assert may_end.wait(WAIT_SECONDS)
        start_response("200 OK", [])
        return []

    server = serving(app, grace_seconds=0.1)
    connection = server.connection()
    connection.request("GET", "/")
    assert began.wait(WAIT_SECONDS)
    server.stop()
    assert server.answered == [False]
    dispatcher = server.server._server.task_dispatcher
    may_end.set()
    deadline = time.monotonic() + WAIT_SECONDS
    while dispatcher.threads:
        assert time.monotonic() < deadline
        os.sched_yield()
    server.server._server.trigger.close()
    connection.close()


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[logging.Handler], int]]:
    """Return a function that configures logging with the given handlers, and returns the root's handlers and level."""

    def arrange(*handlers: logging.Handler) -> tuple[list[logging.Handler], int]:
        root = logging.getLogger()
        # Patch only here, because pytest adds its own handlers when the test begins.
        with monkeypatch.context() as patch:
            patch.setattr(root, "handlers", list(handlers))
            patch.setattr(root, "level", logging.WARNING)
            app_server._configure_logging("background")
            return root.handlers, root.level

    return arrange


def test_logging_is_arranged_where_the_app_does_not(
    configure: Callable[..., tuple[list[logging.Handler], int]],
) -> None:
    """If the app has no log handlers, records from INFO on are shown with the service's name."""
    (handler,), level = configure()
    record = logging.LogRecord("mine", logging.INFO, "main.py", 1, "hello", None, None)
    assert handler.format(record) == "[background] INFO mine: hello"
    assert level == logging.INFO


def test_an_apps_own_logging_is_left_alone(configure: Callable[..., tuple[list[logging.Handler], int]]) -> None:
    """If the app has configured logging, its configuration stays."""
    own = logging.NullHandler()
    assert configure(own) == ([own], logging.WARNING)
