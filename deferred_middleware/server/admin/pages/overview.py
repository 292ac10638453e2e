"""The first page: how the server, its services and its queues stand."""

from __future__ import annotations

import time
from collections.abc import Sequence

from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Shown
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools

_WIDTH, _HEIGHT = 120, 28


def show_overview(tools: PageTools, _request: PageRequest) -> Answer:
    """Show the services, the queues, and the health of the server."""
    values = tools.operations.overview()
    for queue in values["queues"]:
        queue["sparkline"] = sparkline(queue["figures"].executed_per_minute)
        queue["waits"] = queue["oldest_eta_usec"] is not None and queue["oldest_eta_usec"] <= time.time() * 1e6
    return Shown(template="overview.html", values=values)


def sparkline(numbers: Sequence[int]) -> str:
    """Return the points of a line for an SVG of 120 by 28, as its attribute ``points`` has them."""
    top = max(1, *numbers)
    step = _WIDTH / max(1, len(numbers) - 1)
    return " ".join(
        f"{index * step:.1f},{_HEIGHT - 1 - (_HEIGHT - 3) * number / top:.1f}" for index, number in enumerate(numbers)
    )


ROUTES = (Route("GET", "/", show_overview),)
