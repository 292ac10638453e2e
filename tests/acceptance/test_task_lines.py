"""What a person at the terminal of the local server sees of each task."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time

import pytest

from tests.support.running import WAIT_SECONDS, Serve, Server

APP = """
import json
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, PermanentTaskFailure, defer

def work():
    pass

def fail():
    raise RuntimeError("no luck")

def refuse():
    raise PermanentTaskFailure("refused")

def pages(environ, start_response):
    options = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    name = defer(globals()[environ["PATH_INFO"][1:]], **options).name.encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(name)))])
    return [name]

app = wrap_wsgi_app(DeferredMiddleware(pages))
"""
THREE_ATTEMPTS = {"_retry_options": {"task_retry_limit": 2, "min_backoff_seconds": 0.1}}


def test_each_attempt_is_one_line(serve: Serve) -> None:
    """In a pipe, an attempt is one line without colours; only the first failure of a task has its traceback."""
    server = serve(APP)
    server.post("/work", {})
    server.wait_for_output("  ok\n")
    server.post("/fail", THREE_ATTEMPTS)
    server.wait_for_output("; deferred-middleware retry 2\n")
    server.post("/refuse", {})
    server.wait_for_output("; deferred-middleware retry 3\n")

    lines = [re.sub("  +", "  ", line) for line in server.output.splitlines() if re.match(r"\d\d:\d\d:\d\d  ", line)]
    patterns = [
        r"main/work  default  #1  [\d.,]+ ms  ok",
        r"main/fail  default  #1  [\d.,]+ ms  RuntimeError: no luck; next try \d\d:\d\d:\d\d",
        r"main/fail  default  #2  [\d.,]+ ms  RuntimeError: no luck; next try \d\d:\d\d:\d\d",
        r"main/fail  default  #3  [\d.,]+ ms  dead letter: RuntimeError: no luck; deferred-middleware retry 2",
        r"main/refuse  default  #1  [\d.,]+ ms  dead letter: PermanentTaskFailure: refused; deferred-\w+ retry 3",
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(r"\d\d:\d\d:\d\d  default  " + pattern, line)
    assert server.output.count("Traceback (most recent call last)") == 2
    assert "replay" not in server.output
    assert "\x1b" not in server.output


def test_the_hint_at_a_dead_letter_works(serve: Serve) -> None:
    """The command in the line of a dead letter retries it."""
    server = serve(APP)
    server.post("/refuse", {})
    server.wait_for_output("dead letter: ")
    found = re.search(r"; deferred-middleware (.*)\n", server.output)
    assert found is not None
    done = server.command(*found[1].split())
    assert (done.returncode, done.stdout) == (0, "Task 1 will be tried again.\n")
    server.wait_for_output("dead letter: ", times=2)


def test_the_lines_can_be_turned_off(serve: Serve) -> None:
    """With --no-task-lines, every failure is logged in full, and the log says how to retry a dead letter."""
    server = serve(APP, arguments=["--no-task-lines", "--data-dir=.deferred"])
    server.post("/work", {})
    name = server.post("/fail", THREE_ATTEMPTS)
    server.wait_for_output("To retry it: deferred-middleware retry 2\n")
    assert server.output.count("Traceback (most recent call last)") == 3
    assert f"`deferred-middleware retry default/{name}` tries it again" in server.output
    assert not re.search(r"^\d\d:\d\d:\d\d ", server.output, re.MULTILINE)


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("no_color", ["", "1"])
def test_at_a_terminal(make_server: Serve, columns: int, no_color: str) -> None:
    """At a terminal, a success is one row of it, in colours unless NO_COLOR is set."""
    server = make_server(APP, environ={"NO_COLOR": no_color, "TERM": "xterm", "COLUMNS": ""})
    terminal, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        server.launch(stdout=slave)
        server.wait_until_ready()
        server.post("/work", {})
        server.post("/fail", {"_retry_options": {"task_retry_limit": 0}})
        shown = _read_until(terminal, b"retry 2", server)
    finally:
        os.close(terminal)
        os.close(slave)
    (success,) = re.findall(r"^.*main/work.*$", shown, re.MULTILINE)
    plain = re.sub(r"\x1b\[\d+m", "", success)
    assert len(plain) <= columns
    assert plain.endswith("ok")
    assert ("\x1b[32mok" in shown) is (not no_color)
    assert ("\x1b[31mdead letter: " in shown) is (not no_color)
    assert ("\x1b" in shown) is (not no_color)


def _read_until(terminal: int, text: bytes, server: Server) -> str:
    """Return what a terminal shows, as soon as ``text`` is there."""
    shown = b""
    deadline = time.monotonic() + WAIT_SECONDS
    while text not in shown:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], server.output
        shown += os.read(terminal, 65536)
    return shown.decode().replace("\r\n", "\n")
