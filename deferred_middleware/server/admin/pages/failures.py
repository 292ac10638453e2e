"""Failures: what fails, how often, since when, and whether a change has helped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Redirected, Shown
from deferred_middleware.server.admin.web.routes import MenuEntry, Route
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.traceback_view import editor_link, lines_of
from deferred_middleware.server.admin.web.words import plural
from deferred_middleware.server.store.records import AttemptRecord, StoredTask

_SHOWN_TASKS = 20


def list_failures(tools: PageTools, request: PageRequest) -> Answer:
    """Show the groups of failures."""
    solved = request.given("solved") == "1"
    found = tools.reports.failures.groups(before=request.given("before"), solved=solved)
    values = {**found, "solved": solved, "editor_link": _editor_link(tools)}
    return Shown(template="failures.html", values=values)


def show_failure(tools: PageTools, request: PageRequest, failure: str) -> Answer:
    """Show one group: its tasks, and the last two attempts of one of them."""
    before = request.given("before")
    found = tools.reports.failures.show(
        failure,
        before=int(before) if before.isascii() and before.isdecimal() and len(before) < 19 else None,
        limit=_SHOWN_TASKS,
    )
    task = _example(tools, request, found["tasks"])
    attempts = [] if task is None else tools.operations.store.queries.attempts(task.id)
    return Shown(
        template="failure.html",
        values={
            **found,
            "example": task,
            "attempts": [_attempt(one) for one in attempts[-2:]],
            "earlier": len(attempts) - 2,
            "editor_link": _editor_link(tools),
        },
    )


def retry_failure(tools: PageTools, request: PageRequest, failure: str) -> Answer:
    """Retry all tasks of a group."""
    answer = tools.reports.failures.retry(request.actor, failure)
    parts = [
        f"{plural(answer['retried'], 'dead letter')} will be tried again" if answer["retried"] else "",
        f"the back-off of {plural(answer['made_due'], 'task')} is ended" if answer["made_due"] else "",
    ]
    text = ", and ".join(part for part in parts if part) or "no task was waiting to be retried"
    return Redirected(to=request.back(f"/failures/{failure}"), notice=f"{text[0].upper()}{text[1:]}.")


def retry_example(tools: PageTools, request: PageRequest, failure: str, task: str) -> Answer:
    """Run one task of a group now, and show its new attempt beside the old one."""
    operations = tools.operations
    found = operations.task(task)
    if found.state == "failed":
        operations.retry(request.actor, found)
    else:
        operations.run(request.actor, found)
    notice = f"Task {found.id} runs again; its new attempt appears below."
    return Redirected(to=f"/failures/{failure}?task={found.id}", notice=notice)


def _example(tools: PageTools, request: PageRequest, tasks: list[dict[str, Any]]) -> StoredTask | None:
    """Return the task whose attempts are shown: the chosen one, or the newest of the group."""
    wanted = request.given("task") or (str(tasks[0]["id"]) if tasks else "")
    try:
        return tools.operations.task(wanted) if wanted else None
    except OperationError:
        return None  # it was deleted meanwhile


def _attempt(attempt: AttemptRecord) -> dict[str, Any]:
    text = attempt.excerpt.decode("utf-8", "replace")
    return {"record": attempt, "lines": lines_of(text)}


def _editor_link(tools: PageTools) -> Callable[[Any], str]:
    """Return a function that returns the link of a place in the code."""
    return lambda place: editor_link(
        tools.editor,
        place["file"] if isinstance(place, dict) else place.file,
        place["line"] if isinstance(place, dict) else place.line,
    )


MENU = MenuEntry(label="Failures", path="/failures")
ROUTES = (
    Route("GET", "/failures", list_failures),
    Route("GET", "/failures/{failure}", show_failure),
    Route("POST", "/failures/{failure}/retry", retry_failure),
    Route("POST", "/failures/{failure}/tasks/{task}/retry", retry_example),
)
