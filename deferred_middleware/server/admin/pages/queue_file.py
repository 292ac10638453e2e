"""queue.yaml: the file, the values in force, and a preview of an edited text. The file is never written."""

from __future__ import annotations

from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Shown
from deferred_middleware.server.admin.web.routes import MenuEntry, Route
from deferred_middleware.server.admin.web.tools import PageTools


def show_file(tools: PageTools, _request: PageRequest) -> Answer:
    """Show the file and the queues."""
    found = tools.reports.queue_file.show()
    return Shown(template="queue_file.html", values={**found, "edited": found["text"] or "", "preview": None})


def preview_file(tools: PageTools, request: PageRequest) -> Answer:
    """Show what an edited text would change."""
    text = request.field("text").replace("\r\n", "\n")
    values = {"edited": text, "preview": tools.reports.queue_file.preview(text)}
    return Shown(template="queue_file.html", values={**tools.reports.queue_file.show(), **values})


MENU = MenuEntry(label="queue.yaml", path="/queue-yaml")
ROUTES = (Route("GET", "/queue-yaml", show_file), Route("POST", "/queue-yaml", preview_file))
