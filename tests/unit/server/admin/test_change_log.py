"""The log of changes: who did what, kept in a file of bounded size."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from deferred_middleware.server.admin import change_log
from deferred_middleware.server.admin.change_log import Actor, ChangeLog

ALICE = Actor(via="command", who="alice")


def test_changes_outlive_the_server(tmp_path: Path) -> None:
    """The next server knows the changes of the last one; only its user can read them."""
    path = tmp_path / "changes.jsonl"
    ChangeLog(path).add(ALICE, "pause", "queue mail", {"changed": True})
    ChangeLog(path).add(Actor(via="page", who="127.0.0.1"), "delete", "task 5", {"task": 5})

    newest, older = ChangeLog(path).newest()

    assert (newest["via"], newest["action"], newest["subject"]) == ("page", "delete", "task 5")
    assert (older["who"], older["answer"]) == ("alice", {"changed": True})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is full becomes the older one, so there are never more than two."""
    monkeypatch.setattr(change_log, "MAX_BYTES", 2000)
    path = tmp_path / "changes.jsonl"
    log = ChangeLog(path)
    for number in range(100):
        log.add(ALICE, "run", f"task {number}", {})

    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5000
    assert sorted(file.name for file in tmp_path.iterdir()) == ["changes.jsonl", "changes.jsonl.1"]
    assert [change["subject"] for change in log.newest(2)] == ["task 99", "task 98"]
    assert ChangeLog(path).newest(1)[0]["subject"] == "task 99"


@pytest.mark.parametrize("damage", [b'{"time_usec": 1, "vi', b"\xff\xfe", b"[]", b"{}", b"null"])
def test_a_damaged_line_is_left_out(tmp_path: Path, damage: bytes) -> None:
    """A line that a crash has cut off does not hide the others."""
    path = tmp_path / "changes.jsonl"
    ChangeLog(path).add(ALICE, "pause", "queue mail", {})
    with path.open("ab") as stream:
        stream.write(damage)

    assert [change["action"] for change in ChangeLog(path).newest()] == ["pause"]


def test_a_file_that_can_not_be_written_hides_no_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The change is done, kept in memory, and in the server's own log."""
    log = ChangeLog(tmp_path / "missing" / "changes.jsonl")

    log.add(ALICE, "purge", "queue mail", {"deleted": 3})

    assert log.newest()[0]["action"] == "purge"
    assert "purge" in caplog.text


def test_who_is_one_line(tmp_path: Path) -> None:
    """The name of a user can't add a line to the log."""
    log = ChangeLog(tmp_path / "changes.jsonl")

    log.add(Actor(via="API", who="a\nb" + "c" * 500), "run", "task 1", {})

    assert log.newest()[0]["who"].startswith("a\\nbccc")
    assert len(log.newest()[0]["who"]) == 100
