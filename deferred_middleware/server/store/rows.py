"""How tasks and their attempts are written as rows of the store's tables (``schema.sql``)."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from deferred_middleware.server.store.records import (
    AttemptRecord,
    ClaimedTask,
    Completion,
    Headers,
    NewTask,
    RetryPolicy,
    TaskSummary,
)

TASK_COLUMNS = (
    "id, queue, name, state, eta_usec, created_usec, first_attempt_usec, finished_usec, method, url, target, retry,"
    " dispatch_deadline_usec, retry_count, execution_count, previous_response, retry_reason, tag"
)
CLAIMED_COLUMNS = (
    f"{TASK_COLUMNS}, (SELECT headers FROM payloads WHERE task_id = tasks.id),"
    " (SELECT body FROM payloads WHERE task_id = tasks.id)"
)
SELECT_TASK = f"SELECT {TASK_COLUMNS}, headers, body FROM tasks JOIN payloads ON task_id = id"

_INSERT_TASK = """
    INSERT INTO tasks (queue, name, user_named, state, hold, eta_usec, created_usec, method, url, target, retry,
        dispatch_deadline_usec, tag)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_COMPLETE = """
    UPDATE tasks SET state = ?, eta_usec = ?, first_attempt_usec = ?, finished_usec = ?, retry_count = ?,
        execution_count = ?, previous_response = ?, retry_reason = ?, claim_token = NULL
    WHERE id = ? AND state = 'running' AND claim_token = ?
    RETURNING queue, name, user_named, attempts_before"""
_SUMMARY_FIELDS = [field.name for field in dataclasses.fields(TaskSummary)]
_CLAIMED_FIELDS = [*_SUMMARY_FIELDS, "headers", "body"]
_decode_json = json.JSONDecoder().raw_decode
_INSERT_ATTEMPT = "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class CompletedRow(NamedTuple):
    """Whose result was written."""

    queue: str
    name: str
    user_named: int
    attempts_before: int


def insert(
    connection: sqlite3.Connection,
    task: NewTask,
    name: str,
    now_usec: int,
    *,
    user_named: bool,
    hold: str | None = None,
) -> int:
    """Write a new task called ``name``, held by the transaction ``hold`` if that is given; return its id."""
    cursor = connection.execute(
        _INSERT_TASK,
        (
            task.queue,
            name,
            user_named,
            "ready" if hold is None else "held",
            hold,
            task.eta_usec,
            now_usec,
            task.method,
            task.url,
            task.target,
            None if task.retry is None else json.dumps(dataclasses.asdict(task.retry)),
            task.dispatch_deadline_usec,
            task.tag,
        ),
    )
    task_id = cursor.lastrowid
    assert task_id is not None
    connection.execute("INSERT INTO payloads VALUES (?, ?, ?)", (task_id, json.dumps(task.headers), task.body))
    return task_id


def complete(connection: sqlite3.Connection, completion: Completion) -> CompletedRow | None:
    """Write the result of an attempt; return whose it was, or None when the claim that it shows no longer stood."""
    found = connection.execute(
        _COMPLETE,
        (
            completion.state,
            completion.eta_usec,
            completion.first_attempt_usec,
            completion.finished_usec,
            completion.retry_count,
            completion.execution_count,
            completion.previous_response,
            completion.retry_reason,
            completion.task_id,
            completion.claim_token,
        ),
    ).fetchall()
    return CompletedRow(*found[0]) if found else None


def insert_attempts(connection: sqlite3.Connection, attempts: Iterable[tuple[int, int, AttemptRecord]]) -> None:
    """Write attempts, each with its task's id and the number that it is to have, whatever number it says itself."""
    connection.executemany(
        _INSERT_ATTEMPT,
        [
            (
                task_id,
                number,
                attempt.started_usec,
                attempt.duration_usec,
                attempt.status,
                attempt.reason,
                attempt.service,
                attempt.excerpt,
            )
            for task_id, number, attempt in attempts
        ],
    )


def summary(row: Sequence[Any]) -> TaskSummary:
    """Return a task from a row of :data:`TASK_COLUMNS`."""
    return TaskSummary(**_summary_fields(row))


def task_fields(row: Sequence[Any]) -> dict[str, Any]:
    """Return the fields of a :class:`StoredTask` from a row of :data:`SELECT_TASK`."""
    *columns, headers, body = row
    return {**_summary_fields(columns), "headers": _decode_headers(headers), "body": body}


def claimed_task(row: Sequence[Any], token: int) -> ClaimedTask:
    """Return a task that was claimed with ``token`` from a row of :data:`CLAIMED_COLUMNS`."""
    fields = dict(zip(_CLAIMED_FIELDS, row, strict=True))
    if fields["retry"] is not None:
        fields["retry"] = RetryPolicy(**json.loads(fields["retry"]))
    fields["headers"] = _decode_headers(fields["headers"])
    fields["claim_token"] = token
    task = ClaimedTask.__new__(ClaimedTask)
    # Its __init__ would set each field by a call, which took longer than all else that is done for a claim here.
    task.__dict__.update(fields)
    return task


def _summary_fields(row: Sequence[Any]) -> dict[str, Any]:
    fields = dict(zip(_SUMMARY_FIELDS, row, strict=True))
    if fields["retry"] is not None:
        fields["retry"] = RetryPolicy(**json.loads(fields["retry"]))
    return fields


def _decode_headers(text: str) -> Headers:
    headers: list[tuple[str, str]] = _decode_json(text)[0]
    return tuple(map(tuple, headers))  # type: ignore[arg-type] # of two strings each
