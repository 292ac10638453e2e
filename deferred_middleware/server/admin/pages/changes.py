"""The log of changes: who did what."""

from __future__ import annotations

from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Shown
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools

CHANGES_ON_THE_PAGE = 200


def show_changes(tools: PageTools, _request: PageRequest) -> Answer:
    """Show the last changes that people made, the newest first."""
    changes = tools.operations.change_log.newest(CHANGES_ON_THE_PAGE)
    return Shown(template="changes.html", values={"changes": changes})


ROUTES = (Route("GET", "/changes", show_changes),)
