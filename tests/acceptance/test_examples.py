"""The frameworks' examples on the local server, started as their READMEs say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import WAIT_SECONDS, Serve, Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def eventually(server: Server, path: str, wanted: Callable[[str], bool]) -> str:
    """Return the page's text as soon as ``wanted`` accepts it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not wanted(text := server.get(path)):
        assert time.monotonic() < deadline, f"{path} shows {text!r}\n{server.output}"
        time.sleep(0.05)  # nothing announces a change of a page, so it is polled until the deadline
    return text


def sources(name: str) -> dict[str, str]:
    """Return the modules of an example."""
    return {path.name: path.read_text() for path in (EXAMPLES / name).glob("*.py")}


def test_flask(serve: Serve) -> None:
    """A task in the Flask app reviews a guest book entry."""
    server = serve(sources("flask"), apps=["guestbook:app"])

    request = "hello"
    status = send(server, "/sign", request.encode())

    assert status == 202
    text = eventually(server, "/", lambda text: "shown" in text)
    assert json.loads(text) == {"hello": "shown by guestbook, in deferred_middleware"}


def test_django(serve: Serve) -> None:
    """An order is confirmed after its commit, in a task that passes the site's middleware."""
    server = serve(sources("django"), apps=["shop:app"])

    assert send(server, "/order/tea", None) == 202

    assert json.loads(eventually(server, "/", lambda text: "true" in text)) == {"tea": True}


def test_webapp2(serve: Serve) -> None:
    """A task that has webapp2's request records a visit."""
    server = serve(sources("webapp2"), apps=["visits:app"])

    assert server.get("/hello") == "welcome"

    assert eventually(server, "/visits", bool) == "/hello noted at /_cb/deferred/visits/note\n"


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.iterdir()) if path.is_dir()])
def test_every_example_says_what_it_is(name: str) -> None:
    """Each example has an app.yaml, and a README with the command that runs it."""
    readme = (EXAMPLES / name / "README.rst").read_text()

    assert "deferred-middleware serve" in readme
    assert (EXAMPLES / name / "app.yaml").is_file()


def send(server: Server, path: str, body: bytes | None) -> int:
    """Send a request with a plain body, or a GET without one; return the status."""
    import urllib.request

    with urllib.request.urlopen(server.services["default"] + path, body, timeout=WAIT_SECONDS) as response:
        return int(response.status)
