"""The frameworks' examples on the local server, as their READMEs start them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import WAIT_SECONDS, Serve, Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def eventually(server: Server, path: str, wanted: Callable[[str], bool]) -> str:
    """Return what a page shows once that is what is wanted."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not wanted(text := server.get(path)):
        assert time.monotonic() < deadline, f"{path} shows {text!r}\n{server.output}"
        time.sleep(0.05)  # a page can't be waited on; it is asked again, up to the deadline
    return text


def sources(name: str) -> dict[str, str]:
    """Return the modules of an example."""
    return {path.name: path.read_text() for path in (EXAMPLES / name).glob("*.py")}


def test_flask(serve: Serve) -> None:
    """A guest book's entry is read over in a request of the Flask app."""
    server = serve(sources("flask"), apps=["guestbook:app"])

    request = "hello"
    status = send(server, "/sign", request.encode())

    assert status == 202
    text = eventually(server, "/", lambda text: "shown" in text)
    assert json.loads(text) == {"hello": "shown by guestbook, in deferred_middleware"}


def test_django(serve: Serve) -> None:
    """An order is confirmed after its commit, through the site's middleware."""
    server = serve(sources("django"), apps=["shop:app"])

    assert send(server, "/order/tea", None) == 202

    assert json.loads(eventually(server, "/", lambda text: "true" in text)) == {"tea": True}


def test_webapp2(serve: Serve) -> None:
    """A visit is noted in a task that has webapp2's request."""
    server = serve(sources("webapp2"), apps=["visits:app"])

    assert server.get("/hello") == "welcome"

    assert eventually(server, "/visits", bool) == "/hello noted at /_cb/deferred/visits/note\n"


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.iterdir()) if path.is_dir()])
def test_every_example_says_what_it_is(name: str) -> None:
    """Each example has a README with the command that runs it, and an app.yaml."""
    readme = (EXAMPLES / name / "README.rst").read_text()

    assert "deferred-middleware serve" in readme
    assert (EXAMPLES / name / "app.yaml").is_file()


def send(server: Server, path: str, body: bytes | None) -> int:
    """Send a request with a plain body, or a GET without one; return the status."""
    import urllib.request

    with urllib.request.urlopen(server.services["default"] + path, body, timeout=WAIT_SECONDS) as response:
        return int(response.status)
