"""The log of changes on its page."""

from __future__ import annotations

from tests.support.visiting import Visitor


def test_changes_are_listed(visitor: Visitor) -> None:
    """Each change has who did it, by which way, and its result."""
    assert "No changes yet" in visitor.get("/changes").text
    visitor.add()
    visitor.press(visitor.get("/"), "Pause default")

    text = visitor.get("/changes").text

    assert "pause" in text
    assert "queue default" in text
    assert "changed True" in text
    assert "127.0.0.1" in text
