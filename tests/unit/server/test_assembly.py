"""Warnings about services that don't fit together."""

from __future__ import annotations

import pytest

from deferred_middleware.server.assembly import warn_of_different_keys


@pytest.mark.parametrize(
    ("keys", "warned"),
    [
        (["one", "one"], False),
        (["one", "one,older", " one , other"], False),
        (["one"], False),
        ([], False),
        (["one", "two"], True),
        (["new,old", "old"], True),
    ],
)
def test_keys_that_differ_are_told(keys: list[str], warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A warning is logged if services sign with different keys, because they refuse each other's tasks."""
    warn_of_different_keys([{"DEFERRED_SECRET_KEYS": text} for text in keys])
    assert ("Not all services have the same DEFERRED_SECRET_KEYS" in caplog.text) is warned
