"""Failures: dead letters and failing tasks, grouped by exception and place."""

from __future__ import annotations

import dataclasses
import re
from http import HTTPStatus
from typing import Any

from deferred_middleware.server.admin.change_log import Actor
from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.views import task_summary
from deferred_middleware.server.store.statistics.failures import FailureGroup

_BEFORE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_ID = re.compile(r"[0-9]{1,18}")


class FailureReports:
    """What is known of failures, and the retry of all tasks that failed in one way."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._failures = operations.store.failures

    def groups(self, *, before: str = "", solved: bool = False, limit: int = 50) -> dict[str, Any]:
        """Return a page of groups, the one that failed last first. ``solved`` groups have no tasks any more."""
        found = _BEFORE.fullmatch(before)
        if before and found is None:
            raise bad(f"before={before[:40]!r} is not the next_before of another page.")
        since = None if found is None else (int(found[1]), int(found[2]))
        page = self._failures.groups(solved=solved, before=since, limit=limit)
        next_before = None if page.next_before is None else f"{page.next_before[0]}-{page.next_before[1]}"
        return {"failures": [dataclasses.asdict(group) for group in page.groups], "next_before": next_before}

    def group(self, group_id: str) -> FailureGroup:
        """Return a group."""
        found = self._failures.group(int(group_id)) if _ID.fullmatch(group_id) else None
        if found is None:
            raise OperationError(
                HTTPStatus.NOT_FOUND,
                "no-such-failure",
                f"There is no failure {group_id[:40]!r}; it may be forgotten, because none of its tasks is left.",
            )
        return found

    def show(self, group_id: str, *, before: int | None = None, limit: int = 50) -> dict[str, Any]:
        """Return a group with a page of its tasks, the newest first."""
        group = self.group(group_id)
        page = self._failures.tasks(group.id, before_id=before, limit=limit)
        return {
            "failure": dataclasses.asdict(group),
            "tasks": [task_summary(task) for task in page.tasks],
            "next_before": page.next_before_id,
        }

    def retry(self, actor: Actor, group_id: str) -> dict[str, Any]:
        """Run all dead letters of a group again, and end the back-off of its other tasks."""
        group = self.group(group_id)

        def change() -> dict[str, Any]:
            return {"failure": group.id, **dataclasses.asdict(self._failures.retry(group.id))}

        return self._operations.change(actor, "retry", f"failure {group.id}", change)
