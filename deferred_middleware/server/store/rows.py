"""The statements that write and read rows of tasks, attempts and names (``schema.sql``).

The name of an unfinished task is taken. After that, a name that the app chose stays blocked for some days, by a row of
the table ``tombstones``. Source: https://cloud.google.com/appengine/docs/standard/services/task-queue/rest ("task
names").
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from deferred_middleware.server.store.counts import Tally
from deferred_middleware.server.store.records import (
    AddResult,
    AttemptRecord,
    ClaimedTask,
    CloudOrigin,
    Completion,
    Headers,
    NewTask,
    RetryPolicy,
    StoredTask,
    TaskSummary,
)
from deferred_middleware.server.store.upkeep.checksum import CHECKED_FIELDS, DamagedRowError, checksum_of

TASK_COLUMNS = (
    "id, queue, name, state, eta_usec, created_usec, first_attempt_usec, finished_usec, method, url, target, retry,"
    " dispatch_deadline_usec, retry_count, execution_count, previous_response, retry_reason, tag"
)
CLAIMED_COLUMNS = (
    f"{TASK_COLUMNS}, (SELECT headers FROM payloads WHERE task_id = tasks.id),"
    " (SELECT body FROM payloads WHERE task_id = tasks.id), (SELECT origin FROM payloads WHERE task_id = tasks.id),"
    " (SELECT checksum FROM payloads WHERE task_id = tasks.id), user_named, attempts_before"
)
FIRST_SUCCESS = """
    SELECT first_attempt_usec, first_duration_usec, previous_response, first_service, first_excerpt, eta_usec FROM tasks
    WHERE id = ? AND first_service IS NOT NULL"""
SELECT_TASK = f"SELECT {TASK_COLUMNS}, headers, body, origin, checksum FROM tasks JOIN payloads ON task_id = id"

PURGE_PREFIX = "purge:"
_CHECKED = """
    SELECT name, method, url, body, origin, headers, checksum FROM tasks JOIN payloads ON task_id = id WHERE id = ?"""
_REPLACE_HEADERS = "UPDATE payloads SET headers = ?, checksum = ? WHERE task_id = ?"
"""How the column ``hold`` begins for a task that was purged, and may come back. No transaction's ID begins so."""

_INSERT_TASK = """
    INSERT INTO tasks (id, queue, name, user_named, state, hold, eta_usec, created_usec, method, url, target, retry,
        dispatch_deadline_usec, tag)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
# A result adds one to the number of attempts, so a second result of the same attempt finds no row.
_COMPLETE = """
    UPDATE tasks SET state = ?, eta_usec = ?, first_attempt_usec = ?, finished_usec = ?, retry_count = ?,
        execution_count = ?, previous_response = ?, retry_reason = ?, forced = 0, first_duration_usec = ?,
        first_service = ?, first_excerpt = ?
    WHERE id = ? AND state = 'ready' AND retry_count = ?"""
_INSERT_ATTEMPT = "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Tasks that were purged, and may come back, block their names by a tombstone like deleted ones.
_BY_NAME = f"""
    SELECT state, user_named FROM tasks
    WHERE queue = ? AND name = ? AND (hold IS NULL OR hold NOT LIKE '{PURGE_PREFIX}%')"""
_TOMBSTONE = "SELECT 1 FROM tombstones WHERE queue = ? AND name = ? AND expires_usec > ?"
_BLOCK_NAME = "INSERT OR REPLACE INTO tombstones VALUES (?, ?, ?)"
_UNFINISHED_STATES = frozenset({"held", "ready", "running"})

_SUMMARY_FIELDS = [field.name for field in dataclasses.fields(TaskSummary)]
_STORED_FIELDS = [*_SUMMARY_FIELDS, "headers", "body", "origin", "checksum"]
_decode_json = json.JSONDecoder().raw_decode


# Tasks and attempts.


def insert(
    connection: sqlite3.Connection,
    task: NewTask,
    task_id: int,
    name: str,
    now_usec: int,
    *,
    user_named: bool,
    transaction: str | None = None,
) -> None:
    """Insert a new task. With ``transaction`` it is staged until that transaction is committed."""
    connection.execute(
        _INSERT_TASK,
        (
            task_id,
            task.queue,
            name,
            user_named,
            "ready" if transaction is None else "held",
            transaction,
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
    origin = None if task.origin is None else json.dumps(dataclasses.asdict(task.origin))
    headers = json.dumps(task.headers)
    checksum = checksum_of(name, task.method, task.url, headers, task.body, origin)
    payload = (task_id, headers, task.body, origin, checksum)
    connection.execute("INSERT INTO payloads VALUES (?, ?, ?, ?, ?)", payload)


def replace_headers(connection: sqlite3.Connection, task_id: int, headers: Headers) -> None:
    """Replace the headers of a task. One that was damaged on the disk stays as it is, so that this is noticed."""
    (name, method, url, body, origin, old_headers, checksum) = connection.execute(_CHECKED, (task_id,)).fetchone()
    if checksum in (None, checksum_of(name, method, url, old_headers, body, origin)):
        new_headers = json.dumps(headers)
        new_checksum = checksum_of(name, method, url, new_headers, body, origin)
        connection.execute(_REPLACE_HEADERS, (new_headers, new_checksum, task_id))


def complete(connection: sqlite3.Connection, completion: Completion) -> bool:
    """Write the result of an attempt; return whether the task was there and had no result of this attempt."""
    attempt = completion.attempt
    in_row = is_first_success(completion)
    return bool(
        connection.execute(
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
                attempt.duration_usec if in_row else None,
                attempt.service if in_row else None,
                attempt.excerpt if in_row else None,
                completion.task_id,
                completion.retry_count - 1,
            ),
        ).rowcount
    )


def is_first_success(completion: Completion) -> bool:
    """Return whether the row of the task itself has room for the attempt, because there is no other."""
    attempt = completion.attempt
    return (
        completion.state == "succeeded"
        and completion.retry_count == 1
        and attempt.number == 1
        and attempt.reason is None
        and attempt.status == completion.previous_response
        and attempt.started_usec == completion.first_attempt_usec
        and attempt.scheduled_usec == completion.eta_usec
    )


def first_success(row: Sequence[Any]) -> AttemptRecord:
    """Return the only attempt of a task that succeeded at once, of a row of :data:`FIRST_SUCCESS`."""
    started_usec, duration_usec, status, service, excerpt, eta_usec = row
    return AttemptRecord(
        number=1,
        started_usec=started_usec,
        duration_usec=duration_usec,
        status=status,
        reason=None,
        service=service,
        excerpt=excerpt,
        scheduled_usec=eta_usec,
    )


def insert_attempts(connection: sqlite3.Connection, attempts: Iterable[tuple[int, int, AttemptRecord]]) -> None:
    """Insert attempts, each given with its task's id and the number that replaces its own."""
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
                attempt.scheduled_usec,
            )
            for task_id, number, attempt in attempts
        ],
    )


