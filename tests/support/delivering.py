"""Helpers of the unit tests: access to the tasks in the SDK's queue stub, and functions that deliver them."""

from __future__ import annotations

import io
import urllib.parse
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

from google.appengine.api import taskqueue
from google.appengine.api.taskqueue import taskqueue_stub
from google.appengine.ext import testbed

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

APP_ENGINE_STANDARD = {
    "GAE_ENV": "standard",
    "GAE_APPLICATION": "s~app",
    "GAE_SERVICE": "default",
    "GAE_VERSION": "v1",
    "GAE_INSTANCE": "instance-1",
}
"""The variables by which a process knows that it runs on App Engine standard."""


class Queued:
    """Reads the tasks in the SDK's stub."""

    def __init__(self, bed: testbed.Testbed) -> None:
        self._stub: taskqueue_stub.TaskQueueServiceStub = bed.get_stub(testbed.TASKQUEUE_SERVICE_NAME)

    def in_queue(self, name: str) -> list[taskqueue.Task]:
        """Return the tasks of one queue."""
        return list(self._stub.get_filtered_tasks(queue_names=[name]))

    def tasks(self) -> list[taskqueue.Task]:
        """Return all tasks."""
        return list(self._stub.get_filtered_tasks())

    def one(self) -> taskqueue.Task:
        """Return the only task."""
        (task,) = self.tasks()
        return task


class Response:
    """The response of a WSGI app."""

    def __init__(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = int(status[:3])
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body


def task_environ(
    body: bytes, path: str = "/_cb/deferred/tests.support.sample/note", /, **extra: Any
) -> WSGIEnvironment:
    """Return the ``environ`` of a task's request as App Engine makes it; a None in ``extra`` removes the key."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": urllib.parse.unquote(path, "latin-1"),
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "gunicorn/23.0.0",
        "CONTENT_TYPE": "application/octet-stream",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_X_APPENGINE_QUEUENAME": "default",
        "HTTP_X_APPENGINE_TASKNAME": "task1",
        "HTTP_X_APPENGINE_TASKRETRYCOUNT": "0",
        "HTTP_X_APPENGINE_TASKEXECUTIONCOUNT": "0",
        "HTTP_X_APPENGINE_TASKETA": "1700000000.250000",
        "HTTP_X_APPENGINE_USER_IP": "0.1.0.2",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    environ.update(extra)
    return {key: value for key, value in environ.items() if value is not None}


def request(app: WSGIApplication, environ: WSGIEnvironment) -> Response:
    """Send one request to ``app``, wrapped in wsgiref's validator."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        started.append((status, headers))
        return lambda data: None

    iterable = validator(app)(environ, start_response)
    try:
        body = b"".join(iterable)
    finally:
        iterable.close()  # type: ignore[attr-defined]
    ((status, headers),) = started
    return Response(status, headers, body)
