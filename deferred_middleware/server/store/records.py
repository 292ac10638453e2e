"""When a task that failed is tried again.

The arithmetic of App Engine's push queues, and nothing else: no clock, no store. A *retry number* counts from 1, so
that the first attempt of a task is followed by retry 1.

Source: https://cloud.google.com/appengine/docs/standard/services/task-queue/rest ("RetryParameters") and
``Retry`` in the SDK's ``google/appengine/api/taskqueue/taskqueue_stub.py``.

How long the task store remembers what is over.

A task as the local server keeps it: what comes in, what is handed out to run, what is written back.

Times are microseconds since the epoch by the wall clock (``..._usec``), durations microseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from deferred_middleware.wire import protocol

_MAX_EXPONENT = 1023  # 2.0 ** 1024 overflows a float


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a failed task is tried again.

    ``retry_limit`` is a number of retries, ``age_limit_seconds`` counts from the first attempt; None is no limit. The
    back-off doubles ``max_doublings`` times and grows linearly after that. Raises :class:`ValueError` for a value that
    is negative or not finite.
    """

    retry_limit: int | None = None
    age_limit_seconds: float | None = None
    min_backoff_seconds: float = protocol.DEFAULT_MIN_BACKOFF_SECONDS
    max_backoff_seconds: float = protocol.DEFAULT_MAX_BACKOFF_SECONDS
    max_doublings: int = protocol.DEFAULT_MAX_DOUBLINGS

    def __post_init__(self) -> None:
        for name, value in (
            ("retry_limit", self.retry_limit),
            ("age_limit_seconds", self.age_limit_seconds),
            ("min_backoff_seconds", self.min_backoff_seconds),
            ("max_backoff_seconds", self.max_backoff_seconds),
            ("max_doublings", self.max_doublings),
        ):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r} is not a number from 0 up")

    def backoff_seconds(self, retry_number: int) -> float:
        """Return how long to wait before retry ``retry_number``, which counts from 1."""
        if retry_number < 1:
            raise ValueError(f"retry_number={retry_number!r}: retries count from 1")
        doublings = min(retry_number - 1, self.max_doublings)
        linear_steps = max(1, retry_number - doublings)
        grown = self.min_backoff_seconds * 2.0 ** min(doublings, _MAX_EXPONENT) * linear_steps
        return min(self.max_backoff_seconds, grown)

    def allows(self, retry_number: int, age_seconds: float) -> bool:
        """Tell whether retry ``retry_number`` may take place, ``age_seconds`` after the first attempt.

        With both limits set a task is given up only when it is past both of them.
        """
        permissions = []
        if self.retry_limit is not None:
            permissions.append(retry_number <= self.retry_limit)
        if self.age_limit_seconds is not None:
            permissions.append(age_seconds <= self.age_limit_seconds)
        return any(permissions) if permissions else True


DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept of finished tasks.

    Succeeded tasks go after ``succeeded_seconds``, and the oldest of them when there are more than ``succeeded_tasks``.
    Dead letters stay until a person retries or deletes them. Of a task's attempts the first and the last are kept, as
    many as ``first_attempts`` and ``last_attempts`` say. A name that an app has chosen for a task is blocked for
    ``tombstone_seconds`` after the task is over. Raises :class:`ValueError` for a negative number, or no last attempt.
    """

    succeeded_seconds: float = 7 * DAY_SECONDS
    succeeded_tasks: int = 10_000
    first_attempts: int = 10
    last_attempts: int = 40
    tombstone_seconds: float = protocol.TOMBSTONE_DAYS * DAY_SECONDS

    def __post_init__(self) -> None:
        for name, minimum in (
            ("succeeded_seconds", 0),
            ("succeeded_tasks", 0),
            ("first_attempts", 0),
            ("last_attempts", 1),
            ("tombstone_seconds", 0),
        ):
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a number from {minimum} up")


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
