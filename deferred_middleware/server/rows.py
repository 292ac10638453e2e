"""How tasks and their attempts are written as rows of the store's tables (``schema.sql``)."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any

from deferred_middleware.server.groupcommit import Tally
from deferred_middleware.server.records import Completion, Headers, NewTask, StoredTask
from deferred_middleware.server.retry import RetryPolicy

TASK_COLUMNS = (
    "id, queue, name, state, eta_usec, created_usec, first_attempt_usec, finished_usec, method, url, target, retry,"
    " dispatch_deadline_usec, retry_count, execution_count, previous_response, retry_reason"
)
SELECT_TASK = f"SELECT {TASK_COLUMNS}, headers, body FROM tasks JOIN payloads ON task_id = id"

_TASK_FIELDS = [field.name for field in dataclasses.fields(StoredTask)]

_INSERT_TASK = """
    INSERT INTO tasks (queue, name, user_named, state, eta_usec, created_usec, method, url, target, retry,
        dispatch_deadline_usec)
    VALUES (?, ?, ?, 'ready', ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (queue, name) DO NOTHING"""
_COMPLETE = """
    UPDATE tasks SET state = ?, eta_usec = ?, first_attempt_usec = ?, finished_usec = ?, retry_count = ?,
        execution_count = ?, previous_response = ?, retry_reason = ?, claim_token = NULL
    WHERE id = ? AND state = 'running' AND claim_token = ? RETURNING queue"""
_INSERT_ATTEMPT = "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


def insert(connection: sqlite3.Connection, task: NewTask, name: str, now_usec: int) -> bool:
    """Write a new task called ``name``; return False, having written nothing, when its queue has one of that name."""
    cursor = connection.execute(
        _INSERT_TASK,
        (
            task.queue,
            name,
            task.name is not None,
            task.eta_usec,
            now_usec,
            task.method,
            task.url,
            task.target,
            None if task.retry is None else json.dumps(dataclasses.asdict(task.retry)),
            task.dispatch_deadline_usec,
        ),
    )
    if not cursor.rowcount:
        return False
    connection.execute("INSERT INTO payloads VALUES (?, ?, ?)", (cursor.lastrowid, json.dumps(task.headers), task.body))
    return True


def complete(connection: sqlite3.Connection, completion: Completion, tally: Tally) -> bool:
    """Write the result of an attempt; return whether the claim that it shows still stood."""
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
    if not found:
        return False
    attempt = completion.attempt
    connection.execute(
        _INSERT_ATTEMPT,
        (
            completion.task_id,
            attempt.number,
            attempt.started_usec,
            attempt.duration_usec,
            attempt.status,
            attempt.reason,
            attempt.service,
            attempt.excerpt,
        ),
    )
    queue = found[0][0]
    tally[queue, "running"] -= 1
    tally[queue, completion.state] += 1
    return True


def count(connection: sqlite3.Connection) -> Tally:
    """Count the tasks of each queue and state; reads the whole table."""
    rows = connection.execute("SELECT queue, state, count(*) FROM tasks GROUP BY queue, state").fetchall()
    return Counter({(queue, state): number for queue, state, number in rows})


def task_fields(row: Sequence[Any]) -> dict[str, Any]:
    """Return the fields of a :class:`StoredTask` from a row of :data:`SELECT_TASK`."""
    fields = dict(zip(_TASK_FIELDS, row, strict=True))
    fields["retry"] = None if fields["retry"] is None else RetryPolicy(**json.loads(fields["retry"]))
    fields["headers"] = _decode_headers(fields["headers"])
    return fields


def _decode_headers(text: str) -> Headers:
    return tuple((name, value) for name, value in json.loads(text))
