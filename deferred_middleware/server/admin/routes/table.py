"""The table of the JSON API's routes.

A request for a path or a method that is not in the table is refused, so the table is complete. The OpenAPI description
(:mod:`~deferred_middleware.server.admin.routes.openapi`) and the manual's page are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, kw_only=True)
class ApiRoute:
    """One operation: a method and a path below the API's prefix.

    A part of the path in braces stands for any text. The fields of ``query``, ``body`` and ``answer`` map names to
    types of JSON, with a question mark if null is possible. An answer may have further fields.
    """

    method: str
    path: str
    operation: str
    summary: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[str] = ()
    """The fields that a body must have."""
    answer: Mapping[str, str] = field(default_factory=dict)


def _get(path: str, operation: str, summary: str, answer: Mapping[str, str], **query: str) -> ApiRoute:
    return ApiRoute(method="GET", path=path, operation=operation, summary=summary, answer=answer, query=query)


def _post(
    path: str, operation: str, summary: str, answer: Mapping[str, str], *, needs: Sequence[str] = (), **body: str
) -> ApiRoute:
    return ApiRoute(
        method="POST", path=path, operation=operation, summary=summary, answer=answer, needs=needs, body=body
    )


_CLOCK: Final = {"now": "string", "now_seconds": "number", "ahead_seconds": "number", "frozen": "boolean"}
_DONE: Final = {"task": "integer", "done": "string"}
_PAGE: Final = {"next_before": "integer?"}


def _task_actions(path: str, operation: str) -> tuple[ApiRoute, ...]:
    return (
        _post(f"{path}/run", f"run{operation}", "Run a waiting task now.", _DONE),
        _post(f"{path}/retry", f"retry{operation}", "Try a permanently failed task again.", _DONE),
        _post(f"{path}/delete", f"delete{operation}", "Delete a task.", _DONE),
        _post(
            f"{path}/eta",
            f"setEtaOf{operation}",
            "Set the time before which a task does not run.",
            {"task": "integer", "eta_usec": "integer"},
            needs=("eta",),
            eta="string",
        ),
        _post(
            f"{path}/queue",
            f"move{operation}",
            "Move a task to another queue.",
            {"task": "integer", "queue": "string"},
            needs=("queue",),
            queue="string",
        ),
    )


ROUTES: Final[tuple[ApiRoute, ...]] = (
    _get("/", "about", "Show the server: its version, process, services and data directory.", {"server": "object"}),
    _get(
        "/openapi.json",
        "describe",
        "Show this description of the API.",
        {"openapi": "string", "info": "object", "paths": "object"},
    ),
    _post(
        "/wait",
        "waitUntilEmpty",
        "For tests: wait until one queue, or every queue, has no unfinished task.",
        {"empty": "boolean", "tasks": "integer"},
        queue="string",
        timeout_seconds="number",
        due_only="boolean",
    ),
    _post("/reset", "reset", "For tests: delete all tasks and forget all names.", {"deleted": "integer"}),
    _get("/clock", "showClock", "For tests: show the server's clock.", _CLOCK),
    _post(
        "/clock",
        "moveClock",
        "For tests: advance, stop or start the server's clock.",
        _CLOCK,
        advance_seconds="number",
        frozen="boolean",
    ),
    _get("/queues", "listQueues", "List the queues, with their numbers of tasks.", {"queues": "array"}),
    _post("/queues/{queue}/pause", "pauseQueue", "Pause a queue.", {"queue": "string", "changed": "boolean"}),
    _post(
        "/queues/{queue}/resume",
        "resumeQueue",
        "Resume a paused queue.",
        {"queue": "string", "changed": "boolean"},
    ),
    _post(
        "/queues/{queue}/purge",
        "purgeQueue",
        "Delete all unfinished tasks of a queue. You can undo it for ten minutes.",
        {"queue": "string", "deleted": "integer", "undo_until_usec": "integer?"},
    ),
    _post(
        "/queues/{queue}/undo-purge",
        "undoPurge",
        "Restore the tasks that the last purge of a queue deleted.",
        {"queue": "string", "restored": "integer", "refused": "integer"},
    ),
    _post(
        "/queues/{queue}/retry",
        "retryQueue",
        "Try the permanently failed tasks of a queue again.",
        {"retried": "integer"},
    ),
    _post(
        "/queues/{queue}/delete-failed",
        "deleteFailed",
        "Delete the permanently failed tasks of a queue.",
        {"queue": "string", "deleted": "integer"},
    ),
    _post(
        "/queues/{queue}/run-scheduled",
        "runScheduled",
        "Make the tasks of a queue due that have a later ETA.",
        {"queue": "string", "made_due": "integer"},
    ),
    _post(
        "/queues/{queue}/forget",
        "forgetNames",
        "Release one used name of a queue, or all of them.",
        {"queue": "string", "forgotten": "integer"},
        name="string",
    ),
    _post("/retry", "retryAll", "Try all permanently failed tasks again.", {"retried": "integer"}),
    _get(
        "/tasks",
        "findTasks",
        "Find tasks, the newest first.",
        {"tasks": "array", **_PAGE},
        queue="string",
        state="string",
        function="string",
        service="string",
        name="string",
        text="string",
        older="string",
        newer="string",
        slower="string",
        faster="string",
        before="integer",
        limit="integer",
        calls="string",
    ),
    _get("/tasks/{id}", "showTask", "Show a task, with its payload and attempts.", {"task": "object"}),
    *_task_actions("/tasks/{id}", "Task"),
    _get(
        "/tasks/{queue}/{name}",
        "showNamedTask",
        "Show the task with this name, with its payload and attempts.",
        {"task": "object"},
    ),
    *_task_actions("/tasks/{queue}/{name}", "NamedTask"),
    _get(
        "/failures",
        "listFailures",
        "List the failures of tasks, grouped by exception and place in the code.",
        {"failures": "array", "next_before": "string?"},
        before="string",
        solved="string",
    ),
    _get(
        "/failures/{failure}",
        "showFailure",
        "Show a group of failures and its tasks.",
        {"failure": "object"},
        before="integer",
    ),
    _post(
        "/failures/{failure}/retry",
        "retryFailure",
        "Try the tasks of a group of failures again.",
        {"failure": "integer", "retried": "integer", "made_due": "integer"},
    ),
    _get(
        "/functions",
        "showFunctions",
        "Show the figures of all functions, or of one with its slowest attempts.",
        {"period": "string"},
        period="string",
        function="string",
    ),
    _get(
        "/series",
        "showSeries",
        "Show figures over time, of the server, a queue or a function.",
        {"period": "string", "spans": "array"},
        period="string",
        queue="string",
        function="string",
    ),
    _get(
        "/queue-yaml",
        "showQueueYaml",
        "Show queue.yaml, its errors, and what each queue takes from it.",
        {"path": "string?", "text": "string?", "error": "object?", "warnings": "array", "queues": "array"},
    ),
    _post(
        "/queue-yaml/preview",
        "previewQueueYaml",
        "Say what another text of queue.yaml would change. Nothing is changed.",
        {"error": "object?", "warnings": "array", "changes": "array", "backlogs": "array"},
        needs=("text",),
        text="string",
    ),
    _get(
        "/cron",
        "showCron",
        "List the entries of cron.yaml.",
        {"path": "string?", "error": "object?", "entries": "array"},
    ),
    _post(
        "/cron/{entry}/run",
        "runCron",
        "Run an entry of cron.yaml now. With a URL, only if the entry still has it.",
        {"entry": "integer", "url": "string", "status": "integer?", "running": "boolean", "text": "string"},
        url="string",
    ),
    _get(
        "/datastore",
        "showDatastore",
        "List namespaces and kinds, the entities of a kind, or show the entity with a key.",
        {},
        namespace="string",
        kind="string",
        offset="integer",
        key="string",
    ),
    _get("/memcache", "showMemcache", "Show memcache's statistics and keys.", {"keys": "array"}, prefix="string"),
    _get("/changes", "listChanges", "List the last changes that people made, the newest first.", {"changes": "array"}),
)
"""Every route. If several paths match a request, the first one answers it."""

_TEMPLATES: Final = {
    path: (path[1:].split("/"), tuple(route.method for route in ROUTES if route.path == path))
    for path in dict.fromkeys(route.path for route in ROUTES)
}


def methods_of(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the methods of the route that a path has; none if there is no such route.

    ``parts`` are the parts of the path below the API's prefix.
    """
    return next((methods for template, methods in _TEMPLATES.values() if _matches(template, parts)), ())


def _matches(template: Sequence[str], parts: Sequence[str]) -> bool:
    # The text before another part is a task's ID only if it is a number; otherwise it is a queue's name.
    return len(template) == len(parts) and all(
        part == known or (known.startswith("{") and (known != "{id}" or part.isdecimal() or len(parts) == place))
        for place, (known, part) in enumerate(zip(template, parts, strict=True), 1)
    )
