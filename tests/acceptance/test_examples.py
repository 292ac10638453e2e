"""The frameworks' examples on the local server, started as their READMEs say."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deferred_middleware.cli.command import PROGRAM
from deferred_middleware.cli.main import COMMANDS
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
    """Each example has a README with the command that runs it, and if it is an app, an app.yaml."""
    readme = (EXAMPLES / name / "README.rst").read_text()

    assert re.search("deferred-middleware (serve|emulate)", readme) or "docker compose" in readme
    assert (EXAMPLES / name / "app.yaml").is_file() or not list((EXAMPLES / name).glob("*.py"))


def send(server: Server, path: str, body: bytes | None) -> int:
    """Send a request with a plain body, or a GET without one; return the status."""
    import urllib.request

    with urllib.request.urlopen(server.services["default"] + path, body, timeout=WAIT_SECONDS) as response:
        return int(response.status)


def test_the_systemd_unit_is_sound(tmp_path: Path) -> None:
    """The unit runs a command of this package with arguments that it has; systemd accepts it where there is one."""
    text = (EXAMPLES / "systemd" / "deferred-middleware.service").read_text()
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # names keep their case
    unit.read_string(text)
    program, command, *arguments = shlex.split(unit["Service"]["ExecStart"])

    assert Path(program).name == PROGRAM
    (found,) = (known for known in COMMANDS if known.name == command)
    parsed = found.make_parser().parse_args(arguments)
    assert str(parsed.data_dir) == f"/var/lib/{unit['Service']['StateDirectory']}"

    if verifier := shutil.which("systemd-analyze"):
        here = tmp_path / "deferred-middleware.service"
        here.write_text(text.replace(program, sys.executable))
        done = subprocess.run([verifier, "verify", here], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
