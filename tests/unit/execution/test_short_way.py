"""Tests of the path of a delivered request through the package: few modules, each entered once."""

from __future__ import annotations

import io
import secrets
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

from deferred_middleware import DeferredMiddleware, Settings, defer
from deferred_middleware.config.hooks import Hooks
from deferred_middleware.config.process import install_hooks
from deferred_middleware.engines import request_scope
from deferred_middleware.engines.request_scope import LOSES_REQUESTS
from deferred_middleware.testing import capture_tasks
from tests.support import sample
from tests.support.delivering import task_environ
from tests.support.module_trace import documented_way, trace

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MAX_MODULES = 9
"""The maximum number of package modules that a delivered request may enter."""


def nowhere(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Stand for the app, which no task reaches."""
    raise NotImplementedError


def delivery(settings: Settings) -> tuple[DeferredMiddleware, WSGIEnvironment]:
    """Return a middleware, and a request that delivers a task to it."""
    with capture_tasks() as tasks:
        middleware = DeferredMiddleware(nowhere, settings=settings)
        defer(sample.note, 42, "hello")
    (task,) = tasks.enqueued
    headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in task.headers.items()}
    headers["HTTP_X_APPENGINE_TASKNAME"] = task.name
    return middleware, task_environ(task.body, task.url, **headers)


@pytest.fixture(autouse=True)
def plain_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be an app without hooks and OpenTelemetry, which other tests of this process may have installed or imported."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    install_hooks(Hooks())


@pytest.mark.parametrize("signed", [True, False])
def test_a_delivered_request_enters_few_modules_and_each_once(signed: bool) -> None:
    """In a warm process, a task's request enters each module once, and no calls form a cycle."""
    keys = (secrets.token_hex(32),) if signed else ()
    middleware, environ = delivery(Settings(secret_keys=keys))  # type: ignore[arg-type] # strings are accepted
    statuses: list[str] = []

    def deliver() -> None:
        again = {**environ, "wsgi.input": io.BytesIO(environ["wsgi.input"].getvalue())}
        b"".join(middleware(again, lambda status, headers, exc_info=None: statuses.append(status)))  # type: ignore

    for _ in range(2):
        deliver()
    way = trace(deliver)

    assert statuses == ["200 OK"] * 3
    assert way.entered_again == ()
    assert way.upward == ()
    documented = [name for name in documented_way("short-way-of-a-request") if signed or name != "wire.signature"]
    modules = [name for name in way.modules if not (LOSES_REQUESTS and name == request_scope.__name__)]
    assert [name.removeprefix("deferred_middleware.") for name in modules] == documented
    assert len(modules) <= MAX_MODULES


def test_a_way_that_turns_back_is_found() -> None:
    """The trace reports a module that is entered again, and calls that form a cycle."""
    code = {
        "deferred_middleware.upper": "def start():\n    lower()\n    lower()\ndef callback(): pass",
        "deferred_middleware.lower": "def lower():\n    callback()",
    }
    modules: dict[str, dict[str, object]] = {name: {"__name__": name} for name in code}
    for name, source in code.items():
        exec(source, modules[name])
    modules["deferred_middleware.upper"]["lower"] = modules["deferred_middleware.lower"]["lower"]
    modules["deferred_middleware.lower"]["callback"] = modules["deferred_middleware.upper"]["callback"]

    way = trace(modules["deferred_middleware.upper"]["start"])  # type: ignore[arg-type]

    down = ("deferred_middleware.upper", "deferred_middleware.lower")
    up = ("deferred_middleware.lower", "deferred_middleware.upper")
    assert way.modules == down
    assert way.entries == (("", down[0]), down, up, down, up)
    assert way.entered_again == (up, down, up)
    assert way.upward == (up, down)
