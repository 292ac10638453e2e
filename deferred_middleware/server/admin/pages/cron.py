"""cron.yaml: the entries with their next times, and a button that runs one."""

from __future__ import annotations

from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Redirected, Shown
from deferred_middleware.server.admin.web.routes import MenuEntry, Route
from deferred_middleware.server.admin.web.tools import PageTools


def show_cron(tools: PageTools, _request: PageRequest) -> Answer:
    """Show the entries."""
    return Shown(template="cron.html", values=tools.reports.cron.show())


def run_cron(tools: PageTools, request: PageRequest, number: str) -> Answer:
    """Run an entry now."""
    answer = tools.reports.cron.run(request.actor, number, url=request.field("url") or None)
    if answer["running"]:
        notice = f"{answer['url']} is running; its answer appears here."
    else:
        notice = f"{answer['url']} answered with status {answer['status']}."
    return Redirected(to=request.back("/cron"), notice=notice)


MENU = MenuEntry(label="Cron", path="/cron")
ROUTES = (Route("GET", "/cron", show_cron), Route("POST", "/cron/{number}/run", run_cron))
