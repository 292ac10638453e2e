"""Measure what it costs to run one task in process: trust, decode, context, call, answer.

Run ``python benchmarks/execution.py``. The bar: not slower than the SDK's ``google.appengine.ext.deferred.Handler`` on
the same payload, a function with two small arguments.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from google.appengine.ext import deferred
from interleave import measure, print_table

from deferred_middleware import DeferredMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BAR = 1.0


def work(user_id: int, greeting: str) -> None:
    """Do nothing: it is the way there that is measured."""


def nowhere(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Stand for the wrapped app, which no task reaches."""
    raise NotImplementedError


def task_queue(app: WSGIApplication, path: str, body: bytes) -> Callable[[], object]:
    """Return a function that delivers ``body`` to ``app`` once."""
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
    contenders = {
        "google.appengine.ext.deferred": task_queue(deferred.Handler(), "/_ah/queue/deferred", body),
        "DeferredMiddleware": task_queue(DeferredMiddleware(nowhere), "/_cb/deferred/execution/work", body),
    }
    medians = measure(contenders, rounds=options.rounds, calls=options.calls)
    print_table("Run one task in process", medians, "google.appengine.ext.deferred")
    ratio = medians["DeferredMiddleware"] / medians["google.appengine.ext.deferred"]
    print(f"DeferredMiddleware: {ratio:.2f} times google.appengine.ext.deferred.Handler (bar {BAR})")
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
