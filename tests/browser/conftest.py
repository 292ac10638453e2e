"""A browser, a server with tasks of every kind, and what each page must not do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.support.running import Recorder, Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "The tests of the page need Chromium. On Debian and Ubuntu: apt-get install chromium. Elsewhere, name its program "
    "in the environment variable CHROMIUM."
)
PATIENCE_MS = 20_000

MAIN = """
from deferred_middleware import DeferredMiddleware, defer
from google.appengine.api import wrap_wsgi_app
import shop

def pages(environ, start_response):
    getattr(shop, environ["PATH_INFO"].strip("/"))()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]

app = wrap_wsgi_app(DeferredMiddleware(pages))
"""
SHOP = '''
import time
from deferred_middleware import PermanentTaskFailure, defer

class PaymentDeclined(Exception):
    """The bank said no."""

def send_welcome(user_id, *, language="en"):
    time.sleep(0.01)

def charge(order_id, amount):
    ask_bank(order_id)

def ask_bank(order_id):
    raise PaymentDeclined(f"order {order_id}: insufficient funds")

def resize(path, width):
    time.sleep(0.1)

def fill():
    for number in range(12):
        defer(send_welcome, 1000 + number, language="de", _queue="mail")
    for number in range(3):
        defer(resize, f"/photos/{number}.jpg", 1600, _countdown=3600 * (number + 1))
        defer(resize, f"/photos/{number}.png", 800, _queue="still")
    defer(charge, 4711, 12.5, _queue="mail", _retry_options={"task_retry_limit": 1, "min_backoff_seconds": 0.1})
    defer(charge, 4712, 99.0, _retry_options={"min_backoff_seconds": 600})

def hostile():
    texts = ["<script>window.hit = 1</script>", "\\x1b[2J", "\\u202egpj.exe", "'\\"><img src=x onerror=window.hit=1>",
             "{{ 7 * 7 }}", "x" * 10_000_000, "line\\nbreak", "\\ud800"]
    for text in texts:
        defer(send_welcome, text, _countdown=3600)
    defer(send_welcome, 1, _countdown=3600, _name="n" * 500)

def more():
    defer(send_welcome, 1, _countdown=3600)
'''
QUEUES = """
queue:
- name: default
- name: mail
  rate: 100/s
  max_concurrent_requests: 4
- name: still
  rate: 0
- name: pulled
  mode: pull
"""

# Runs in each page before its own script.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
    window.violations.push(event.violatedDirective + " " + event.blockedURI);
});
"""


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


FILES = {"main.py": MAIN, "shop.py": SHOP, "queue.yaml": QUEUES}


class Site:
    """A running server with the app in ``files``, and how tests reach it.

    ``prepare`` is called with the directory before the server starts.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        files: Mapping[str, str] = FILES,
        prepare: Callable[[Path], object] = lambda _directory: None,
    ) -> None:
        self._recorder = Recorder()
        directory.mkdir()
        for name, text in files.items():
            (directory / name).write_text(text)
        prepare(directory)
        ports = ["--port=0", f"--admin-port={free_port()}", "--ready-file=ready.json", "--no-task-lines"]
        self.server = Server(directory, ["main:app", *ports, *arguments], {"RECORDER": self._recorder.path})
        try:
            self.server.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The address of the page."""
        return self.server.admin

    def call(self, function: str) -> None:
        """Have the app call a function of ``shop``."""
        with urllib.request.urlopen(f"{self.server.services['default']}/{function}", timeout=60) as answer:
            assert answer.read() == b"done"

    def api(self, path: str, *, post: bool = False, body: object = None) -> Any:
        """Return the answer of the JSON API."""
        token = json.loads((self.server.data_dir / "server.json").read_text())["token"]
        data = json.dumps(body or {}).encode() if post else None
        request = urllib.request.Request(
            f"{self.url}/api/v1/{path}", data=data, headers={"X-Deferred-Admin-Token": token}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def await_tasks(self, query: str, number: int) -> list[dict[str, Any]]:
        """Wait until there are so many tasks; return them."""
        deadline = time.monotonic() + 60
        while True:
            tasks: list[dict[str, Any]] = self.api(f"tasks?{query}")["tasks"]
            if len(tasks) >= number:
                return tasks
            assert time.monotonic() < deadline, tasks
            time.sleep(0.05)  # no call waits for a task to end

    def close(self) -> None:
        """Stop the server."""
        self.server.discard()
        self._recorder.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser without a window. Without one, the tests fail, and say how to get it."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail(MISSING)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose tasks have run, failed, been retried, or wait."""
    made = Site(tmp_path_factory.mktemp("site") / "server")
    made.call("fill")
    made.await_tasks("state=failed", 1)
    made.await_tasks("state=retrying", 1)
    made.await_tasks("queue=mail&state=succeeded", 12)
    yield made
    made.close()


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """A server that one test changes."""
    made = Site(tmp_path / "server")
    yield made
    made.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Return a function that opens a page. At the end, no page may have broken the policy, or asked another host."""
    contexts: list[BrowserContext] = []
    pages: list[Page] = []
    problems: list[str] = []

    def open_it(url: str, *, allowed: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        pages.append(page)
        host = url.split("/")[2]

        def heard(message: Any) -> None:
            if _is_violation(message.text):
                problems.append(message.text)

        def asked(request: Any) -> None:
            if request.url.split("/")[2] not in (host, allowed):
                problems.append(request.url)

        page.on("console", heard)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", asked)
        page.goto(url)
        return page

    yield open_it
    for page in pages:
        if not page.is_closed() and page.url.startswith("http"):
            problems += page.evaluate("window.violations || []")
    for context in contexts:
        context.close()
    assert problems == []


def _is_violation(text: str) -> bool:
    return "Content Security Policy" in text or "TrustedHTML" in text
