"""The lines that tell of attempts: what they say, their width and colours, and that they hold nobody up."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import re
import sys
import time
from pathlib import Path

import pytest

from deferred_middleware.server.admin import task_lines
from deferred_middleware.server.admin.server_file import DEFAULT_DATA_DIR
from deferred_middleware.server.admin.task_lines import (
    DeadLetterLog,
    EndedAttempt,
    LineFormat,
    TaskLines,
    retry_command,
)
from deferred_middleware.server.store.records import ClaimedTask, Completion
from tests.support.storing import TASK, completion

TRACEBACK = b"""Traceback (most recent call last):
  File "mail.py", line 9, in send
    connect()
    ~~~~~~~^^

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "mail.py", line 11, in send
    raise SendError("no route\\nto host")
mail.errors.SendError: no route
to host
"""
NOON = time.mktime((2026, 11, 28, 12, 0, 0, 0, 0, -1))
ENDED = EndedAttempt(
    task_id=7,
    queue="default",
    url="/_cb/deferred/mail/send_welcome",
    service="default",
    number=1,
    ended=NOON,
    duration_usec=12_345,
    state="succeeded",
    outcome=None,
    reason=None,
    response=b"",
    next_try=NOON,
)
RETRIED = ENDED._replace(state="ready", reason="status 500", response=TRACEBACK, next_try=NOON + 2)
DEAD = RETRIED._replace(state="failed")


def line(ended: EndedAttempt, width: int | None = None, *, data_dir: Path = DEFAULT_DATA_DIR) -> str:
    """Return the line of an attempt, without the blanks that align it."""
    formatted = LineFormat(services=["default"], queues=["default"], data_dir=data_dir, colours=False)
    return re.sub("  +", "  ", formatted.format(ended, width))


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (ENDED, "12:00:00  default  mail/send_welcome  default  #1  12 ms  ok"),
        (ENDED._replace(duration_usec=1_234, number=12), "…  mail/send_welcome  default  #12  1.2 ms  ok"),
        (ENDED._replace(duration_usec=61_234_567), "…  61,235 ms  ok"),
        (ENDED._replace(outcome="postponed"), "…  postponed: enqueued again"),
        (
            ENDED._replace(url="/jobs/42?x=1", service="v2.worker", queue="mail"),
            "…  v2.worker  /jobs/42?x=1  mail  #1  …",
        ),
        (RETRIED, "…  SendError: no route; next try 12:00:02"),
        (RETRIED._replace(response=b"sorry"), "…  status 500; next try 12:00:02"),
        (
            RETRIED._replace(response=b"\xff\x00", reason="connection refused"),
            "…  connection refused; next try 12:00:02",
        ),
        (RETRIED._replace(next_try=NOON + 3 * 86400), "…; next try 2026-12-01 12:00"),
        (RETRIED._replace(next_try=1e18), "…; next try in many years"),
        (DEAD, "…  dead letter: SendError: no route; deferred-middleware retry 7"),
        (DEAD._replace(response=b"", reason=None), "…  dead letter: permanent failure; deferred-middleware retry 7"),
        (
            DEAD._replace(response=b"Traceback (most recent call last):\n  File x\nKeyError\n"),
            "…  dead letter: KeyError; deferred-middleware retry 7",
        ),
    ],
)
def test_a_line_says_what_happened(ended: EndedAttempt, expected: str) -> None:
    """A line has the time, service, function, queue, attempt, milliseconds and outcome, and what comes next."""
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    assert re.fullmatch(pattern, line(ended))


@pytest.mark.parametrize("where", ["url", "service", "reason", "response"])
def test_nothing_in_a_line_controls_the_terminal(where: str) -> None:
    """Control characters of the app's names and texts are escaped, so that a task is one line."""
    evil = {
        "url": DEAD._replace(response=b"", url="/_cb/deferred/mail/%1B%5B31m%0Asend"),
        "service": DEAD._replace(response=b"", service="a\x1b[31m\n"),
        "reason": DEAD._replace(response=b"", reason="bad\x1b[31m\nline"),
        "response": DEAD._replace(response=b"Traceback (most recent call last):\n  File x\nKeyError: \x1b[31m\x07\r\n"),
    }
    assert line(evil[where]).isprintable()


@pytest.mark.parametrize("width", [20, 80, 100, 120, 200])
@pytest.mark.parametrize("function", ["send", "send_welcome", "a_name_that_is_much_longer_than_most_others_are" * 2])
def test_a_line_fits_the_terminal(width: int, function: str) -> None:
    """From 80 columns on, a success is one row of the terminal, and a failure at most two; the hint is never cut."""
    lines = LineFormat(services=["default"], queues=["default"], data_dir=DEFAULT_DATA_DIR, colours=False)
    url = f"/_cb/deferred/shop.mail/{function}"
    long = b"Traceback (most recent call last):\n  File x\nSomeError: " + b"words " * 100
    for response in (b"", TRACEBACK, long):
        success = lines.format(ENDED._replace(url=url), width)
        failure = lines.format(RETRIED._replace(url=url, response=response), width)
        dead = lines.format(DEAD._replace(url=url, response=response), width)
        assert failure.endswith("; next try 12:00:02")
        assert dead.endswith("; deferred-middleware retry 7")
        assert function[-11:] in success
        if width >= 80:
            assert len(success) <= width
            assert max(len(failure), len(dead)) <= 2 * width
        if width >= 120 and response == TRACEBACK and len(function) < 20:
            assert len(failure) <= width


