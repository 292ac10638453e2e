"""Searches: what parameters of a URL ask for, and what they can't."""

from __future__ import annotations

import pytest

from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.reading.search import TaskSearch, search_of


def test_empty_parameters_ask_for_nothing() -> None:
    """A form sends its empty fields too."""
    assert search_of({"queue": "", "state": "", "older": "", "unknown": "x"}) == TaskSearch()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("10", 10), ("10s", 10), ("1.5 h", 5400), ("5min", 300), ("5m", 300), ("2d", 172800)],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    """A duration is a number with a unit; without one it is seconds."""
    assert search_of({"slower": text}).slower == seconds


@pytest.mark.parametrize(
    "given",
    [
        {"state": "done"},
        {"older": "soon"},
        {"older": "-5"},
        {"older": "1e5"},
        {"older": "\uff19s"},
        {"older": "99999999999d"},
        {"newer": "1h", "older": "2h"},
        {"slower": "2s", "faster": "1s"},
        {"text": "x" * 1001},
    ],
)
def test_what_means_nothing_is_a_sentence(given: dict[str, str]) -> None:
    """A parameter that can't be understood, or that no task can match, is an error that names it."""
    with pytest.raises(OperationError) as caught:
        search_of(given)

    assert caught.value.code == "bad-request"
    assert any(name in caught.value.message for name in given)
