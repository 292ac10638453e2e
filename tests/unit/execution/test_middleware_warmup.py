"""Tests of App Engine's warm-up request. The middleware answers it if the app doesn't."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware import DeferredMiddleware, Settings
from tests.support.delivering import request, task_environ


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that creates a warm-up module, and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(source: str) -> str:
        (tmp_path / "warm_me_up.py").write_text(source)
        monkeypatch.delitem(sys.modules, "warm_me_up", raising=False)
        return "warm_me_up"

    return make


def app_answering(status: str) -> Callable[..., Iterable[bytes]]:
    """Return an app that gives the same answer to every request."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        body = b"from the app"
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return app


def warm_up(middleware: DeferredMiddleware) -> tuple[int, bytes]:
    """Send the warm-up request."""
    response = request(middleware, task_environ(b"", "/_ah/warmup", REQUEST_METHOD="GET", CONTENT_LENGTH="0"))
    return response.status, response.body


@pytest.mark.parametrize(
    ("status", "expected"),
    [("404 Not Found", (200, b"")), ("200 OK", (200, b"from the app")), ("500 Oh", (500, b"from the app"))],
)
def test_the_module_is_imported_and_the_app_asked(
    module: Callable[[str], str], status: str, expected: tuple[int, bytes]
) -> None:
    """The warm-up module is imported. The app's answer is used, unless the app has no warm-up page."""
    name = module("x = 1")

    answer = warm_up(DeferredMiddleware(app_answering(status), settings=Settings(warmup_module=name)))

    assert answer == expected
    assert name in sys.modules


def test_without_a_module_it_is_the_apps_request() -> None:
    """Without a warm-up module, the request goes to the app like any other."""
    assert warm_up(DeferredMiddleware(app_answering("404 Not Found"))) == (404, b"from the app")


def test_a_failed_import_is_logged(module: Callable[[str], str], caplog: pytest.LogCaptureFixture) -> None:
    """If the module's import fails, an ERROR with the traceback is logged, and the first task tries again."""
    name = module("raise RuntimeError('not now')")

    assert warm_up(DeferredMiddleware(app_answering("404 Not Found"), settings=Settings(warmup_module=name)))[0] == 200

    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert "not now" in record.getMessage()
    assert record.exc_info is not None
