"""Figures of what happened in the last hour, day or week."""

from __future__ import annotations

import dataclasses
from http import HTTPStatus
from typing import Any

from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.store.statistics.spans import PERIOD_SECONDS, Period


class FigureReports:
    """Series for charts, functions and their slowest attempts."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._statistics = operations.store.statistics

    def series(self, period: str, *, queue: str = "", function: str = "") -> dict[str, Any]:
        """Return the spans of a period: of all queues, of one, or of a function."""
        if queue and function:
            raise bad("Ask for a queue or for a function, not for both.")
        if queue:
            self._operations.known_queue(queue)
        points = self._statistics.series(period_of(period), queue=queue, function=function or None)
        return {"period": period, "spans": [dataclasses.asdict(point) for point in points]}

    def functions(self, period: str) -> dict[str, Any]:
        """Return the functions that had tasks in a period, those with the most attempts first."""
        found = self._statistics.functions(period_of(period))
        return {"period": period, "functions": [dataclasses.asdict(one) for one in found]}

    def function(self, name: str, period: str) -> dict[str, Any]:
        """Return the figures of a function, with its slowest attempts."""
        found = self._statistics.functions(period_of(period))
        figures = next((one for one in found if one.name == name), None)
        slowest = self._statistics.slowest(name, period_of(period))
        if figures is None and not slowest:
            raise OperationError(
                HTTPStatus.NOT_FOUND, "no-such-function", f"No task has called {name[:200]!r} in the last {period}."
            )
        return {
            "period": period,
            "function": None if figures is None else dataclasses.asdict(figures),
            "slowest": [dataclasses.asdict(one) for one in slowest],
        }


def period_of(text: str) -> Period:
    """Return the period of this name."""
    if text not in PERIOD_SECONDS:
        raise bad(f"period={text[:40]!r} is not a period; the periods are {', '.join(PERIOD_SECONDS)}.")
    return text
