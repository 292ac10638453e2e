"""Tasks, queues and attempts as JSON, for the API and whoever shows them to a person.

Names ending in ``_usec`` are microseconds, since the epoch or of a duration; bytes are shown as text.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import unquote

from deferred_middleware.server.admin.payloadview import view_of
from deferred_middleware.server.store.records import AttemptRecord, StoredTask, TaskSummary
from deferred_middleware.wire import protocol


def function_in(url: str) -> str | None:
    """Return the function that a task's URL names, as ``module/function``; None for an URL of the app's own."""
    path = url.partition("?")[0]
    if not path.startswith(protocol.URL_PREFIX + "/"):
        return None
    return unquote(path[len(protocol.URL_PREFIX) + 1 :])


def task_summary(task: TaskSummary) -> dict[str, Any]:
    """Return a task without its headers and its body."""
    names = [field.name for field in dataclasses.fields(TaskSummary)]
    content = {name: getattr(task, name) for name in names}
    content["retry"] = None if task.retry is None else dataclasses.asdict(task.retry)
    return {**content, "function": function_in(task.url)}


def task_whole(task: StoredTask, attempts: list[AttemptRecord]) -> dict[str, Any]:
    """Return a task with its headers, its call as far as it can be read, and its attempts."""
    return {
        **task_summary(task),
        "headers": [list(header) for header in task.headers],
        "body_bytes": len(task.body),
        "payload": dataclasses.asdict(view_of(task.body)),
        "attempts": [
            {**dataclasses.asdict(attempt), "excerpt": attempt.excerpt.decode("utf-8", "replace")}
            for attempt in attempts
        ],
    }
