"""Attempts of tasks that have complete URLs, over real HTTP."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deferred_middleware.server.delivery.url_attempt import UrlDeliverer, encoded_url
from deferred_middleware.server.store.records import HTTP_TARGET, ClaimedTask, CloudOrigin
from tests.support.http_target import HttpTarget, Reply
from tests.support.storing import TASK


@pytest.fixture
def target() -> Iterator[HttpTarget]:
    """Run an HTTP target."""
    with HttpTarget() as target:
        yield target


def task(url: str, **fields: Any) -> ClaimedTask:
    """Return a claimed task with a complete URL."""
    origin = CloudOrigin()
    fields = {"queue": "mail@europe-west1.my-project", "origin": origin, "target": HTTP_TARGET, **fields}
    return dataclasses.replace(TASK, url=url, **fields)


def test_a_first_attempt(target: HttpTarget) -> None:
    """The request has the task's method, path, body and headers, and those that describe the task."""
    result = UrlDeliverer().deliver(task(f"{target.url}/a%20b?c=d&e#f", headers=(("Content-Type", "text/plain"),)))
    (seen,) = target.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/a%20b?c=d&e", b"payload")
    assert (result.status, result.reason, result.http_response) == (200, None, True)
    assert seen.headers == {
        "host": target.url.removeprefix("http://"),
        "user-agent": "Google-Cloud-Tasks",
        "x-cloudtasks-queuename": "mail",
        "x-cloudtasks-taskname": "one",
        "x-cloudtasks-taskretrycount": "0",
        "x-cloudtasks-taskexecutioncount": "0",
        "x-cloudtasks-tasketa": "1700000000.000005",
        "content-length": "7",
        "content-type": "text/plain",
        "connection": "close",
    }


def test_a_retry_says_how_the_attempt_before_ended(target: HttpTarget) -> None:
    """A retry has the counts and the last response; its reason is empty."""
    again = task(target.url, retry_count=2, execution_count=1, previous_response=503, retry_reason="")
    UrlDeliverer().deliver(again)
    (seen,) = target.seen
    assert seen.path == "/"
    found = {name: seen.headers[f"x-cloudtasks-task{name}"] for name in ("retrycount", "executioncount")}
    assert found == {"retrycount": "2", "executioncount": "1"}
    assert seen.headers["x-cloudtasks-taskpreviousresponse"] == "503"
    assert seen.headers["x-cloudtasks-taskretryreason"] == ""


def test_headers_of_the_platform_are_dropped(target: HttpTarget) -> None:
    """A task can't pose as another one, and can't change how the request is framed."""
    given = ["Host", "User-Agent", "Content-Length", "X-CloudTasks-TaskName", "x_cloudtasks_queuename"]
    given += ["X-Google-A", "X-AppEngine-QueueName", "Transfer-Encoding"]
    UrlDeliverer().deliver(task(target.url, headers=(*((name, "7") for name in given), ("X-Own", "1"))))
    (seen,) = target.seen
    assert seen.headers["x-cloudtasks-taskname"] == "one"
    assert seen.headers["x-own"] == "1"
    assert "7" not in {value for name, value in seen.headers.items() if name != "content-length"}


