"""The data directory is deleted, moved or replaced while the server runs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import TELL, Serve

MAIN = (
    TELL
    + """
import logging
from google.appengine.api import taskqueue, wrap_wsgi_app
from google.appengine.ext import ndb

class Note(ndb.Model):
    pass

def pages(environ, start_response):
    try:
        if environ["PATH_INFO"] == "/add":
            taskqueue.add(url="/work", countdown=60)
        elif environ["PATH_INFO"] == "/put":
            Note().put(use_cache=False, use_memcache=False)
        answer = b"acknowledged"
    except Exception as error:
        answer = f"refused: {error}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]

app = wrap_wsgi_app(pages)
"""
)


GONE = r"(tasks|datastore)\.sqlite is (gone: it was deleted or moved|another file)"


def _replace(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))
    directory.mkdir()
    (directory / "server.json").write_text("another server's")


@pytest.mark.parametrize(
    ("accident", "path"), [(shutil.rmtree, "/add"), (shutil.rmtree, "/put"), (_replace, "/add"), (_replace, "/put")]
)
def test_nothing_is_acknowledged_and_the_server_stops(
    make_server: Serve, accident: Callable[[Path], object], path: str
) -> None:
    """The call is refused with the reason, and the server ends with it as its last line, and without a traceback."""
    server = make_server({"main.py": MAIN}).start()
    assert server.post(path, None) == "acknowledged"
    data_dir = next(file.parent for file in server.directory.rglob("tasks.sqlite"))
    accident(data_dir)

    answer = server.post(path, None)

    assert answer.startswith("refused: ")
    assert re.search(GONE, answer)
    assert server.wait() == 1
    assert server.processes() == []
    assert re.search(GONE, server.output.strip().splitlines()[-1])
    assert "Traceback" not in server.output
    if data_dir.exists():
        assert [file.name for file in data_dir.iterdir()] == ["server.json"]
        assert (data_dir / "server.json").read_text() == "another server's"
