"""Measure what it costs to run one signed task in process: trust, decode, context, call, answer.

Run ``python benchmarks/execution.py``. The bar: not slower than the SDK's ``google.appengine.ext.deferred.Handler``,
which knows no signatures, on the same payload, a function with two small arguments.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.appengine.ext import deferred
from interleave import measure, print_table

from deferred_middleware import DeferredMiddleware, Settings, defer
from deferred_middleware.testing import capture_tasks

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BAR = 1.0


def work(user_id: int, greeting: str) -> None:
    """Do nothing: it is the way there that is measured."""


def nowhere(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Stand for the wrapped app, which no task reaches."""
    raise NotImplementedError


class Hook:
    """A hook that is told of each task."""

    def __init__(self) -> None:
        self.told = 0

    def after_task(self, context: object, outcome: object) -> None:
        """Count."""
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
        "HTTP_X_APPENGINE_QUEUENAME": "default",
        "HTTP_X_APPENGINE_TASKNAME": "8570000000001",
        "HTTP_X_APPENGINE_TASKRETRYCOUNT": "0",
        "HTTP_X_APPENGINE_TASKEXECUTIONCOUNT": "0",
        "HTTP_X_APPENGINE_TASKETA": "1700000000.000000",
        "HTTP_X_APPENGINE_CURRENT_NAMESPACE": "",
        "HTTP_X_APPENGINE_USER_IP": "0.1.0.2",
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()

    # Both log a task's success below WARNING, so that neither formats a line.
    logging.basicConfig(level=logging.WARNING)
    # The function must be found by import in both, which __main__ is not.
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
        "google.appengine.ext.deferred": task_queue(deferred.Handler(), "/_ah/queue/deferred", body),
        "DeferredMiddleware": task_queue(middleware, signed.url, signed.body, headers),
        "DeferredMiddleware, with a hook": task_queue(hooked, signed.url, signed.body, headers),
    }
    medians = measure(contenders, rounds=options.rounds, calls=options.calls)
    print_table("Run one task in process", medians, "google.appengine.ext.deferred")
    ratios = [
        medians[name] / medians["google.appengine.ext.deferred"] for name in contenders if name.startswith("Deferred")
    ]
    for name, ratio in zip(("a signed task", "and with a hook"), ratios, strict=True):
        print(f"DeferredMiddleware, {name}: {ratio:.2f} times google.appengine.ext.deferred.Handler (bar {BAR})")
    return 0 if max(ratios) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
