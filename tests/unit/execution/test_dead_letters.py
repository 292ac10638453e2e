"""Tests of dead letters: the log line, and the replay from it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware import DeferredMiddleware, PermanentTaskFailure, Settings, defer, task
from deferred_middleware.cli.main import main
from deferred_middleware.config import process
from deferred_middleware.config.process import current_deployment, current_settings, install_settings
from deferred_middleware.execution.context import TaskContext
from deferred_middleware.execution.dead_letters import MARK, ReplayError, record, replay
from deferred_middleware.execution.outcomes import DeadLetter, Outcome
from deferred_middleware.testing import DeferredTasks, capture_tasks
from tests.support import sample
from tests.support.delivering import request, task_environ


def app(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [])
    return []


def fails_unless_mended(value: object) -> None:
    """Fail permanently until the test notes "mended"."""
    sample.ran.append(value)
    if "mended" not in sample.ran:
        raise PermanentTaskFailure("broken")


@task(redact=("password",))
def login(password: str) -> None:
    """Fail with an argument that must not be logged."""
    raise PermanentTaskFailure("broken")


@pytest.fixture
def tasks() -> Iterator[DeferredTasks]:
    """The tasks of an app that signs its tasks."""
    install_settings(Settings(secret_keys=(secrets.token_hex(32),)))  # type: ignore[arg-type] # strings are accepted
    with capture_tasks(DeferredMiddleware(app)) as captured:
        yield captured


def line_in(caplog: pytest.LogCaptureFixture) -> str:
    """Return a dead letter's log line."""
    (line,) = (record.getMessage() for record in caplog.records if MARK in record.getMessage())
    return line


def dead_letter(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, value: object = "x") -> str:
    """Make a task fail permanently, and return its log line."""
    caplog.clear()
    defer(fails_unless_mended, value, _queue="mail", _headers={"X-Tenant": "a"})
    tasks.run(raise_errors=False)
    return line_in(caplog)


def content_of(line: str) -> dict[str, Any]:
    """Return what the JSON of a log line says."""
    content: dict[str, Any] = json.loads(line[line.index(MARK) + len(MARK) :])
    return content


def changed(line: str, **parts: Any) -> str:
    """Return the JSON of a log line with some parts replaced."""
    return json.dumps({**content_of(line), **parts})


@pytest.mark.parametrize("as_json", [False, True])
def test_it_is_run_again_from_the_line(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, as_json: bool) -> None:
    """The log line, or its JSON alone, is enough to enqueue a new, newly signed task that runs."""
    line = dead_letter(tasks, caplog)
    sample.ran.append("mended")

    again = replay(changed(line) if as_json else line)

    (pending,) = tasks.pending
    assert (pending.queue, pending.name, pending.url) == (
        "mail",
        again.name,
        f"/_cb/deferred/{__name__}/fails_unless_mended",
    )
    assert tasks.run().ok
    assert sample.ran == ["x", "mended", "x"]


