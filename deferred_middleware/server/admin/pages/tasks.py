"""The list of tasks, with its filters in the URL, and what can be done to several tasks."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.reading.search import DUE, PARAMETERS, STATES, WAITING, search_of
from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Shown
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools

TASKS_ON_A_PAGE = 50


def show_tasks(tools: PageTools, request: PageRequest) -> Answer:
    """Show a page of tasks, the newest first."""
    given = {name: request.given(name) for name in PARAMETERS}
    problem = ""
    tasks: list[dict[str, Any]] = []
    before = request.given("before")
    next_before = None
    try:
        if before and not (before.isascii() and before.isdecimal() and len(before) < 19):
            raise bad(f"before={before[:40]!r} is not the ID of a task.")
        search = search_of(given)
        found = tools.operations.find_tasks(
            search, before=int(before) if before else None, limit=TASKS_ON_A_PAGE, calls=True
        )
        tasks, next_before = found["tasks"], found["next_before"]
    except OperationError as error:
        problem = error.message
    queues = tools.operations.list_queues()["queues"]
    return Shown(
        template="tasks.html",
        status=HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK,
        values={
            "given": given,
            "problem": problem,
            "tasks": tasks,
            "before": before,
            "next_before": next_before,
            "queues": [queue["name"] for queue in queues],
            "services": [service.id for service in tools.operations.services()],
            "states": (*STATES, DUE, *WAITING),
            "total": sum(queue[state] for queue in queues for state in STATES),
            "filters": [(name, value) for name, value in given.items() if value],
            "command": _command(given),
        },
    )


def _command(given: Mapping[str, str]) -> str:
    """Return the command that lists the same tasks."""
    asked = [word for name, value in given.items() if value for word in (f"--{name}", value)]
    return shlex.join(["deferred-middleware", "tasks", *asked])


ROUTES = (Route("GET", "/tasks", show_tasks),)
