"""Tests of running a task: the warm-up and the log records."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import namespace_manager
from google.appengine.ext import deferred

from deferred_middleware import Settings, call
from deferred_middleware.calls import payload
from deferred_middleware.config.hooks import Hooks
from deferred_middleware.errors import WarmupError
from deferred_middleware.execution.context import TaskContext
from deferred_middleware.execution.handler import label_from_path
from deferred_middleware.execution.outcomes import Outcome
from deferred_middleware.execution.runner import Runner, Warmup
from tests.support import sample
from tests.support.delivering import task_environ


def run(
    func: Any, *args: Any, settings: Settings | None = None, warmup: Warmup | None = None, **environ: Any
) -> Outcome:
    """Run a call as a delivered task."""
    body = payload.dumps(call(func, *args), 5)
    runner = Runner(settings or Settings(), Hooks(), warmup or Warmup(None))
    return runner.run(TaskContext(task_environ(body, **environ)), body, None)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (deferred.SingularTaskFailure, Outcome.RETRY),
        (deferred.PermanentTaskFailure, Outcome.PERMANENT_FAILURE),
        (ValueError, Outcome.FAILED),
        (SystemExit, Outcome.FAILED),
    ],
)
def test_an_exception_is_an_outcome(kind: type[BaseException], outcome: Outcome) -> None:
    """The exception that the call raises determines the outcome."""
    assert run(sample.raises_new, kind) is outcome


def test_subclasses_of_the_sdks_exceptions_count_as_them() -> None:
    """A subclass of an SDK exception counts as that exception."""

    class Gone(deferred.PermanentTaskFailure):  # type: ignore[misc]
        pass

    Gone.__module__, Gone.__qualname__ = sample.__name__, "Gone"
    sample.Gone = Gone  # type: ignore[attr-defined]
    try:
        assert run(sample.raises_new, Gone) is Outcome.PERMANENT_FAILURE
    finally:
        del sample.Gone  # type: ignore[attr-defined]


def test_success_is_one_quiet_line(caplog: pytest.LogCaptureFixture) -> None:
    """A success logs one line at DEBUG with function, queue, task, attempt and milliseconds, and no header."""
    with caplog.at_level(logging.DEBUG, "deferred_middleware"):
        run(sample.note, HTTP_X_APPENGINE_TASKRETRYCOUNT="1", HTTP_X_APPENGINE_API_TICKET="ticket")

    (record,) = [record for record in caplog.records if record.name == "deferred_middleware"]
    assert record.levelno == logging.DEBUG
    text = record.getMessage()
    assert text.startswith("tests.support.sample/note ran in ")
    assert text.endswith(" ms (queue default, task task1, attempt 2)")
    assert "ticket" not in text


def test_the_level_of_success_is_a_setting(caplog: pytest.LogCaptureFixture) -> None:
    """DEFERRED_LOG_LEVEL sets the level of the success line."""
    with caplog.at_level(logging.DEBUG, "deferred_middleware"):
        run(sample.note, settings=Settings(log_level=logging.INFO))

    assert [r.levelno for r in caplog.records if r.name == "deferred_middleware"] == [logging.INFO]


def failure(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """Return the only record, which must have a traceback."""
    (record,) = [record for record in caplog.records if record.name == "deferred_middleware"]
    assert record.exc_info is not None
    return record


def test_a_failure_is_one_loud_record(caplog: pytest.LogCaptureFixture) -> None:
    """A failure logs one record at ERROR with the traceback and the call."""
    run(sample.raises_new, ValueError, "broken")

    record = failure(caplog)
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        "task task1 failed and will be retried: "
        "tests.support.sample/raises_new(<class 'ValueError'>, 'broken') (queue default, attempt 1)"
    )
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


@pytest.mark.parametrize(
    ("retries", "limit", "level"),
    [("0", "2", logging.WARNING), ("1", "2", logging.WARNING), ("2", "2", logging.ERROR), ("9", None, logging.WARNING)],
)
def test_a_failure_that_is_retried_may_be_quieter(
    caplog: pytest.LogCaptureFixture, retries: str, limit: str | None, level: int
) -> None:
    """DEFERRED_RETRY_LOG_LEVEL applies while the task is retried; the last attempt logs an ERROR."""
    run(
        sample.raises_new,
        ValueError,
        settings=Settings(retry_log_level=logging.WARNING),
        HTTP_X_APPENGINE_TASKRETRYCOUNT=retries,
        HTTP_X_DEFERRED_RETRY_LIMIT=limit,
    )

    assert failure(caplog).levelno == level


def test_a_permanent_failure_is_always_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A permanent failure logs an ERROR, whatever the level for retries."""
    run(sample.raises_new, deferred.PermanentTaskFailure, settings=Settings(retry_log_level=logging.DEBUG))

    record = failure(caplog)
    assert record.levelno == logging.ERROR
    assert "failed for good and is dropped" in record.getMessage()


