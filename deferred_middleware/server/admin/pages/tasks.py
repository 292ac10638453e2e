"""The list of tasks, with its filters in the URL, and what can be done to several tasks."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.operations import ACTIONS, Action
from deferred_middleware.server.admin.reading.search import DUE, PARAMETERS, STATES, WAITING, search_of
from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Redirected, Shown
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.words import plural

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
    return Shown(
        template="tasks.html",
        status=HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK,
        values={
            "given": given,
            "problem": problem,
            "tasks": tasks,
            "before": before,
            "next_before": next_before,
            "queues": tools.operations.queue_names(),
            "services": [service.id for service in tools.operations.services()],
            "states": (*STATES, DUE, *WAITING),
            "total": tools.operations.number_of_tasks(),
            "filters": [(name, value) for name, value in given.items() if value],
            "command": _command(given),
        },
    )


def ask_selected(tools: PageTools, request: PageRequest) -> Answer:
    """Ask whether to change the selected tasks."""
    action, ids = _action(request.field("action")), _ids(request)
    if not ids:
        return Redirected(to=request.back("/tasks"), notice="No task is selected.")
    return _question(request, action, number=len(ids), ids=ids)


def change_selected(tools: PageTools, request: PageRequest) -> Answer:
    """Change the selected tasks."""
    action = _action(request.field("action"))
    answer = tools.operations.change_tasks(request.actor, action, _ids(request))
    return Redirected(to=request.back("/tasks"), notice=_told(action, answer))


def ask_matching(tools: PageTools, request: PageRequest) -> Answer:
    """Say how many tasks match the filters, and ask what to do with them."""
    given = {name: request.given(name) for name in PARAMETERS}
    newest_id = tools.operations.newest_id()
    number, is_more = tools.operations.count(search_of(given), newest_id)
    return _question(request, None, number=number, is_more=is_more, given=given, newest_id=newest_id)


def change_matching(tools: PageTools, request: PageRequest) -> Answer:
    """Change all tasks that match the filters."""
    action = _action(request.field("action"))
    newest_id = request.field("newest_id")
    if not (newest_id.isascii() and newest_id.isdecimal() and len(newest_id) < 19):
        raise bad("The form has no newest task.")
    given = {name: request.field(name) for name in PARAMETERS}
    answer = tools.operations.change_matching(request.actor, action, search_of(given), newest_id=int(newest_id))
    return Redirected(to=request.back("/tasks"), notice=_told(action, answer))


def _question(
    request: PageRequest,
    action: Action | None,
    *,
    number: int,
    is_more: bool = False,
    ids: Sequence[int] = (),
    given: Mapping[str, str] | None = None,
    newest_id: int = 0,
) -> Answer:
    filters = [(name, value) for name, value in (given or {}).items() if value]
    back = request.back("/tasks") if request.method == "POST" else f"/tasks{request.url_with() if filters else ''}"
    return Shown(
        template="confirm.html",
        values={
            "action": action,
            "actions": ACTIONS if action is None else (action,),
            "number": number,
            "is_more": is_more,
            "ids": ids,
            "filters": filters,
            "newest_id": newest_id,
            "back": back,
        },
    )


def _action(text: str) -> Action:
    for action in get_args(Action):
        if text == action:
            found: Action = action
            return found
    raise bad(f"The actions are {', '.join(ACTIONS)}.")


def _ids(request: PageRequest) -> list[int]:
    given = request.form.get("id", [])
    ids = [int(text) for text in given if text.isascii() and text.isdecimal() and len(text) < 19]
    if len(ids) != len(given):
        raise bad("One of the selected tasks has no ID.")
    return ids


def _told(action: Action, answer: Mapping[str, Any]) -> str:
    done = {"run": "made to run now", "retry": "tried again", "delete": "deleted"}[action]
    skipped = answer["skipped"]
    more = f" {plural(skipped, 'other task')} left alone: the state didn't allow it any more." if skipped else ""
    return f"{plural(answer['done'], 'task')} {done}.{more}"


def _command(given: Mapping[str, str]) -> str:
    """Return the command that lists the same tasks."""
    asked = [word for name, value in given.items() if value for word in (f"--{name}", value)]
    return shlex.join(["deferred-middleware", "tasks", *asked])


ROUTES = (
    Route("GET", "/tasks", show_tasks),
    Route("GET", "/tasks/all", ask_matching),
    Route("POST", "/tasks/all", change_matching),
    Route("POST", "/tasks/selected", ask_selected),
    Route("POST", "/tasks/change", change_selected),
)
