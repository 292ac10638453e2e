"""The request of a task: its headers over HTTP, and the environment of a delivery to an app process."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from deferred_middleware.server.apps.app_server import AppServer
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.task_request import SAME_FOR_ALL, TaskRequests, request_headers
from deferred_middleware.server.store.records import ClaimedTask
from tests.support.storing import TASK

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

SERVICE = Service(name="default", version="local", host="127.0.0.1", port=1, concurrency=1)
HOST = "127.0.0.1:8080"


def with_headers(*headers: tuple[str, str], **fields: Any) -> ClaimedTask:
    """Return a task with these headers of its own."""
    return dataclasses.replace(TASK, headers=headers, **fields)


def test_the_apps_headers_are_kept_but_not_the_platforms() -> None:
    """The app's own and namespace headers are delivered; reserved headers, in any spelling, are dropped."""
    kept = (
        ("X-Mine", "1"),
        ("X-Mine", "2"),
        ("Content-Type", "text/plain"),
        ("X-AppEngine-Current-Namespace", "tenant"),
        ("X-AppEngine-Default-Namespace", ""),
    )
    dropped = (
        ("x-appengine-queuename", "forged"),
        ("X_AppEngine_TaskName", "forged"),
        ("X-AppEngine-Fake-Is-Admin", "1"),
        ("Content-Length", "9"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
        ("User-Agent", "mine"),
    )
    task = with_headers(*kept, *dropped)
    headers = request_headers(task, HOST)
    assert [header for header in headers if header in kept] == list(kept)
    assert not [header for header in headers if header in dropped]
    assert [name for name, _value in headers].count("Content-Type") == 1
    environ = TaskRequests().environ(task, SERVICE, HOST)
    assert environ["HTTP_X_MINE"] == "1, 2"
    assert environ["CONTENT_TYPE"] == "text/plain"
    assert environ["HTTP_X_APPENGINE_CURRENT_NAMESPACE"] == "tenant"
    assert (environ["CONTENT_LENGTH"], environ["HTTP_X_APPENGINE_QUEUENAME"]) == ("7", "default")
    assert not {"forged", "9", "mine", "chunked", "close"} & set(environ.values())


@pytest.mark.parametrize(
    "task",
    [
        dataclasses.replace(TASK, url="/a b"),
        dataclasses.replace(TASK, url="/\xe9"),
        dataclasses.replace(TASK, method="post"),
        dataclasses.replace(TASK, method="GET /x"),
        with_headers(("X-Mine", "a\nb")),
        with_headers(("X-Mine", "a\rb")),
        with_headers(("X-Mine", "a\0b")),
        with_headers(("X Mine", "a")),
        with_headers(("", "a")),
    ],
)
def test_what_is_no_request_is_refused(task: ClaimedTask) -> None:
    """A task that gives no valid request raises an error, however it is delivered."""
    with pytest.raises(ValueError, match=r"not|line break"):
        TaskRequests().environ(task, SERVICE, HOST)
    with pytest.raises(ValueError, match=r"not|line break"):
        TaskRequests().headers(task, SERVICE, HOST)


TASKS = {
    "a call": with_headers(("Content-Type", "application/octet-stream"), ("X-Deferred-Signature", "v1.a")),
    "encoded": dataclasses.replace(TASK, url="/a%20b/%2F%C3%A9?x=1&y=%20", method="PUT"),
    "slashes": dataclasses.replace(TASK, url="//a//b", method="GET", body=b""),
    "a query only": dataclasses.replace(TASK, url="/?q", method="GET", body=b""),
    "odd characters": dataclasses.replace(TASK, url="/a;b=c:d@e?g", method="DELETE", body=b""),
    "spaces": with_headers(("X-Two", "1"), ("x-two", "2"), ("X-Empty", ""), ("X-Tab", " \t a b \t")),
    "proxies": with_headers(("X_Under", "1"), ("X-Forwarded-For", "1.2.3.4"), ("Forwarded", "for=x"), ("X-L", "\xe9")),
    "a retry": dataclasses.replace(
        TASK, retry_count=3, execution_count=2, previous_response=0, retry_reason="Instance Unavailable"
    ),
}


@pytest.fixture(scope="module")
def seen_from_waitress() -> dict[str, dict[str, Any]]:
    """The environment of each task's request as an app behind waitress sees it."""
    seen: list[dict[str, Any]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(dict(environ))
        start_response("200 OK", [("Content-Length", "0")])
        return []

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = AppServer(app, listener.dup(), threads=1)
        thread = threading.Thread(target=server.serve)
        thread.start()
        for task in TASKS.values():
            connection = http.client.HTTPConnection(*listener.getsockname())
            connection.putrequest(task.method, task.url, skip_host=True, skip_accept_encoding=True)
            for name, value in request_headers(task, HOST):
                connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(task.body or None)
            assert connection.getresponse().status == 200
            connection.close()
        server.request_stop()
        thread.join(10)
    return dict(zip(TASKS, seen, strict=True))


@pytest.mark.parametrize("kind", TASKS)
def test_an_app_sees_the_same_as_from_waitress(kind: str, seen_from_waitress: dict[str, dict[str, Any]]) -> None:
    """A delivery over the channel has the environment that waitress would make of the same request."""
    expected = {
        key: value
        for key, value in seen_from_waitress[kind].items()
        if key.startswith(("HTTP_", "CONTENT_", "REMOTE_"))
        or key in ("REQUEST_METHOD", "REQUEST_URI", "PATH_INFO", "QUERY_STRING", "SCRIPT_NAME", "SERVER_PROTOCOL")
    }
    environ = SAME_FOR_ALL | TaskRequests().environ(TASKS[kind], SERVICE, HOST)
    expected["REMOTE_PORT"] = environ["REMOTE_PORT"]
    assert environ == expected
    assert json.loads(json.dumps(environ)) == environ
