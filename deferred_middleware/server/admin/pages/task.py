"""One task: its call, why it waits, its attempts, and what can be done to it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from deferred_middleware.server.admin.operation_errors import bad
from deferred_middleware.server.admin.reading.search import moment_in
from deferred_middleware.server.admin.web.as_text import copyables
from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Redirected, Shown
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.traceback_view import editor_link, lines_of
from deferred_middleware.server.admin.web.words import plural

_MAX_DIFFERENCE_LINES = 400


def show_task(tools: PageTools, request: PageRequest, task_id: str) -> Answer:
    """Show a task."""
    return _shown(tools, request, tools.operations.show_task(task_id)["task"])


def show_named_task(tools: PageTools, request: PageRequest, queue: str, name: str) -> Answer:
    """Show the newest task of a name."""
    return _shown(tools, request, tools.operations.show_task(queue, name)["task"])


def run_task(tools: PageTools, request: PageRequest, task_id: str) -> Answer:
    """Run a waiting task now."""
    tools.operations.run(request.actor, tools.operations.task(task_id))
    return Redirected(to=request.back(f"/tasks/{task_id}"), notice=f"Task {task_id} runs as soon as its service can.")


def retry_task(tools: PageTools, request: PageRequest, task_id: str) -> Answer:
    """Run a dead letter again."""
    tools.operations.retry(request.actor, tools.operations.task(task_id))
    return Redirected(to=request.back(f"/tasks/{task_id}"), notice=f"Task {task_id} is tried again.")


def delete_task(tools: PageTools, request: PageRequest, task_id: str) -> Answer:
    """Delete a task."""
    tools.operations.delete(request.actor, tools.operations.task(task_id))
    return Redirected(to="/tasks", notice=f"Task {task_id} is deleted.")


def change_eta(tools: PageTools, request: PageRequest, task_id: str) -> Answer:
    """Change when a waiting task is due: in a time, or at a time of the server's clock."""
    task = tools.operations.task(task_id)
    tools.operations.set_eta(request.actor, task, moment_in(request.field("eta")))
    return Redirected(to=f"/tasks/{task_id}", notice=f"The ETA of task {task_id} is changed.")


def move_task(tools: PageTools, request: PageRequest, task_id: str) -> Answer:
    """Move a waiting task to another queue."""
    queue = request.field("queue")
    tools.operations.move(request.actor, tools.operations.task(task_id), queue)
    return Redirected(to=f"/tasks/{task_id}", notice=f"Task {task_id} is in queue {queue}.")


def _shown(tools: PageTools, request: PageRequest, task: dict[str, Any]) -> Answer:
    attempts = [
        {
            **attempt,
            "lines": lines_of(attempt["excerpt"]),
            "succeeded": attempt["status"] is not None and 200 <= attempt["status"] < 300,
        }
        for attempt in task["attempts"]
    ]
    if task["state"] == "failed" and attempts:
        # A permanent failure is answered with a status of success.
        attempts[-1]["succeeded"] = False
    return Shown(
        template="task.html",
        values={
            "task": task,
            "attempts": attempts[::-1],
            "copyables": copyables(task, tools.operations.about),
            "difference": _difference(request, attempts),
            "editor_link": lambda frame: editor_link(tools.editor, frame.file, frame.line),
            "push_queues": tools.operations.push_queues() if task["state"] == "ready" else [],
            "tries": plural(task["retry_count"], "attempt"),
        },
    )


def _difference(request: PageRequest, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the difference between the two attempts that the URL names."""
    first, second = request.given("a"), request.given("b")
    if not first or not second:
        return None
    by_number = {str(attempt["number"]): attempt for attempt in attempts}
    for number in (first, second):
        if number not in by_number:
            known = ", ".join(by_number) or "none"
            raise bad(f"There is no attempt {number[:20]!r} that is kept; the attempts are: {known}.")
    before, after = by_number[first], by_number[second]
    lines = list(difflib.ndiff(_told(before), _told(after)))
    return {
        "first": before,
        "second": after,
        "lines": [(line[:1], line[2:]) for line in lines if not line.startswith("?")][:_MAX_DIFFERENCE_LINES],
        "same": all(line.startswith("  ") for line in lines),
    }


def _told(attempt: Mapping[str, Any]) -> list[str]:
    status = "no response" if attempt["status"] is None else f"status {attempt['status']}"
    lines = [f"{status} from service {attempt['service']}"]
    if attempt["reason"] and attempt["reason"] != status:
        lines.append(attempt["reason"])
    return [*lines, *attempt["excerpt"].splitlines()]


ROUTES = (
    Route("GET", "/tasks/{task_id}", show_task),
    Route("GET", "/tasks/{queue}/{name}", show_named_task),
    Route("POST", "/tasks/{task_id}/run", run_task),
    Route("POST", "/tasks/{task_id}/retry", retry_task),
    Route("POST", "/tasks/{task_id}/delete", delete_task),
    Route("POST", "/tasks/{task_id}/eta", change_eta),
    Route("POST", "/tasks/{task_id}/queue", move_task),
)
