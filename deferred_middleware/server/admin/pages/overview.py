"""The first page: how the server, its services and its queues stand."""

from __future__ import annotations

from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Redirected, Shown
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools


def show_overview(tools: PageTools, _request: PageRequest) -> Answer:
    """Show all queues."""
    return Shown(template="overview.html", values=tools.operations.list_queues())


def pause_queue(tools: PageTools, request: PageRequest, queue: str) -> Answer:
    """Pause a queue."""
    answer = tools.operations.pause(request.actor, queue)
    notice = f"Queue {queue} is paused." if answer["changed"] else f"Queue {queue} was paused already."
    return Redirected(to=request.back("/"), notice=notice)


def resume_queue(tools: PageTools, request: PageRequest, queue: str) -> Answer:
    """Resume a queue."""
    answer = tools.operations.resume(request.actor, queue)
    notice = f"Queue {queue} runs again." if answer["changed"] else f"Queue {queue} was not paused."
    return Redirected(to=request.back("/"), notice=notice)


ROUTES = (
    Route("GET", "/", show_overview),
    Route("POST", "/queues/{queue}/pause", pause_queue),
    Route("POST", "/queues/{queue}/resume", resume_queue),
)
