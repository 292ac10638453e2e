"""Tests of hooks: which ones are called, and how their exceptions are handled."""

from __future__ import annotations

import logging

import pytest

from deferred_middleware.config.hooks import EVENTS, Hook, Hooks


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
        Hooks([object()])  # type: ignore[list-item] # the wrong object is the test


def test_what_a_hook_inherits_is_not_called() -> None:
    """A hook that inherits from Hook has the methods that it, or a class between, defines. It needs one of its own."""

    class Partly(Hook):
        def on_enqueue(self, *facts: object) -> None:
            heard.append(facts)

    class Below(Partly):
        """Has the method of its parent."""

    class Nothing(Hook):
        """Has no method of its own."""

    heard: list[object] = []
    hooks = Hooks([Partly(), Below()])
    for event in EVENTS:
        hooks.fire(event, 1)

    assert heard == [(1,), (1,)]
    assert [event for event in EVENTS if hooks.listens(event)] == ["on_enqueue"]
    with pytest.raises(TypeError, match="is not a hook"):
        Hooks([Nothing()])


def test_a_hook_that_would_have_to_be_awaited_is_refused() -> None:
    """Nobody would await the coroutine, so a hook's method can't be ``async def``."""

    class Awaited:
        async def on_enqueue(self, *facts: object) -> None:
            """Never run."""

    with pytest.raises(TypeError, match=r"the method on_enqueue of the hook .* is `async def`"):
        Hooks([Awaited()])  # type: ignore[list-item] # the wrong method is the test


def test_the_protocol_has_every_event() -> None:
    """The methods of Hook are the events."""
    assert sorted(name for name in dir(Hook) if not name.startswith("_")) == sorted(EVENTS)
