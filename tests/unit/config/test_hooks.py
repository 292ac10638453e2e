"""Tests of hooks: who is told what, and what becomes of what they raise."""

from __future__ import annotations

import logging

import pytest

from deferred_middleware.config.hooks import Hooks


class Listening:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def on_refused(self, *facts: object) -> None:
        """Hear of a refusal."""
        self.heard.append(facts)


class Failing:
    """Can't bear to hear of a refusal."""

    def on_refused(self, *facts: object) -> None:
        """Fail."""
        raise RuntimeError("not now")


def test_every_hook_that_has_the_method_is_told() -> None:
    """Hooks are told the facts, and one without the event's method is passed over."""
    first, second = Listening(), Listening()

    Hooks([first, second]).fire("on_refused", "who", "why")
    Hooks([first]).fire("after_task", "what")

    assert first.heard == second.heard == [("who", "why")]


def test_a_hook_that_raises_is_logged_and_the_next_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What a hook raises reaches the log, and nobody else."""
    second = Listening()

    with caplog.at_level(logging.ERROR):
        Hooks([Failing(), second]).fire("on_refused", 1)

    assert second.heard == [(1,)]
    assert "not now" in caplog.text


def test_what_has_none_of_the_methods_is_no_hook() -> None:
    """A thing that would never be told anything is refused at once."""
    with pytest.raises(TypeError, match="is not a hook"):
        Hooks([object()])
