"""Tests of hooks: which ones are called, and how their exceptions are handled."""

from __future__ import annotations

import logging

import pytest

from deferred_middleware.config.hooks import Hooks


class Listening:
    """Records its calls."""

    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []

    def on_refused(self, *facts: object) -> None:
        """Record a refusal."""
        self.heard.append(facts)


class Failing:
    """Fails on each refusal."""

    def on_refused(self, *facts: object) -> None:
        """Fail."""
        raise RuntimeError("not now")


def test_every_hook_that_has_the_method_is_told() -> None:
    """Each hook gets the event's arguments, and a hook without the event's method is skipped."""
    first, second = Listening(), Listening()

    Hooks([first, second]).fire("on_refused", "who", "why")
    Hooks([first]).fire("after_task", "what")

    assert first.heard == second.heard == [("who", "why")]


def test_a_hook_that_raises_is_logged_and_the_next_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """If a hook raises, the exception is logged, and the next hook is still called."""
    second = Listening()

    with caplog.at_level(logging.ERROR):
        Hooks([Failing(), second]).fire("on_refused", 1)

    assert second.heard == [(1,)]
    assert "not now" in caplog.text


def test_what_has_none_of_the_methods_is_no_hook() -> None:
    """An object with none of the hook methods is refused immediately."""
    with pytest.raises(TypeError, match="is not a hook"):
        Hooks([object()])