def delete(
    connection: sqlite3.Connection,
    where: str,
    parameters: Sequence[Any],
    tally: Tally,
    *,
    blocked_until_usec: int,
    block_all_names: bool = False,
) -> int:
    """Delete the tasks that ``where`` selects, with their attempts; return how many there were.

    Names of unfinished tasks stay blocked if the app chose them, or all of them with ``block_all_names``. Names of
    finished tasks have been blocked since their tasks finished.
    """
    unfinished = f"{where} AND finished_usec IS NULL"
    block_names_of(connection, unfinished, parameters, blocked_until_usec, all_names=block_all_names)
    gone = connection.execute(f"DELETE FROM tasks WHERE {where} RETURNING id, queue, state", parameters).fetchall()
    for key, number in Counter((queue, state) for _id, queue, state in gone).items():
        if key[1] != "held":
            tally[key] -= number
    tally.ended += [row[0] for row in gone]
    return len(gone)


def summary(row: Sequence[Any]) -> TaskSummary:
    """Return the task of a row of :data:`TASK_COLUMNS`."""
    return TaskSummary(**_decode(dict(zip(_SUMMARY_FIELDS, row, strict=True))))


def stored_task(row: Sequence[Any]) -> StoredTask:
    """Return the task of a row of :data:`SELECT_TASK`; without headers if they are damaged."""
    fields = _fields_of(row)
    del fields["checksum"]
    try:
        return StoredTask(**_decoded(fields))
    except (ValueError, TypeError, KeyError):
        return StoredTask(**fields | {"headers": (), "origin": None, "retry": None})


def claimed_task(row: Sequence[Any], token: int) -> ClaimedTask:
    """Return the task of a row of :data:`CLAIMED_COLUMNS`, claimed with ``token``.

    Raises :class:`DamagedRowError` if the row isn't as it was written.
    """
    fields = _fields_of(row[:-2])
    checksum = fields.pop("checksum")
    if checksum is not None and checksum != checksum_of(*(fields[name] for name in CHECKED_FIELDS)):
        raise DamagedRowError(fields["id"], fields["queue"], fields["name"])
    try:
        fields = _decoded(fields)
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedRowError(fields["id"], fields["queue"], fields["name"]) from error
    fields["state"] = "running"
    fields["claim_token"] = token
    task = ClaimedTask.__new__(ClaimedTask)
    # __init__ of a frozen class sets each field by a call, which takes longer than the rest of a claim.
    task.__dict__.update(fields)
    return task