def test_a_quiet_retry_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """SingularTaskFailure makes the task retry and is not logged as an error."""
    with caplog.at_level(logging.DEBUG, "deferred_middleware"):
        run(sample.raises_new, deferred.SingularTaskFailure, "not yet")

    (record,) = [record for record in caplog.records if record.name == "deferred_middleware"]
    assert record.levelno == logging.DEBUG
    assert "asks for another attempt: not yet" in record.getMessage()


def test_a_type_error_in_the_function_is_told_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """A TypeError raised inside the function is logged unchanged, with its own traceback."""
    assert run(sample.raises_new, TypeError, "inside") is Outcome.FAILED

    record = failure(caplog)
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "inside"


def test_a_repr_that_fails_does_not_hide_the_failure(caplog: pytest.LogCaptureFixture) -> None:
    """If an argument's repr raises, the log shows a placeholder, and the task's own failure is still logged."""
    run(sample.raises_new, ValueError, sample.BadRepr())

    assert "BadRepr" in failure(caplog).getMessage()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that records its import, after it waits or raises as the test specifies."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "warm_module.py"
    path.write_text("from tests.support import sample\nsample.ran.append('warm')\n")
    monkeypatch.delitem(sys.modules, "warm_module", raising=False)
    return path


def test_the_warm_up_is_imported_before_the_payload_is_decoded(module: Path) -> None:
    """The warm-up module is imported once, at the first task, before the task's arguments are loaded."""
    warmup = Warmup("warm_module")
    assert sample.ran == []

    run(sample.note, sample.BadLoader(KeyError("too early")), warmup=warmup)
    run(sample.note, "second", warmup=warmup)

    assert sample.ran == ["warm", (("second",), {})]


def test_a_failed_warm_up_is_a_retry_and_tried_again(module: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the warm-up fails, the task is retried, and the next task tries the import again."""
    module.write_text("raise RuntimeError('database is down')\n")
    warmup = Warmup("warm_module")

    assert run(sample.note, warmup=warmup) is Outcome.UNREADABLE
    assert isinstance(failure(caplog).exc_info[1], WarmupError)  # type: ignore[index]
    assert "database is down" in caplog.text

    module.write_text("from tests.support import sample\nsample.ran.append('now it works')\n")
    sys.path_importer_cache.clear()
    assert run(sample.note, "x", warmup=warmup) is Outcome.DONE
    assert sample.ran == ["now it works", (("x",), {})]


def test_several_first_tasks_warm_up_once(module: Path) -> None:
    """If several first tasks arrive at the same time, all wait for a single import."""
    module.write_text(
        "import threading\nfrom tests.support import sample\nsample.gate.wait(10)\nsample.ran.append('warm')\n"
    )
    sample.gate = threading.Event()  # type: ignore[attr-defined]
    warmup = Warmup("warm_module")
    threads = [threading.Thread(target=run, args=(sample.note, n), kwargs={"warmup": warmup}) for n in range(4)]
    for thread in threads:
        thread.start()

    sample.gate.set()  # type: ignore[attr-defined]
    for thread in threads:
        thread.join(10)

    assert sample.ran[0] == "warm"
    assert sorted(sample.ran[1:]) == [((n,), {}) for n in range(4)]


@pytest.mark.parametrize("own", ["tenant", "(default)", "no namespace"])
def test_the_requests_namespace_is_left_as_it_was(own: str) -> None:
    """The request keeps its own namespace, whatever namespace the task has or sets."""
    namespace_manager.set_namespace("of-the-request")
    try:
        outcome = run(namespace_manager.set_namespace, "of-the-call", HTTP_X_DEFERRED_NAMESPACE=own)

        assert outcome is (Outcome.UNREADABLE if " " in own else Outcome.DONE)
        assert namespace_manager.get_namespace() == "of-the-request"
    finally:
        namespace_manager.set_namespace("")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/p/a/b", "a/b"),
        ("/p/", ""),
        ("/p/caf\xc3\xa9/b", "café/b"),
        ("/p/\xff", "\ufffd"),
    ],
)
def test_a_label_is_read_as_utf8(path: str, label: str) -> None:
    """The path, which WSGI passes as Latin-1, is decoded as UTF-8; invalid bytes are replaced."""
    assert label_from_path(path, "/p/") == label
