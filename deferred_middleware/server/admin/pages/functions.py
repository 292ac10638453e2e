"""Functions and time: what ran in the last hour, day or week, and how long it took."""

from __future__ import annotations

from typing import Any

from deferred_middleware.server.admin.operation_errors import bad
from deferred_middleware.server.admin.web.charts import charts_of
from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Shown
from deferred_middleware.server.admin.web.routes import MenuEntry, Route
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.store.statistics.spans import PERIOD_SECONDS

_ORDERS = {"attempts": "executed", "failures": "failed", "p95": "took_p95"}


def show_functions(tools: PageTools, request: PageRequest) -> Answer:
    """Show the charts of all queues or of one, and the functions; or one function with its slowest attempts."""
    figures = tools.reports.figures
    period = request.given("period") or "hour"
    queue = request.given("queue")
    function = request.given("function")
    series = figures.series(period, queue=queue, function=function)
    values: dict[str, Any] = {
        "periods": list(PERIOD_SECONDS),
        "period": period,
        "charts": charts_of(series["spans"]),
        "spans": [span for span in reversed(series["spans"]) if span["executed"] or span["enqueued"]],
        "first_usec": series["spans"][0]["start_usec"],
        "queue": queue,
        "function": function,
    }
    if function:
        return Shown(template="function.html", values={**values, **_rename(figures.function(function, period))})
    order = request.given("order") or "attempts"
    if order not in _ORDERS:
        raise bad(f"order={order[:40]!r} is not an order; the orders are {', '.join(_ORDERS)}.")
    found = figures.functions(period)["functions"]
    found.sort(key=lambda one: -(one[_ORDERS[order]] or 0))
    queues = tools.operations.queue_names()
    return Shown(
        template="functions.html",
        values={**values, "functions": found, "order": order, "orders": list(_ORDERS), "queues": queues},
    )


def _rename(found: dict[str, Any]) -> dict[str, Any]:
    return {"figures": found["function"], "slowest": found["slowest"]}


MENU = MenuEntry(label="Functions", path="/functions")
ROUTES = (Route("GET", "/functions", show_functions),)
