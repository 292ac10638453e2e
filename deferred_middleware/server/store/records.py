"""A task as the local server keeps it: what comes in, what is handed out to run, what is written back.

Times are microseconds since the epoch by the wall clock (``..._usec``), durations microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from deferred_middleware.server.store.retry import RetryPolicy

PULL = "PULL"
"""The method of a pull queue's task, as the SDK's ``Task.method`` has it."""

State = Literal["ready", "running", "succeeded", "failed"]
"""``ready``: waits for its ETA or its turn. ``failed``: a dead letter, will not be tried again."""

Headers = tuple[tuple[str, str], ...]
"""Header names and values; each character stands for one byte, as in WSGI."""


class Lane(NamedTuple):
    """Tasks of one queue with one target: what shares a rate and a service, and so stands in one line."""

    queue: str
    target: str


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """A task to be added.

    ``name`` None lets the store choose one. ``target`` is ``[instance.][version.]service``, empty for the default
    service. ``retry`` None means the queue's. The ``method`` :data:`PULL` makes a task that is leased, by ``tag`` if
    it has one, and never delivered.
    """

    queue: str
    url: str
    eta_usec: int
    name: str | None = None
    method: str = "POST"
    target: str = ""
    headers: Headers = ()
    body: bytes = b""
    retry: RetryPolicy | None = None
    dispatch_deadline_usec: int | None = None
    tag: str | None = None


@dataclass(frozen=True, kw_only=True)
class AddResult:
    """What became of one task of an add; only with ``added`` was it stored."""

    name: str
    outcome: Literal["added", "exists", "tombstoned"]


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """A task as it stands in the store, without its headers and its body.

    ``retry_count`` counts the attempts made so far, since it was added or a person had it retried; of a pull task, its
    leases. ``execution_count`` counts those of them that got an HTTP response. ``previous_response`` is the status of
    the last attempt, 0 when it got none, None before the first. ``eta_usec`` of a leased task is when its lease ends.
    """

    id: int
    queue: str
    name: str
    state: State
    eta_usec: int
    created_usec: int
    first_attempt_usec: int | None
    finished_usec: int | None
    method: str
    url: str
    target: str
    retry: RetryPolicy | None
    dispatch_deadline_usec: int | None
    retry_count: int
    execution_count: int
    previous_response: int | None
    retry_reason: str | None
    tag: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredTask(TaskSummary):
    """A task as it stands in the store, whole."""

    headers: Headers
    body: bytes


@dataclass(frozen=True, kw_only=True)
class ClaimedTask(StoredTask):
    """A task that is the claimant's to run. Only who shows ``claim_token`` can write its result."""

    claim_token: int


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One attempt, as it is kept: ``number`` counts from 1, ``status`` is None when there was no HTTP response."""

    number: int
    started_usec: int
    duration_usec: int
    status: int | None
    reason: str | None
    service: str
    excerpt: bytes


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The result of a claimed task's attempt: finished, or ``ready`` for another one at ``eta_usec``."""

    task_id: int
    claim_token: int
    state: Literal["ready", "succeeded", "failed"]
    eta_usec: int
    first_attempt_usec: int
    finished_usec: int | None
    retry_count: int
    execution_count: int
    previous_response: int
    retry_reason: str | None
    attempt: AttemptRecord


@dataclass(frozen=True, kw_only=True)
class TaskPage:
    """Some tasks, the newest first. The next page begins before the id ``next_before_id``; None: this is the last.

    A page may have fewer tasks than were asked for, even none, and not be the last.
    """

    tasks: tuple[TaskSummary, ...]
    next_before_id: int | None


RetryOutcome = Literal["retried", "not failed", "name taken", "unknown"]
"""What became of a dead letter that was to be tried again; ``name taken``: a later task has its name meanwhile."""