def test_a_token_replaces_the_tasks_own_authorization(target: HttpTarget) -> None:
    """The Authorization header is the token's, if the task has a token."""
    deliverer = UrlDeliverer(lambda one: "Bearer abc" if one.origin and one.origin.token else None)
    own = (("Authorization", "Basic own"),)
    deliverer.deliver(task(target.url, headers=own, origin=CloudOrigin(token="oidc", email="a@b.c")))
    deliverer.deliver(task(target.url, headers=own))
    assert [seen.headers["authorization"] for seen in target.seen] == ["Bearer abc", "Basic own"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_every_method(target: HttpTarget, method: str) -> None:
    """A request without a body has no length, unless its method expects one."""
    result = UrlDeliverer().deliver(task(target.url, method=method, body=b""))
    (seen,) = target.seen
    assert (seen.method, result.status) == (method, 200)
    assert ("content-length" in seen.headers) == (method in ("PUT", "PATCH"))


def test_redirects_are_not_followed(target: HttpTarget) -> None:
    """A redirect is the attempt's response."""
    target.answer = lambda seen: Reply(status=302, headers={"Location": "/elsewhere"})
    assert UrlDeliverer().deliver(task(target.url)).status == 302
    assert len(target.seen) == 1


def test_the_response_says_when_to_try_again(target: HttpTarget) -> None:
    """Retry-After in seconds is taken, up to an hour; anything else is ignored."""
    answers = iter(["7", "99999999", "Fri, 31 Dec 1999 23:59:59 GMT", "-3", ""])
    target.answer = lambda seen: Reply(status=503, headers={"Retry-After": next(answers)}, body=b"busy")
    results = [UrlDeliverer().deliver(task(target.url)) for _ in range(5)]
    assert [result.retry_after_seconds for result in results] == [7.0, 3600.0, 0.0, 0.0, 0.0]
    assert {(result.status, result.excerpt) for result in results} == {(503, b"busy")}


def test_an_attempt_is_cut_off_at_its_deadline(target: HttpTarget) -> None:
    """Without a response in time there is no status."""
    target.answer = lambda seen: Reply(delay_seconds=0.5)
    result = UrlDeliverer().deliver(task(target.url, dispatch_deadline_usec=100_000))
    assert (result.status, result.timed_out) == (None, True)
    assert "dispatch deadline of 0.1 s" in (result.reason or "")


def test_a_response_that_drips_is_cut_off_too() -> None:
    """The deadline holds for the whole response, not for each part of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not stopping.wait(0.02):
                try:
                    connection.sendall(b"y")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    port = listener.getsockname()[1]
    result = UrlDeliverer().deliver(task(f"http://127.0.0.1:{port}/", dispatch_deadline_usec=200_000))
    stopping.set()
    thread.join()
    listener.close()
    assert result.timed_out
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/", "ConnectionRefusedError"),
        ("http://name.invalid/", "gaierror"),
        ("http://", "names no host"),
        ("http://[::1/", "ValueError"),
        ("http://127.0.0.1:99999999/", "ValueError"),
        ("/only/a/path", "names no host"),
        ("http://a..b/", "Error"),
    ],
)
def test_a_target_that_does_not_answer(url: str, reason: str) -> None:
    """The result says why there is no response."""
    result = UrlDeliverer().deliver(task(url))
    assert (result.status, result.timed_out) == (None, False)
    assert reason in (result.reason or "")


def test_a_header_with_a_line_break_is_not_sent(target: HttpTarget) -> None:
    """Nothing that a task says can add a header or a request."""
    result = UrlDeliverer().deliver(task(target.url, headers=(("X", "a\r\nY: b"),)))
    assert result.status is None
    assert target.seen == []


def test_an_unencrypted_server_is_no_https_target(target: HttpTarget) -> None:
    """An https URL needs a server that speaks TLS."""
    result = UrlDeliverer().deliver(task(target.url.replace("http:", "https:")))
    assert result.status is None
    assert "SSL" in (result.reason or "")


def test_closing_ends_attempts(target: HttpTarget) -> None:
    """Attempts in flight end, and no further one begins."""
    released = threading.Event()

    def wait(seen: object) -> Reply:
        released.wait(20)
        return Reply()

    target.answer = wait
    deliverer = UrlDeliverer()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(deliverer.deliver(task(target.url))))
    thread.start()
    target.wait_for(1)
    deliverer.close()
    thread.join(20)
    released.set()
    assert results[0].status is None
    assert deliverer.deliver(task(target.url)).reason == "ConnectionAbortedError: the server is stopping"


@pytest.mark.parametrize(
    ("url", "encoded"),
    [
        ("https://a/b c", "https://a/b%20c"),
        ("https://a/ü?q=é", "https://a/%C3%BC?q=%C3%A9"),
        ("https://a/b%20c?d=%zz", "https://a/b%20c?d=%zz"),
        ("https://a/\r\nX: y", "https://a/%0D%0AX:%20y"),
    ],
)
def test_a_url_is_encoded(url: str, encoded: str) -> None:
    """Characters that can't be in a request are encoded; what is encoded already stays."""
    assert encoded_url(url) == encoded


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close", b"done\n", 200, id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close", b"done\n", 200, id="until the end"),
        pytest.param(b"HTTP/1.0 200 OK", b"done\n", 200, id="HTTP 1.0"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close",
            b"5\r\ndone\n\r\n0\r\n\r\n",
            200,
            id="chunks",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close", b"done\n", None, id="cut off"),
    ],
)
def test_a_body_that_comes_after_the_head(head: bytes, body: bytes, expected: int | None) -> None:
    """A response is read to its end, also if the server closes the connection after it; a part of one is no answer."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            # All of the request: closing a socket with unread data would reset the connection.
            received = b""
            while not received.endswith(b"payload"):
                received += connection.recv(65536)
            connection.sendall(head + b"\r\n\r\n")
            time.sleep(0.1)  # so that the client finds the head alone; nothing shows when it has read it
            connection.sendall(body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        result = UrlDeliverer().deliver(task(f"http://127.0.0.1:{listener.getsockname()[1]}/"))
        server.join()
    assert result.status == expected, result.reason
    if expected is None:
        assert "IncompleteRead" in (result.reason or "")
    else:
        assert result.excerpt == b"done\n"
