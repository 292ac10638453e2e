"""What a WSGI app's response means for a task."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from deferred_middleware.server.delivery.attempt_result import EXCERPT_BYTES
from deferred_middleware.server.delivery.wsgi_call import AppAnswer, answer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def call(app: WSGIApplication, method: str = "POST") -> AppAnswer:
    """Call an app."""
    return answer(app, {"REQUEST_METHOD": method, "PATH_INFO": "/work"})


def responding(status: str, headers: list[tuple[str, str]], parts: Any) -> WSGIApplication:
    """Return an app with this response."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, headers)
        result: Iterable[bytes] = parts
        return result

    return app


@pytest.mark.parametrize(
    ("method", "status", "headers", "parts", "body"),
    [
        ("POST", "200 OK", [], [b"hello"], b"hello"),
        ("POST", "200 OK", [], [b"", b"hel", b"", b"lo"], b"hello"),
        ("POST", "200 OK", [("Content-Length", "5")], [b"hel", b"lo"], b"hello"),
        ("POST", "200 OK", [("Content-Length", "2")], [b"hel", b"lo"], b"he"),
        ("POST", "500 Oh", [], [], b""),
        ("POST", "204 No Content", [], [], b""),
        ("POST", "304 Not Modified", [], [b"ignored"], b""),
        ("HEAD", "200 OK", [("Content-Length", "5")], [b"hello"], b""),
        ("HEAD", "200 OK", [("Content-Length", "5")], [], b""),
        ("POST", "200 OK", [], [b"x" * 5_000_000, b"y"], b"x" * EXCERPT_BYTES),
        ("POST", "200 OK", [("Connection", "close"), ("Transfer-Encoding", "chunked")], [b"hello"], b"hello"),
    ],
)
@pytest.mark.parametrize("kind", [list, iter])
def test_a_response_is_what_a_client_would_get(
    method: str,
    status: str,
    headers: list[tuple[str, str]],
    parts: list[bytes],
    body: bytes,
    kind: Callable[[list[bytes]], Iterable[bytes]],
) -> None:
    """The status and the beginning of the body are those that a server would send."""
    found = call(responding(status, headers, kind(parts)), method)
    assert (found.status, found.excerpt) == (int(status[:3]), body)


def test_the_outcome_and_a_redirect_are_told() -> None:
    """The outcome header is found whatever its case; a redirect has a reason with its location."""
    found = call(responding("200 OK", [("x-deferred-outcome", "permanent-failure")], []))
    assert (found.status, found.outcome, found.reason) == (200, "permanent-failure", None)
    found = call(responding("302 Found", [("Location", "/login")], [b""]))
    assert found.status == 302
    assert "status 302 and Location '/login'" in str(found.reason)


@pytest.mark.parametrize("error", [KeyError("the app's own"), SystemExit("the app's own")])
def test_what_the_app_raises_is_a_500_and_logged(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """If the app raises, even SystemExit, the response is 500 without a detail, and the traceback is logged."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise error

    found = call(app)
    assert (found.status, b"the app's own" in found.excerpt) == (500, False)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "Exception while serving /work")
    assert record.exc_info


class Parts:
    """A response that raises after its first part, or at its close."""

    def __init__(self, *, in_the_middle: bool) -> None:
        self.is_closed = False
        self._in_the_middle = in_the_middle

    def __iter__(self) -> Iterator[bytes]:
        yield b"beginning"
        if self._in_the_middle:
            raise KeyError("too late")

    def close(self) -> None:
        """Close the response."""
        self.is_closed = True
        if not self._in_the_middle:
            raise KeyError("at the end")


def test_a_response_that_breaks_off_is_none() -> None:
    """If the app raises after a part of the response was sent, there is no complete response."""
    parts = Parts(in_the_middle=True)
    found = call(responding("200 OK", [], parts))
    assert (found.status, found.reason) == (None, "the app's response broke off: KeyError")
    assert parts.is_closed


def test_what_close_raises_comes_after_the_response(caplog: pytest.LogCaptureFixture) -> None:
    """An error in close() is logged; the client has the whole response by then."""
    found = call(responding("200 OK", [], Parts(in_the_middle=False)))
    assert (found.status, found.excerpt) == (200, b"beginning")
    assert len(caplog.records) == 1


def test_a_response_that_is_too_short_is_none() -> None:
    """If a body is shorter than its Content-Length, the response is not complete."""
    found = call(responding("200 OK", [("Content-Length", "10")], [b"hello"]))
    assert (found.status, found.reason) == (None, "the app's response is shorter than its Content-Length")


def test_an_app_may_write_and_may_change_its_mind() -> None:
    """As in PEP 3333, write() precedes the iterable, and exc_info replaces a head that is not sent yet."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("304 Not Modified", [("Content-Length", "1"), ("X-Deferred-Outcome", "permanent-failure")])
        try:
            raise KeyError("changed")
        except KeyError:
            write = start_response("202 Accepted", [], sys.exc_info())
        write(b"written, ")
        return [b"given"]

    assert call(app) == AppAnswer(202, None, b"written, given", None)


def test_a_head_that_was_sent_can_not_be_replaced() -> None:
    """After a part was sent, exc_info is raised again."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])(b"sent")
        try:
            raise KeyError("changed")
        except KeyError:
            start_response("500 Oh", [], sys.exc_info())
        return []

    assert call(app).reason == "the app's response broke off: KeyError"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK\r\nX: y", []),
        ("OK", []),
        ("200 OK", [("X", "a\r\nY: b")]),
        ("200 OK", [("X\n", "a")]),
        ("200 OK", [("Content-Length", "many")]),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("X", "\u20ac")]),
    ],
)
def test_a_head_that_is_none_is_a_500(status: str, headers: list[tuple[str, str]]) -> None:
    """An invalid status or header gives a 500 instead, as from a server."""
    assert call(responding(status, headers, [b"never seen"])).status == 500


def test_an_app_that_starts_no_response_is_a_500() -> None:
    """Without start_response there is no status; a second call without exc_info is an error too."""

    def twice(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        start_response("200 OK", [])
        return []

    assert call(lambda environ, start_response: []).status == 500
    assert call(lambda environ, start_response: [b"body"]).status == 500
    assert call(twice).status == 500
