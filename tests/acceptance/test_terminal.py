"""``deferred-middleware serve`` and the terminal that it was started at, or was not."""

from __future__ import annotations

import os
import pty
import signal
import socket
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.running import Serve

STOPS = """
import os

def app(environ, start_response):
    x = 41
    if environ["PATH_INFO"] == "/stop":
        breakpoint()
    if environ["PATH_INFO"] == "/raw":
        import tty
        tty.setraw(0)
        os.mkfifo("waiting")
        open("waiting").read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(x).encode()]

def debug():
    print("the debugger that was chosen")
"""
# The module runs as in `python -m deferred_middleware`, with a signal ignored.
IGNORING = """
import runpy, signal, sys
signal.signal({signum}, signal.SIG_IGN)
runpy.run_module("deferred_middleware", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: that of the person, and that of the processes."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def read_until(descriptor: int, text: bytes) -> bytes:
    """Read from the person's end of a terminal until ``text`` was read."""
    output = b""
    while text not in output:
        output += os.read(descriptor, 65536)
    return output


def test_a_breakpoint_opens_the_debugger(make_server: Serve, terminal: tuple[int, int]) -> None:
    """At a terminal, breakpoint() in a request opens pdb there, which reads what is typed."""
    ours, theirs = terminal
    server = make_server(STOPS)
    server.launch(stdin=theirs, stdout=theirs)
    server.wait_until_ready()
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(server.get("/stop")))
    thread.start()
    read_until(ours, b"(Pdb) ")
    os.write(ours, b"x = 42\nc\n")
    thread.join()
    assert answers == ["42"]
    assert server.stop() == 0


def test_the_terminal_is_restored(make_server: Serve, terminal: tuple[int, int]) -> None:
    """If an app process changed the terminal's settings and is killed, the server restores them at its end."""
    _ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    server = make_server(STOPS)
    server.launch(stdin=theirs, stdout=theirs)
    server.wait_until_ready()
    host, _, port = server.services["default"].removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /raw HTTP/1.0\r\n\r\n")
        while not (server.directory / "waiting").exists():
            time.sleep(0.01)  # no portable call waits for a file
        assert termios.tcgetattr(theirs) != before
        assert server.stop() == 0
    assert termios.tcgetattr(theirs) == before


def test_a_breakpoint_without_a_terminal_is_explained(serve: Serve) -> None:
    """Without a terminal, breakpoint() says how to debug, and the request goes on."""
    server = serve(STOPS)
    assert server.get("/stop") == "41"
    server.wait_for_output(
        "main.py:7 opens no debugger, because the server doesn't run in the foreground of a terminal"
    )


def test_a_debugger_that_needs_no_terminal_is_called(serve: Serve) -> None:
    """Without a terminal, the debugger that PYTHONBREAKPOINT names is called."""
    server = serve(STOPS, environ={"PYTHONBREAKPOINT": "main.debug"})
    assert server.get("/stop") == "41"
    server.wait_for_output("the debugger that was chosen")


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_an_ignored_signal_stays_ignored(serve: Serve, signum: signal.Signals) -> None:
    """A signal that was ignored at the start, such as by nohup, doesn't end the server; the other ones do."""
    server = serve(STOPS, program=("-c", IGNORING.format(signum=int(signum))))
    server.send_signal(signum)
    assert server.get("/") == "41"
    assert server.stop(signal.SIGINT if signum is signal.SIGTERM else signal.SIGTERM) == 0
    assert server.output.count("Stopping:") == 1
