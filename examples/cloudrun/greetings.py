"""Greetings: a request defers a call, and a task says the greeting. The same file runs on App Engine and Cloud Run."""

from __future__ import annotations

import collections
import os

import flask

from deferred_middleware import DeferredMiddleware, current_task, defer

app = flask.Flask(__name__)
said: collections.deque[str] = collections.deque(maxlen=100)
"""The last greetings of this instance. Other instances have their own."""


@app.post("/greet/<name>")
def greet(name: str) -> tuple[str, int]:
    """Defer a greeting."""
    defer(say, name, _countdown=float(flask.request.args.get("in", 0)))
    return "", 202


@app.get("/")
def greetings() -> list[str]:
    """Show the greetings."""
    return list(said)


def say(name: str) -> None:
    """Say a greeting. A queue may deliver a task twice, and then it is said twice."""
    task = current_task()
    assert task is not None  # it is only called in a task
    said.append(f"hello, {name} (attempt {task.attempt} of {task.name})")
    print(said[-1], flush=True)  # noqa: T201 - Cloud Run keeps what is printed


app.wsgi_app = DeferredMiddleware(app.wsgi_app)  # type: ignore[method-assign]
if "DEFERRED_SERVICE_URLS" not in os.environ:
    # On App Engine, and on the local server, tasks are enqueued with App Engine's API.
    from google.appengine.api import wrap_wsgi_app

    app.wsgi_app = wrap_wsgi_app(app.wsgi_app)  # type: ignore[method-assign]