def test_it_is_run_again_after_its_signature_has_expired(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead letter with an expired signature can be replayed by an app that has the key."""
    import time

    line = dead_letter(tasks, caplog)
    later = time.time() + 400 * 24 * 3600
    monkeypatch.setattr("deferred_middleware.execution.dead_letters.time.time", lambda: later)

    assert replay(line, queue="other").queue_name == "other"


@pytest.mark.parametrize(
    "parts",
    [
        {"body": base64.b64encode(b"other").decode()},
        {"path": "/_cb/deferred/os/system"},
        {"queue": "default"},
        {"application": "another-app"},
        {"name": "another-name"},
        {"service": "background"},
        {"reason": "another reason"},
        {"headers": {}},
        {"signature": "v1;k="},
        {"signature": "\ud800"},
    ],
)
def test_what_was_changed_is_not_run(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, parts: dict[str, Any]
) -> None:
    """A changed log line is rejected, and nothing is enqueued."""
    line = dead_letter(tasks, caplog)

    with pytest.raises(ReplayError, match="can't be verified"):
        replay(changed(line, **parts))
    assert tasks.pending == []


def test_who_reads_the_log_cannot_post_it(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """The log line contains neither the task's signature nor another one that the handler accepts."""
    line = dead_letter(tasks, caplog)
    (enqueued,) = tasks.enqueued
    kept = content_of(line)
    environ = task_environ(
        base64.b64decode(kept["body"]),
        kept["path"],
        HTTP_X_APPENGINE_QUEUENAME=kept["queue"],
        HTTP_X_APPENGINE_TASKNAME=kept["name"],
        **kept["headers"],
        HTTP_X_DEFERRED_SIGNATURE=kept["signature"],
    )
    own = enqueued.headers["X-Deferred-Signature"]

    assert tasks.app is not None
    assert own not in line
    assert request(tasks.app, dict(environ)).status == 403
    sample.ran.clear()
    posted = io.BytesIO(enqueued.body)
    assert request(tasks.app, {**environ, "wsgi.input": posted, "HTTP_X_DEFERRED_SIGNATURE": own}).status == 200, (
        "with the task's own signature it would be taken"
    )
    assert sample.ran == ["x"]


def test_another_apps_keys_do_not_run_it(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """Without the key that signed the line, replay fails; without any key, the error says what to set."""
    line = dead_letter(tasks, caplog)
    install_settings(dataclasses.replace(current_settings(), secret_keys=(secrets.token_hex(32),)))  # type: ignore[arg-type]
    with pytest.raises(ReplayError, match="an unknown key"):
        replay(line)

    install_settings(dataclasses.replace(current_settings(), secret_keys=()))
    with pytest.raises(ReplayError, match="DEFERRED_SECRET_KEYS"):
        replay(line)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "line",
    ["", "no JSON", "{}", '{"path": 1}', f"{MARK}[]", '{"body": "!"}', f'{{"body": {DEEP}', f'{MARK}{{"a":{DEEP}'],
    ids=range(8),
)
def test_what_is_no_dead_letter_is_told(line: str) -> None:
    """Text that is not a dead letter raises an error with a one-sentence message."""
    with pytest.raises(ReplayError, match="is not a dead letter"):
        replay(line)


@pytest.mark.parametrize(
    "parts",
    [
        {"application": "\ud800"},
        {"path": "/\u20ac"},
        {"path": None},
        {"name": 1},
        {"body": ["QQ=="]},
        {"body": "\ud800"},
        {"service": "evil.example"},
        {"service": "default\n"},
        {"service": ["default"]},
        {"headers": {"HTTP_X_DEFERRED_NAMESPACE": None}},
        {"headers": []},
        {"signature": 1},
        {"SCRIPT_NAME": "/_cb"},
        {"more": {}},
    ],
    ids=str,
)
def test_a_part_of_the_wrong_kind_is_told(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, parts: dict[str, Any]
) -> None:
    """A part that is of the wrong type, malformed or unknown makes the line no dead letter."""
    line = dead_letter(tasks, caplog)

    with pytest.raises(ReplayError, match="is not a dead letter"):
        replay(changed(line, **parts))
    assert tasks.pending == []


@pytest.mark.parametrize("how", ["setting", "redact"])
def test_what_must_not_be_logged_is_not(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """If a function's arguments are redacted, the payload is not logged either, and the log says so."""
    if how == "setting":
        install_settings(dataclasses.replace(current_settings(), log_arguments="names"))
        tasks.app = DeferredMiddleware(app)
        defer(fails_unless_mended, "secret-word")
    else:
        login.defer("secret-word")
    tasks.run(raise_errors=False)

    assert MARK not in caplog.text
    assert "secret-word" not in caplog.text
    assert base64.b64encode(tasks.enqueued[0].body).decode() not in caplog.text
    assert "must not be logged" in caplog.text


@pytest.mark.parametrize("redacted", [True, False])
def test_the_payload_of_a_call_that_is_not_here_is_logged_unless_it_is_redacted(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, redacted: bool
) -> None:
    """A version without the function learns from the task's headers that the arguments must not be logged."""
    if redacted:
        login.options(retry_options={"task_retry_limit": 0}).defer("secret-word")
    else:
        defer(fails_unless_mended, "x", _retry_options={"task_retry_limit": 0})
    monkeypatch.delattr(f"{__name__}.{'login' if redacted else 'fails_unless_mended'}")
    tasks.run(raise_errors=False)

    told = caplog.text
    assert "is not retried, because attempt 1 was the last that its retry options allow" in told
    assert (base64.b64encode(tasks.enqueued[0].body).decode() in told) is not redacted
    assert "secret-word" not in told


def test_the_new_task_keeps_what_the_caller_asked_for(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """The new task has the old task's retry options, dispatch deadline and headers; credentials are never logged."""
    defer(
        fails_unless_mended,
        "x",
        _retry_options={"task_retry_limit": 7, "min_backoff_seconds": 2.5},
        _deadline=1800,
        _headers={"X-Tenant": "a", "Authorization": "secret-word"},
    )
    tasks.run(raise_errors=False)

    again = replay(line_in(caplog))

    assert again.retry_options is not None
    assert again.retry_options.task_retry_limit == 7
    assert again.retry_options.min_backoff_seconds == 2.5
    assert again.dispatch_deadline_usec == 1_800_000_000
    assert again.headers["X-Tenant"] == "a"
    assert "secret-word" not in caplog.text
    sample.ran.append("mended")
    assert tasks.run().ok


@pytest.mark.parametrize(
    ("removed", "added"),
    [
        ("", {"HTTP_HOST": "evil.example"}),
        ("", {"HTTP_X_OTHER": "1"}),
        ("", {"HTTP_X_TENANT": "b"}),
        ("", {"HTTP_X_TENANT": " a"}),
        ("HTTP_X_TENANT", {}),
        ("", {"HTTP_X_DEFERRED_NAMESPACE": "b"}),
        ("", {"HTTP_X_DEFERRED_MAX_ATTEMPTS": "1"}),
        ("HTTP_X_DEFERRED_OWN_HEADERS", {}),
        ("", {"QUERY_STRING": "x=1"}),
        ("", {"SCRIPT_NAME": ""}),
        ("", {"SCRIPT_NAME": "/_cb/deferred"}),
        ("", {"REQUEST_METHOD": "POST"}),
    ],
)
def test_a_header_that_was_changed_is_not_taken(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, removed: str, added: dict[str, str]
) -> None:
    """Only headers that were signed count, so the line can neither redirect the task nor change its URL or tenant."""
    line = dead_letter(tasks, caplog)
    content = content_of(line)
    headers = {key: value for key, value in content["headers"].items() if key != removed} | added
    # The path without what the added header says.
    path = content["path"].removeprefix(added.get("SCRIPT_NAME", ""))

    with pytest.raises(ReplayError, match="it is not what was signed"):
        replay(changed(line, headers=headers, path=path))
    assert tasks.pending == []


@pytest.mark.parametrize(
    ("version", "service", "target"),
    [("v2", "background", "v2.background"), ("v2", "default", "v2.default"), (None, "background", "background")],
)
def test_it_runs_again_in_its_service(
    tasks: DeferredTasks,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    service: str,
    target: str,
) -> None:
    """The new task targets the version that replays it; if that is unknown, the service's default version."""
    deployment = dataclasses.replace(current_deployment(), service=service)
    monkeypatch.setattr(process, "_deployment", deployment)
    line = dead_letter(tasks, caplog)
    assert content_of(line)["service"] == service
    monkeypatch.setattr(process, "_deployment", dataclasses.replace(deployment, version=version))
    monkeypatch.setenv("DEFAULT_VERSION_HOSTNAME", "app.example")

    assert replay(line).target == target


def test_what_is_not_signed_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key, the line can't be replayed. Nor can it with a key, if the task itself was not signed."""
    deployment = dataclasses.replace(current_deployment(), environment="standard")
    monkeypatch.setattr(process, "_deployment", deployment)
    with capture_tasks() as tasks:
        install_settings(Settings(secret_keys=(), require_signature=False))
        tasks.app = DeferredMiddleware(app)
        for _ in range(2):
            defer(fails_unless_mended, "x")
        first, second = tasks.pending
        assert "X-Deferred-Signature" not in first.headers
        tasks.run(first, raise_errors=False)
        unsigned = line_in(caplog)
        assert "can't run it again from this line, because the line is not signed: this process has no" in unsigned
        with pytest.raises(ReplayError, match="no signature"):
            replay(unsigned)

        caplog.clear()
        install_settings(dataclasses.replace(current_settings(), secret_keys=(secrets.token_hex(32),)))  # type: ignore[arg-type] # a text will do
        tasks.app = DeferredMiddleware(app)
        tasks.run(second, raise_errors=False)
        assert "because the line is not signed: the task itself was not signed" in line_in(caplog)
        with pytest.raises(ReplayError, match="no signature"):
            replay(line_in(caplog))


@pytest.mark.parametrize("change", ["name", "header", "path", "body"])
def test_a_record_is_signed_only_for_what_was_signed(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """If the request is not the one that was signed any more, because a layer or the task changed it, nor is the line.

    So nobody can get another call signed.
    """
    content = content_of(dead_letter(tasks, caplog))
    (enqueued,) = tasks.enqueued
    environ = task_environ(
        enqueued.body,
        content["path"],
        **content["headers"],
        HTTP_X_APPENGINE_QUEUENAME="mail",
        HTTP_X_APPENGINE_TASKNAME=content["name"],
        HTTP_X_DEFERRED_SIGNATURE=enqueued.headers["X-Deferred-Signature"],
    )
    letter = DeadLetter(
        context=TaskContext(environ),
        call=None,
        error=ValueError(),
        outcome=Outcome.PERMANENT_FAILURE,
        reason="a reason",
        body=enqueued.body,
    )
    assert record(letter, current_settings()).unsigned_because is None

    if change == "body":
        letter = dataclasses.replace(letter, body=b"other")
    elif change == "path":
        environ["PATH_INFO"] = "/_cb/deferred/os/system"
    else:
        environ["HTTP_X_APPENGINE_TASKNAME" if change == "name" else "HTTP_X_DEFERRED_REDACTED"] = "1"

    assert record(letter, current_settings()).unsigned_because == "the task itself was not signed"


def test_damaged_options_of_an_unsigned_task_are_no_problem() -> None:
    """The record of a task whose headers describe no options can be written, and has these headers."""
    environ = task_environ(
        b"",
        HTTP_X_DEFERRED_RETRY_OPTIONS="[" * 100_000,
        HTTP_X_DEFERRED_DEADLINE="soon",
        HTTP_X_DEFERRED_MAX_ATTEMPTS="\ud800",
    )
    letter = DeadLetter(
        context=TaskContext(environ),
        call=None,
        error=ValueError(),
        outcome=Outcome.PERMANENT_FAILURE,
        reason="a reason",
        body=b"",
    )

    written = record(letter, Settings())

    assert json.loads(written.text)["headers"]["HTTP_X_DEFERRED_DEADLINE"] == "soon"
    assert written.unsigned_because == "this process has no DEFERRED_SECRET_KEYS"


@pytest.mark.parametrize(("shown", "told"), [("none", "(…)"), ("names", "(value)"), ("short", "('word')")])
def test_how_much_of_the_arguments_is_logged(
    tasks: DeferredTasks, caplog: pytest.LogCaptureFixture, shown: Any, told: str
) -> None:
    """DEFERRED_LOG_ARGUMENTS controls how much a failure's log record shows of the arguments."""
    install_settings(dataclasses.replace(current_settings(), log_arguments=shown))
    tasks.app = DeferredMiddleware(app)
    defer(fails_unless_mended, "word")
    tasks.run(raise_errors=False)

    (record,) = (record for record in caplog.records if record.exc_info)
    assert f"fails_unless_mended{told}" in record.getMessage()


def test_headers_are_at_debug_and_secrets_nowhere(tasks: DeferredTasks, caplog: pytest.LogCaptureFixture) -> None:
    """A task's headers are logged at DEBUG, without the signature."""
    caplog.set_level(logging.DEBUG)
    defer(sample.note, _headers={"X-Tenant": "a", "Cookie": "secret-cookie"})
    tasks.run()

    (record,) = (record for record in caplog.records if record.getMessage().startswith("headers of task"))
    assert record.levelno == logging.DEBUG
    assert "X_TENANT=a" in record.getMessage()
    assert tasks.enqueued[0].headers["X-Deferred-Signature"] not in caplog.text
    assert "secret-cookie" not in caplog.text


def test_the_command_runs_lines(
    tasks: DeferredTasks,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command replays the lines of a log file, reports each result, and exits with 1 if one failed."""
    monkeypatch.delitem(os.environ, "API_HOST", raising=False)
    good = dead_letter(tasks, caplog)
    path = tmp_path / "log"
    path.write_bytes(f"something else: \xff\n{good}\n{changed(good, queue='x')}\n".encode("latin-1"))

    assert main(["replay", str(path)]) == 1

    told = capsys.readouterr()
    assert "dead letter 1: enqueued as" in told.out
    assert "dead letter 2: not enqueued: the dead letter can't be verified" in told.err
    assert len(tasks.pending) == 1


def test_the_command_says_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, or a file without dead letters, is reported in one sentence."""
    (tmp_path / "empty").write_text("nothing\n")

    assert main(["replay", str(tmp_path / "nowhere")]) == 1
    assert main(["replay", str(tmp_path / "empty")]) == 1

    assert "can't be read" in (told := capsys.readouterr().err)
    assert "no line of a dead letter" in told
