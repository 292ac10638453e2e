"""Services with an external app: their URLs, and the file with their environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.apps.environ import environ_file, write_environ_file
from deferred_middleware.server.config.served import parse_external_app


@pytest.mark.parametrize(
    ("url", "host", "port", "remote"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1", 9000, False),
        ("http://localhost:9000/", "localhost", 9000, False),
        ("http://127.1.2.3", "127.1.2.3", 80, False),
        ("http://[::1]:9000", "[::1]", 9000, False),
        ("http://192.0.2.1:9000", "192.0.2.1", 9000, True),
        ("http://app.example.com", "app.example.com", 80, True),
    ],
)
def test_where_it_answers(url: str, host: str, port: int, remote: bool) -> None:
    """Host and port come from the URL, and any host that isn't loopback counts as remote."""
    app = parse_external_app(f"background={url}")
    assert (app.service, app.host, app.port, app.is_remote) == ("background", host, port, remote)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "give a URL such as http://127.0.0.1:9000; got ''."),
        ("127.0.0.1:9000", "give a URL"),
        ("https://127.0.0.1:9000", "give a URL"),
        ("http://", "give a URL"),
        ("http://127.0.0.1:99999", "is not a URL (Port out of range 0-65535)"),
        ("http://127.0.0.1:9000/app", "give http://127.0.0.1:9000."),
        ("http://127.0.0.1:9000/?a=b", "give http://127.0.0.1:9000."),
        ("http://me:secret@127.0.0.1:9000", "give http://127.0.0.1:9000."),
    ],
)
def test_a_url_that_tasks_can_not_go_to(url: str, expected: str) -> None:
    """A URL with more than scheme, host and port is refused, and the error suggests a valid one."""
    with pytest.raises(ServerError) as caught:
        parse_external_app(f"background={url}")
    assert str(caught.value).startswith(f"--service background={url}")
    assert expected in str(caught.value)


def test_a_shell_reads_the_file(tmp_path: Path) -> None:
    """A shell that sources the file gets the exact values, and only the owner can read the file."""
    environ = {"A": "plain", "B": "two words", "C": "quote ' dollar $HOME\nnew line"}
    path = environ_file(tmp_path, "background")
    path.write_text("what was there before")
    path.chmod(0o644)
    write_environ_file(path, environ)
    assert path.stat().st_mode & 0o777 == 0o600
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    shell = f". {path} && exec {sys.executable} -c '{code}'"
    told = subprocess.run(["sh", "-c", shell], capture_output=True, check=True, env={}, timeout=60).stdout
    assert environ.items() <= json.loads(told).items()
