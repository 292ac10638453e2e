"""Tests of the suggestion in errors about unknown names."""

from __future__ import annotations

from deferred_middleware.errors import nearest


def test_a_misspelt_name_has_a_nearest_one() -> None:
    """The most similar known name is returned, and None if no known name is similar enough."""
    known = ["_countdown", "_queue"]

    assert nearest("_countdwn", known) == "_countdown"
    assert nearest("_target", known) is None
    assert nearest("_countdwn", known, similarity=0.99) is None
