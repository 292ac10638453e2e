"""Reports of cron.yaml."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deferred_middleware.server.admin.change_log import Actor
from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.reports import cron
from deferred_middleware.server.admin.reports.cron import CronAnswer
from deferred_middleware.server.store.store import TaskStore
from tests.support.visiting import Visitor

ACTOR = Actor(via="API", who="test")
TEXT = """cron:
- url: /clean
  schedule: every day 03:30
  target: background
- url: /poll
  schedule: every 5 minutes
- url: /odd
  schedule: sometimes
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a cron.yaml."""
    (tmp_path / "cron.yaml").write_text(TEXT)
    return tmp_path


def test_entries_have_their_next_times(store: TaskStore, directory: Path) -> None:
    """An entry has three next times, unless it counts from its last run or is wrong."""
    clean, poll, odd = Visitor(store, cron_directories=(directory,)).reports.cron.show()["entries"]
    assert len(clean["next_usec"]) == 3
    assert clean["next_usec"] == sorted(clean["next_usec"])
    assert poll["after_last_run"]
    assert odd["next_usec"] == []
    assert "sometimes" in odd["problem"]


def test_an_entry_is_run(store: TaskStore, directory: Path) -> None:
    """A run goes to the entry's target, is logged, and is shown afterwards."""
    sent: list[tuple[str, str]] = []

    def send(target: str, url: str) -> CronAnswer:
        sent.append((target, url))
        return CronAnswer(status=200, seconds=0.1, text="ok")

    visitor = Visitor(store, cron_directories=(directory,), send_cron=send)
    answer = visitor.reports.cron.run(ACTOR, "0", url="/clean")
    assert (answer["status"], sent) == (200, [("background", "/clean")])
    assert visitor.reports.cron.show()["entries"][0]["last_run"]["status"] == 200
    assert visitor.change_log.newest()[0]["subject"] == "cron /clean"


def test_a_long_run_goes_on(store: TaskStore, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of a long run comes later, and it does not run twice at a time."""
    monkeypatch.setattr(cron, "_PATIENCE_SECONDS", 0.01)
    may_end = threading.Event()

    def send(_target: str, _url: str) -> CronAnswer:
        may_end.wait(20)
        return CronAnswer(status=500, seconds=1.0, text="")

    visitor = Visitor(store, cron_directories=(directory,), send_cron=send)
    assert visitor.reports.cron.run(ACTOR, "1")["running"]
    assert visitor.reports.cron.show()["entries"][1]["last_run"]["running"]
    with pytest.raises(OperationError, match="still running"):
        visitor.reports.cron.run(ACTOR, "1")
    may_end.set()


def test_a_run_that_fails_says_why(store: TaskStore, directory: Path) -> None:
    """If nothing is served at the target, the error says so, and the page too."""

    def send(_target: str, _url: str) -> CronAnswer:
        raise OSError("nothing answers")

    visitor = Visitor(store, cron_directories=(directory,), send_cron=send)
    with pytest.raises(OperationError, match="nothing answers"):
        visitor.reports.cron.run(ACTOR, "0")
    assert visitor.reports.cron.show()["entries"][0]["last_run"]["text"] == "nothing answers"


@pytest.mark.parametrize(("number", "url"), [("3", None), ("x", None), ("", None), ("9" * 20, None), ("0", "/poll")])
def test_entries_that_are_not_there_are_refused(
    store: TaskStore, directory: Path, number: str, url: str | None
) -> None:
    """An unknown entry, or one that is another one now, is not run."""
    visitor = Visitor(store, cron_directories=(directory,), send_cron=lambda _target, _url: pytest.fail("it was run"))
    with pytest.raises(OperationError):
        visitor.reports.cron.run(ACTOR, number, url=url)


def test_read_only_servers_run_nothing(store: TaskStore, directory: Path) -> None:
    """With --read-only, no entry is run."""
    visitor = Visitor(
        store, cron_directories=(directory,), send_cron=lambda _t, _u: pytest.fail("it was run"), read_only=True
    )
    with pytest.raises(OperationError, match="--read-only"):
        visitor.reports.cron.run(ACTOR, "0")


def test_a_wrong_file(store: TaskStore, tmp_path: Path) -> None:
    """A wrong file is shown with its error."""
    (tmp_path / "cron.yaml").write_text("cron:\n- url: x\n")
    assert Visitor(store, cron_directories=(tmp_path,)).reports.cron.show()["error"]["line"] == 2
