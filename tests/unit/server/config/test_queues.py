"""Which queues exist, and what happens to a removed one."""

from __future__ import annotations

import pytest

from deferred_middleware.server.config.queues import IMPLICIT_DEFAULT, QueueConfig, QueueRegistry

MAIL = QueueConfig(name="mail", rate_per_second=1)


def test_default_is_always_there_and_unlimited() -> None:
    """``default`` exists even if it is not listed, and has no limits then."""
    registry = QueueRegistry([MAIL])
    assert sorted(registry) == ["default", "mail"]
    assert registry["default"] == IMPLICIT_DEFAULT
    assert (registry["default"].rate_per_second, registry["default"].max_concurrent_requests) == (None, None)


def test_a_listed_default_is_as_it_is_listed() -> None:
    """A listed ``default`` replaces the implicit one."""
    listed = QueueConfig(name="default", rate_per_second=5)
    assert QueueRegistry([listed])["default"] is listed


def test_a_removed_queue_takes_nothing_but_keeps_its_configuration(caplog: pytest.LogCaptureFixture) -> None:
    """A removed queue accepts no tasks, but its remaining tasks run with its last configuration, and that is logged."""
    registry = QueueRegistry([MAIL])
    registry.replace([])
    assert "mail" not in registry
    assert registry.get("mail") is None
    assert registry.config_of("mail") is MAIL
    assert dict(registry.removed) == {"mail": MAIL}
    assert "Queue mail is not in the configuration any more" in caplog.text


def test_a_queue_may_come_back() -> None:
    """If a removed queue is listed again, its new configuration applies."""
    registry = QueueRegistry([MAIL])
    registry.replace([])
    again = QueueConfig(name="mail", rate_per_second=2)
    registry.replace([again])
    assert registry.config_of("mail") is registry["mail"] is again
    assert dict(registry.removed) == {}


def test_a_queue_that_never_was_is_run_without_limits() -> None:
    """If an earlier server left tasks in a queue that is unknown now, they run without limits."""
    config = QueueRegistry().config_of("old")
    assert (config.name, config.rate_per_second) == ("old", None)


def test_listeners_hear_of_changes_only() -> None:
    """Listeners are called only after a change, when the registry already holds the new queues."""
    registry = QueueRegistry([MAIL])
    heard: list[list[str]] = []
    registry.on_change(lambda: heard.append(sorted(registry)))
    registry.replace([MAIL])
    assert heard == []
    registry.replace([MAIL, QueueConfig(name="new")])
    assert heard == [["default", "mail", "new"]]