def _fields_of(row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(_STORED_FIELDS, row, strict=True))


def _decoded(fields: dict[str, Any]) -> dict[str, Any]:
    fields = _decode(fields)
    fields["headers"] = _decode_headers(fields["headers"])
    if fields["origin"] is not None:
        fields["origin"] = CloudOrigin(**json.loads(fields["origin"]))
    return fields


def _decode(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["retry"] is not None:
        fields["retry"] = RetryPolicy(**json.loads(fields["retry"]))
    return fields


def _decode_headers(text: str) -> Headers:
    headers: list[tuple[str, str]] = _decode_json(text)[0]
    return tuple(map(tuple, headers))  # type: ignore[arg-type] # of two strings each


# Names.


def find_name(connection: sqlite3.Connection, queue: str, name: str, now_usec: int) -> AddResult | None:
    """Return why no task of this name can be added: ``exists`` or ``tombstoned``; None if one can be added."""
    rows = connection.execute(_BY_NAME, (queue, name)).fetchall()
    if any(state in _UNFINISHED_STATES for state, _user_named in rows):
        return AddResult(name=name, outcome="exists")
    # A name that the store chose is taken for as long as its task is stored. No app has a reason to choose it again.
    if any(not user_named for _state, user_named in rows) or (
        connection.execute(_TOMBSTONE, (queue, name, now_usec)).fetchone() is not None
    ):
        return AddResult(name=name, outcome="tombstoned")
    return None


def has_unfinished_task(connection: sqlite3.Connection, queue: str, name: str) -> bool:
    """Return whether an unfinished task has this name."""
    found = connection.execute(_BY_NAME, (queue, name)).fetchall()
    return any(state in _UNFINISHED_STATES for state, _user_named in found)


def block_names(connection: sqlite3.Connection, names: Iterable[tuple[str, str, int]]) -> None:
    """Block names, each given as its queue, the name, and until when it is blocked."""
    connection.executemany(_BLOCK_NAME, names)


def block_names_of(
    connection: sqlite3.Connection,
    where: str,
    parameters: Sequence[Any],
    until_usec: int,
    *,
    all_names: bool = False,
) -> None:
    """Block the names of the tasks that ``where`` selects, only those that the app chose unless ``all_names``."""
    chosen = "1" if all_names else "user_named"
    connection.execute(
        f"INSERT OR REPLACE INTO tombstones SELECT queue, name, ? FROM tasks WHERE {where} AND {chosen}",
        (until_usec, *parameters),
    )


def unblock_names(connection: sqlite3.Connection, queue: str, name: str | None, limit: int) -> int:
    """Unblock a name, or at most ``limit`` names of the queue; return how many were blocked."""
    return connection.execute(
        "DELETE FROM tombstones WHERE (queue, name) IN"
        " (SELECT queue, name FROM tombstones WHERE queue = ? AND name = coalesce(?, name) LIMIT ?)",
        (queue, name, limit),
    ).rowcount


def delete_expired_tombstones(connection: sqlite3.Connection, now_usec: int, limit: int) -> None:
    """Delete at most ``limit`` tombstones whose names are no longer blocked."""
    connection.execute(
        "DELETE FROM tombstones WHERE (queue, name) IN"
        " (SELECT queue, name FROM tombstones WHERE expires_usec <= ? LIMIT ?)",
        (now_usec, limit),
    )


# Results of adds.


def find_results(connection: sqlite3.Connection, key: str) -> list[AddResult] | None:
    """Return the results that are kept under ``key``, or None."""
    found = connection.execute("SELECT results FROM add_results WHERE key = ?", (key,)).fetchone()
    return None if found is None else [AddResult(name=name, outcome=outcome) for name, outcome in json.loads(found[0])]


def keep_results(connection: sqlite3.Connection, key: str, results: Iterable[AddResult], expires_usec: int) -> None:
    """Keep the results of an add until ``expires_usec``."""
    content = json.dumps([(result.name, result.outcome) for result in results])
    connection.execute("INSERT INTO add_results VALUES (?, ?, ?)", (key, content, expires_usec))


def delete_expired_results(connection: sqlite3.Connection, now_usec: int, limit: int) -> None:
    """Delete at most ``limit`` results that are not kept any more."""
    connection.execute(
        "DELETE FROM add_results WHERE key IN (SELECT key FROM add_results WHERE expires_usec <= ? LIMIT ?)",
        (now_usec, limit),
    )
