"""Which queues there are, and what becomes of one that goes."""

from __future__ import annotations

import pytest

from deferred_middleware.server.config.queues import IMPLICIT_DEFAULT, QueueConfig, QueueRegistry

MAIL = QueueConfig(name="mail", rate_per_second=1)


def test_default_is_always_there_and_unlimited() -> None:
    """Without being listed, ``default`` takes tasks and runs them without a limit."""
    registry = QueueRegistry([MAIL])
    assert sorted(registry) == ["default", "mail"]
    assert registry["default"] == IMPLICIT_DEFAULT
    assert (registry["default"].rate_per_second, registry["default"].max_concurrent_requests) == (None, None)


def test_a_listed_default_is_as_it_is_listed() -> None:
    """A configuration for ``default`` takes the place of the implicit one."""
    listed = QueueConfig(name="default", rate_per_second=5)
    assert QueueRegistry([listed])["default"] is listed


def test_a_removed_queue_takes_nothing_but_keeps_its_configuration(caplog: pytest.LogCaptureFixture) -> None:
    """A queue that goes isn't in the mapping, is run as before, and the log says so."""
    registry = QueueRegistry([MAIL])
    registry.replace([])
    assert "mail" not in registry
    assert registry.get("mail") is None
    assert registry.config_of("mail") is MAIL
    assert dict(registry.removed) == {"mail": MAIL}
    assert "Queue mail is not in the configuration any more" in caplog.text


def test_a_queue_may_come_back() -> None:
    """A queue that was removed and is listed again is as it is listed now."""
    registry = QueueRegistry([MAIL])
    registry.replace([])
    again = QueueConfig(name="mail", rate_per_second=2)
    registry.replace([again])
    assert registry.config_of("mail") is registry["mail"] is again
    assert dict(registry.removed) == {}


def test_a_queue_that_never_was_is_run_without_limits() -> None:
    """Tasks that an earlier server left in a queue unknown today are run all the same."""
    config = QueueRegistry().config_of("old")
    assert (config.name, config.rate_per_second) == ("old", None)


def test_listeners_hear_of_changes_only() -> None:
    """A listener is called when something changed, and finds the new queues then."""
    registry = QueueRegistry([MAIL])
    heard: list[list[str]] = []
    registry.on_change(lambda: heard.append(sorted(registry)))
    registry.replace([MAIL])
    assert heard == []
    registry.replace([MAIL, QueueConfig(name="new")])
    assert heard == [["default", "mail", "new"]]
