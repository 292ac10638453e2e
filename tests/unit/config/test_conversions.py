"""Tests of the conversions that no single setting shows; ``test_settings`` has those of each setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deferred_middleware.config import conversions


@pytest.mark.parametrize(
    ("convert", "given", "value"),
    [
        (conversions.paths, ["/a", "/b*"], ("/a", "/b*")),
        (conversions.path, None, None),
        (conversions.version, "v-1", "v-1"),
        (conversions.boolean, True, True),
        (conversions.integer(1, 3), 3, 3),
        (conversions.log_level, 15, 15),
    ],
)
def test_a_value_given_in_code_is_taken(convert: Callable[[Any], object], given: object, value: object) -> None:
    """A conversion takes values as well as texts."""
    assert convert(given) == value


@pytest.mark.parametrize(
    ("convert", "given"),
    [
        (conversions.paths, ["/a", "/*"]),
        (conversions.path, "/a b"),
        (conversions.version, ""),
        (conversions.integer(1, 3), 4),
        (conversions.seconds(0, 600), True),
        (conversions.seconds(0, 600), 601),
        (conversions.seconds(1, 600), 0.5),
        (conversions.one_of("a"), "b"),
    ],
)
def test_a_value_that_is_not_accepted_is_an_error(convert: Callable[[Any], object], given: object) -> None:
    """The error is a ValueError, from which the settings make their own."""
    with pytest.raises(ValueError):  # noqa: PT011 - the settings word the message
        convert(given)
