"""The log of changes on its page."""

from __future__ import annotations

from typing import Any

import pytest

from deferred_middleware.server.admin.pages.changes import result_of
from tests.support.visiting import Visitor


def test_changes_are_listed(visitor: Visitor) -> None:
    """Each change has who did it, by which way, and its result."""
    assert "No changes yet" in visitor.get("/changes").text
    visitor.add()
    visitor.press(visitor.get("/"), "Pause default")

    text = visitor.get("/changes").text

    assert "pause" in text
    assert "queue default" in text
    assert "127.0.0.1" in text


@pytest.mark.parametrize(
    ("action", "answer", "words"),
    [
        ("pause", {"queue": "mail", "changed": True}, "done"),
        ("pause", {"queue": "mail", "changed": False}, "it was so already"),
        ("run", {"task": 1, "done": "run"}, "done"),
        ("delete", {"done": 1, "skipped": 0}, "1 task changed"),
        ("delete", {"done": 1200, "skipped": 2}, "1,200 tasks changed, 2 tasks skipped"),
        ("purge", {"queue": "mail", "deleted": 0, "undo_until_usec": 5}, "0 tasks deleted"),
        ("undo purge", {"queue": "mail", "restored": 3, "refused": 1}, "3 tasks restored, 1 task refused"),
        ("retry", {"failure": 1, "retried": 1, "made_due": 2}, "1 task retried, 2 tasks made due"),
        ("forget", {"queue": "mail", "forgotten": 1}, "1 name free again"),
        ("move", {"task": 1, "queue": "slow"}, "to queue slow"),
        ("cron", {"entry": 1, "url": "/x", "status": 200, "running": False, "text": "ok"}, "status 200"),
        ("cron", {"entry": 1, "url": "/x", "status": None, "running": True, "text": ""}, "no answer yet"),
        ("clock", {"now": "2026", "frozen": True}, "now 2026, frozen True"),
    ],
)
def test_a_result_is_in_words(action: str, answer: dict[str, Any], words: str) -> None:
    """What a change did is a sentence's part, with plurals."""
    assert result_of(action, answer) == words


def test_an_eta_is_a_time() -> None:
    """A new ETA is shown as the time that it is."""
    assert result_of("set ETA", {"task": 1, "eta_usec": 1_700_000_000_000_000}).startswith("to 2023-11-1")
