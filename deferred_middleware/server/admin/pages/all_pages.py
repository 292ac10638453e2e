"""All pages, and the menu that leads to them.

To add a page, write a module with its functions and a tuple ``ROUTES``, and a template that extends ``layout.html``,
and add both here: the routes, and an entry of the menu.
"""

from __future__ import annotations

from deferred_middleware.server.admin.pages import (
    changes,
    cron,
    everywhere,
    failures,
    functions,
    overview,
    queue,
    queue_file,
    sdk_data,
    task,
    tasks,
)
from deferred_middleware.server.admin.web.routes import MenuEntry, Route
from deferred_middleware.server.admin.web.site import Site
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.visitors import Visitors

MENU = (
    MenuEntry(label="Overview", path="/"),
    MenuEntry(label="Tasks", path="/tasks"),
    failures.MENU,
    functions.MENU,
    queue_file.MENU,
    cron.MENU,
    *sdk_data.MENU,
    MenuEntry(label="Changes", path="/changes"),
)

ROUTES: tuple[Route, ...] = (
    *everywhere.ROUTES,
    *overview.ROUTES,
    *queue.ROUTES,
    # Before the page of one task, whose address has any ID.
    *tasks.ROUTES,
    *task.ROUTES,
    *failures.ROUTES,
    *functions.ROUTES,
    *queue_file.ROUTES,
    *cron.ROUTES,
    *sdk_data.ROUTES,
    *changes.ROUTES,
)


def make_site(tools: PageTools, visitors: Visitors, *, form_token: str) -> Site:
    """Return the WSGI app with all pages."""
    return Site(ROUTES, menu=MENU, tools=tools, visitors=visitors, form_token=form_token)
