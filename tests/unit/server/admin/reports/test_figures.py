"""Reports of figures."""

from __future__ import annotations

import pytest

from deferred_middleware.server.admin.operation_errors import OperationError
from tests.support.visiting import Visitor
from tests.unit.server.admin.failing import fail


@pytest.mark.parametrize("period", ["hour", "day", "week"])
def test_figures_of_a_period(visitor: Visitor, period: str) -> None:
    """Series and functions have what has happened in the period."""
    fail(visitor.store, "a")
    figures = visitor.reports.figures
    assert figures.series(period)["spans"][-1]["failed"] == 1
    assert figures.series(period, queue="default")["spans"][-1]["failed"] == 1
    assert figures.series(period, function="mail/send")["spans"][-1]["failed"] == 1
    (function,) = figures.functions(period)["functions"]
    assert (function["name"], function["executed"], function["dead"]) == ("mail/send", 1, 1)
    shown = figures.function("mail/send", period)
    assert shown["function"]["failed"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"period": "year"}, "is not a period"),
        ({"period": "hour", "queue": "nothing"}, "no queue"),
        ({"period": "hour", "queue": "a", "function": "b"}, "not for both"),
    ],
)
def test_wrong_questions_are_refused(visitor: Visitor, given: dict[str, str], message: str) -> None:
    """A wrong parameter gets a sentence."""
    with pytest.raises(OperationError, match=message):
        visitor.reports.figures.series(**given)


def test_an_unknown_function_is_refused(visitor: Visitor) -> None:
    """A function that has not run gets a sentence."""
    with pytest.raises(OperationError, match="No task has called"):
        visitor.reports.figures.function("nothing", "hour")
