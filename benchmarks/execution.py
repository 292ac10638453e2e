"""Measure the time to run one signed task in process: check the signature, decode, set the context, call, answer.

Run ``python benchmarks/execution.py``. The bar: not slower than the SDK's ``google.appengine.ext.deferred.Handler``,
which has neither signatures nor hooks, with the same payload, a function with two small arguments. The bar is for a
task without a hook; the other row shows what a hook costs.

Both are measured twice, because the SDK's handler logs each task's headers at INFO and ours logs one line at DEBUG. The
root logger is once at WARNING, Python's default, and once at INFO, the default of
``google.cloud.logging.Client().setup_logging()``
(https://cloud.google.com/python/docs/reference/logging/latest/std-lib-integration). The log goes to a stream that
discards it, which costs less than the log of any app.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.appengine.ext import deferred
from interleave import measure
from recording import Arguments, Recording

from deferred_middleware import DeferredMiddleware, Settings, defer
from deferred_middleware.testing import capture_tasks

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BAR = 1.0
PEER = "google.appengine.ext.deferred"
OURS = "DeferredMiddleware"


def work(user_id: int, greeting: str) -> None:
    """Do nothing, because only the way to the function is measured."""


def nowhere(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """The wrapped app, which no task reaches."""
    raise NotImplementedError


class Hook:
    """A hook for each task."""

    def __init__(self) -> None:
        self.told = 0

    def after_task(self, context: object, outcome: object) -> None:
        """Count the task."""
        self.told += 1


def task_queue(
    app: WSGIApplication, path: str, body: bytes, headers: Mapping[str, str] | None = None
) -> Callable[[], object]:
    """Return a function that delivers ``body`` with ``headers`` to ``app`` once."""
    statuses: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
        statuses.append(status)

    base = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": "application/octet-stream",
        "REMOTE_ADDR": "0.1.0.2",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "gunicorn/23",
        "HTTP_HOST": "localhost:8080",
        "HTTP_USER_AGENT": "AppEngine-Google; (+http://code.google.com/appengine)",
        "HTTP_ACCEPT_ENCODING": "gzip",
        # The headers that the platform adds to a task's request: those in its documentation, and those that its SDK
        # reads (https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers; SDK:
        # runtime/context/gae_headers.py).
        "HTTP_X_APPENGINE_QUEUENAME": "default",
        "HTTP_X_APPENGINE_TASKNAME": "8570000000001",
        "HTTP_X_APPENGINE_TASKRETRYCOUNT": "0",
        "HTTP_X_APPENGINE_TASKEXECUTIONCOUNT": "0",
        "HTTP_X_APPENGINE_TASKETA": "1700000000.000000",
        "HTTP_X_APPENGINE_CURRENT_NAMESPACE": "",
        "HTTP_X_APPENGINE_DEFAULT_NAMESPACE": "",
        "HTTP_X_APPENGINE_USER_IP": "0.1.0.2",
        "HTTP_X_APPENGINE_HTTPS": "off",
        "HTTP_X_APPENGINE_API_TICKET": "a" * 40,
        "HTTP_X_APPENGINE_REQUEST_LOG_ID": "b" * 80,
        "HTTP_X_APPENGINE_REQUEST_ID_HASH": "c" * 8,
        "HTTP_X_APPENGINE_DEFAULT_VERSION_HOSTNAME": "app.appspot.com",
        "HTTP_X_CLOUD_TRACE_CONTEXT": f"{'d' * 32}/1;o=0",
        "HTTP_TRACEPARENT": f"00-{'d' * 32}-{'e' * 16}-00",
        # The keys that gunicorn adds (gunicorn: http/wsgi.py).
        "RAW_URI": path,
        "REMOTE_PORT": "12345",
        "gunicorn.socket": None,
        "wsgi.file_wrapper": None,
        "wsgi.input_terminated": True,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in (headers or {}).items():
        if name.lower() not in ("content-type", "content-length"):
            base[f"HTTP_{name.upper().replace('-', '_')}"] = value

    def deliver() -> object:
        environ = dict(base)
        environ["wsgi.input"] = io.BytesIO(body)
        answer = b"".join(app(environ, start_response))
        if statuses.pop()[:3] != "200":
            raise RuntimeError(answer)
        return answer

    return deliver


def main() -> int:
    """Print the table, and return 1 if the bar is missed."""
    options = Arguments(__doc__, rounds=(40, 4), calls=(2000, 200)).parse()
    recording = Recording()

    # Both handlers must be able to import the function, so it can't be in __main__.
    import execution

    body = deferred.serialize(execution.work, 42, "hello")
    settings = Settings(secret_keys=("not a secret, for a benchmark only",))  # type: ignore[arg-type] # a text will do
    with capture_tasks() as tasks:
        middleware = DeferredMiddleware(nowhere, settings=settings)
        defer(execution.work, 42, "hello")
    (signed,) = tasks.enqueued
    headers = {**signed.headers, "X-AppEngine-TaskName": signed.name}
    hooked = DeferredMiddleware(nowhere, settings=settings, hooks=[Hook()])
    contenders = {
        PEER: task_queue(deferred.Handler(), "/_ah/queue/deferred", body),
        OURS: task_queue(middleware, signed.url, signed.body, headers),
        f"{OURS}, with a hook": task_queue(hooked, signed.url, signed.body, headers),
    }
    for level in ("WARNING", "INFO"):
        with open(os.devnull, "w") as stream:
            logging.basicConfig(level=level, stream=stream, force=True)
            samples = measure(contenders, rounds=options.rounds, calls=options.calls)
        ours = [name for name in contenders if name != PEER]
        title = f"Run one task in process, logging at {level}"
        medians = recording.table(title, "µs", samples, ours=ours, reference=PEER)
        for name in ours:
            ratio = medians[name] / medians[PEER]
            if name == OURS:
                recording.goal(f"{name}, at {level}, against {PEER}", ratio, at_most=BAR, unit="times")
    return recording.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
