"""Tests that text from elsewhere never reaches a terminal or a log with its control characters."""

from __future__ import annotations

import io
import logging
import secrets
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deferred_middleware import DeferredMiddleware, Settings
from deferred_middleware.cli.main import main
from deferred_middleware.cli.output import print_line
from deferred_middleware.errors.loggers import EscapingFormatter, get_logger, log_to_terminal
from deferred_middleware.errors.text import log_error, printable, without_controls
from tests.support.delivering import request, task_environ

# It clears the screen, sets the title of the terminal, goes back, turns the text around, and begins a line.
HOSTILE = "a\x1b[2J\x1b]0;title\x07\x08\x9b1m\r\n[queue] ERROR \u202e\u2028\x00\ud800"


def is_harmless(text: str) -> bool:
    """Tell whether a line can be written to a terminal."""
    return "\n" not in text and without_controls(text) == text


@given(st.text())
@example(HOSTILE)
def test_a_line_stays_a_line(text: str) -> None:
    """A printable text has one line, can be encoded, and is unchanged if it was printable before."""
    shown = printable(text)

    assert shown.isprintable()
    assert is_harmless(shown)
    assert (shown == text) is text.isprintable()
    shown.encode()


@given(st.text())
@example(HOSTILE)
def test_only_ends_of_lines_and_tabs_control_anything(text: str) -> None:
    """Of the ASCII and Latin-1 control characters, only tabs and line feeds stay; other characters don't change."""
    shown = without_controls(text)

    assert not {c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160} - {"\n", "\t"}
    assert without_controls(shown) == shown
    shown.encode()
    assert without_controls("Grüße, 東京, 👩\u200d🔬\t1\n") == "Grüße, 東京, 👩\u200d🔬\t1\n"


class Elsewhere(Exception):
    """An error of somebody else."""


@pytest.mark.parametrize("value", [HOSTILE, Elsewhere(HOSTILE)], ids=["text", "exception"])
def test_our_records_have_no_control_characters(caplog: pytest.LogCaptureFixture, value: object) -> None:
    """Whatever handler an app has, the text of our records is one line without control characters."""
    get_logger("deferred_middleware.tests").warning("from %s, %d", value, 1)

    assert is_harmless(caplog.messages[0])
    assert caplog.messages[0].startswith("from a\\x1b[2J")


def test_a_traceback_has_no_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    """The text of an exception can't control the terminal to which its traceback is logged."""
    log_error(get_logger("deferred_middleware.tests"), logging.ERROR, "failed", error=Elsewhere(HOSTILE))

    assert "\x1b" not in caplog.text
    assert "Elsewhere: a\\x1b[2J" in caplog.text


def test_a_process_of_ours_logs_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local server's processes escape the records of every logger; those of waitress are one line."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    log_to_terminal("%(message)s")
    waitress = logging.getLogger("waitress")

    logging.getLogger("app").warning("line\n%s", HOSTILE)
    shown = capsys.readouterr().err
    waitress.error("Exception while serving %s", HOSTILE)
    of_waitress = capsys.readouterr().err

    assert without_controls(shown) == shown
    assert shown.startswith("line\na\\x1b[2J")
    assert is_harmless(of_waitress.removesuffix("\n"))
    assert isinstance(root.handlers[0].formatter, EscapingFormatter)


PLACES = ["HTTP_X_APPENGINE_TASKNAME", "HTTP_X_APPENGINE_QUEUENAME", "HTTP_X_DEFERRED_SIGNATURE", "PATH_INFO"]


@pytest.mark.parametrize("place", PLACES)
def test_a_refused_request_logs_no_control_characters(caplog: pytest.LogCaptureFixture, place: str) -> None:
    """The path and the headers of a forged request reach the log escaped."""
    key: Any = secrets.token_hex(32)
    app = DeferredMiddleware(lambda _environ, _start: [], settings=Settings(secret_keys=(key,), require_signature=True))
    hostile = HOSTILE.encode("utf-8", "surrogatepass").decode("latin-1")
    environ = task_environ(b"")
    environ[place] = environ.get(place, "") + hostile

    assert request(app, environ).status == 403
    assert caplog.messages
    assert all(is_harmless(message) for message in caplog.messages)


def test_the_headers_of_a_task_are_logged_escaped(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, the values of all headers are logged on one line."""
    from deferred_middleware.execution import logs
    from deferred_middleware.execution.context import TaskContext

    caplog.set_level(logging.DEBUG)
    logs.headers(TaskContext(task_environ(b"", HTTP_X_TENANT=HOSTILE, HTTP_X_APPENGINE_TASKNAME=HOSTILE)))

    assert is_harmless(caplog.messages[0])
    assert "X_TENANT=a\\x1b[2J" in caplog.messages[0]


def test_a_command_prints_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """What a command prints, and the error that it ends with, have no control characters."""
    print_line(HOSTILE)
    assert main(["replay", f"/nowhere/{HOSTILE.removesuffix(chr(0xD800)).replace(chr(0), '')}"]) == 1

    shown = capsys.readouterr()
    assert without_controls(shown.out) == shown.out
    assert without_controls(shown.err) == shown.err
    assert "a\\x1b[2J" in shown.err


@pytest.mark.parametrize("body", [HOSTILE.encode("utf-8", "replace"), b'{"error": {"message": "\\u001b[2J\\r\\nx"}}'])
def test_the_answer_of_a_foreign_server_is_shown_escaped(
    capsys: pytest.CaptureFixture[str], body: bytes, tmp_path: Any, answering_server: Any
) -> None:
    """If another program answers in the server's place, its text is one harmless line."""
    token = tmp_path / "token"
    token.write_text("token")

    assert main(["queues", "--admin", answering_server(403, body), "--token-file", str(token)]) == 1

    assert is_harmless(capsys.readouterr().err.removesuffix("\n"))


@pytest.fixture
def answering_server() -> Any:
    """Return a function that starts a server with one answer for all requests, and returns its address."""
    import threading
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    servers = []

    def start(status: int, body: bytes) -> str:
        def app(_environ: Any, start_response: Any) -> list[bytes]:
            start_response(f"{status} Answer", [("Content-Length", str(len(body)))])
            return [body]

        server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_lines_of_a_logger_that_is_not_ours_are_kept() -> None:
    """A message of several lines, such as one with a traceback, keeps its lines on the terminal."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(EscapingFormatter("%(message)s"))
    try:
        raise Elsewhere(HOSTILE)
    except Elsewhere:
        handler.emit(logging.LogRecord("app", logging.ERROR, "", 1, "one\ntwo\t%s", ("3",), sys.exc_info()))

    assert stream.getvalue().startswith("one\ntwo\t3\nTraceback")
    assert without_controls(stream.getvalue()) == stream.getvalue()