def test_lines_are_aligned() -> None:
    """The columns of lines whose names fit are below each other."""
    lines = LineFormat(
        services=["default", "background"], queues=["default", "thumbs"], data_dir=Path("x"), colours=False
    )
    first = lines.format(ENDED, None)
    second = lines.format(ENDED._replace(service="background", queue="thumbs", duration_usec=900, url="/work"), None)
    assert first.index("ok") == second.index("ok")


def test_colours_show_the_outcome() -> None:
    """With colours, successes are green, retries yellow and dead letters red."""
    lines = LineFormat(services=[], queues=[], data_dir=DEFAULT_DATA_DIR, colours=True)
    assert lines.format(ENDED, None).endswith("\x1b[32mok\x1b[0m")
    assert "\x1b[33mSendError" in lines.format(RETRIED, None)
    assert "\x1b[31mdead letter: " in lines.format(DEAD, None)


def test_the_hint_names_the_data_directory() -> None:
    """The command finds the server: another data directory than the default one is an option, quoted for the shell."""
    assert retry_command(7, DEFAULT_DATA_DIR) == "deferred-middleware retry 7"
    assert retry_command(7, Path("/tmp/my data")) == "deferred-middleware retry 7 --data-dir '/tmp/my data'"
    assert line(DEAD, data_dir=Path("d")).endswith("deferred-middleware retry 7 --data-dir d")


@pytest.mark.parametrize(
    ("terminal", "environ", "expected"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colours_are_for_terminals(
    terminal: bool, environ: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colours are used on a terminal that has them, and not if NO_COLOR is set."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert task_lines._shows_colours(os.environ) is expected


def ended_attempt(task: ClaimedTask = TASK) -> Completion:
    """Return the result of a successful attempt."""
    return completion(task)


def test_lines_are_written_at_the_latest_at_the_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """``stop`` returns when the lines of all attempts before it are written."""
    lines = TaskLines(services=["default"], queues=["default"], data_dir=DEFAULT_DATA_DIR)
    lines.start()
    for _ in range(100):
        lines.attempt_ended(TASK, ended_attempt(), None)
    lines.stop()
    assert capsys.readouterr().out.count("/work") == 100


def test_an_output_that_takes_nothing_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the output takes nothing, a bounded number of lines waits; later the number of the others is written."""
    reading, writing = os.pipe()
    monkeypatch.setattr(task_lines, "_MOST_WAITING", 1000)
    with open(reading, encoding="utf-8") as reader, open(writing, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        lines = TaskLines(services=["default"], queues=["default"], data_dir=DEFAULT_DATA_DIR)
        lines.start()
        done = ended_attempt()
        # A pipe holds 64 KiB. One write is larger than that, and then the queue of lines is full.
        deadline = time.monotonic() + 20
        while not lines._left_out and time.monotonic() < deadline:
            lines.attempt_ended(TASK, done, None)
        assert len(lines._waiting) <= 1000
        monkeypatch.setattr(task_lines, "_STOP_SECONDS", 0.01)
        lines.stop()  # returns, although the output takes nothing
        read = ""
        while "more attempts" not in read:
            read += reader.readline()
        lines._thread.join(10)
        assert re.search(r"The output was too slow for the lines of \d[\d,]* more attempts\.\n$", read)


def test_a_line_that_fails_ends_no_thread(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a line can't be made, that is logged and the next lines are written."""
    lines = TaskLines(services=["default"], queues=["default"], data_dir=DEFAULT_DATA_DIR)
    monkeypatch.setattr(task_lines, "_GATHER_SECONDS", 0)
    lines.start()
    lines.attempt_ended(dataclasses.replace(TASK, url=None), ended_attempt(), None)  # type: ignore[arg-type] # a defect is what the test is about
    while not caplog.records:
        time.sleep(0.01)
    lines.attempt_ended(TASK, ended_attempt(), None)
    lines.stop()
    assert "could not be written" in caplog.text
    assert "/work" in capsys.readouterr().out


def test_a_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If nobody reads the output any more, the lines are dropped."""

    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Closed())
    lines = TaskLines(services=["default"], queues=["default"], data_dir=DEFAULT_DATA_DIR)
    lines.start()
    lines.attempt_ended(TASK, ended_attempt(), None)
    lines.stop()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_lines_dead_letters_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log has a dead letter with its reason, and the command that retries it; other attempts are not logged."""
    reports = DeadLetterLog(Path("elsewhere"))
    for state in ("succeeded", "ready", "failed"):
        reports.attempt_ended(TASK, dataclasses.replace(ended_attempt(), state=state), None)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "is a dead letter. It failed once: " in record.getMessage()
    assert record.getMessage().endswith("deferred-middleware retry 1 --data-dir elsewhere")
