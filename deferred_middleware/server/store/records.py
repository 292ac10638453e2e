"""The values that the task store takes and returns: tasks, attempts, results, retry policies and retention.

Times are microseconds since the epoch by the wall clock (``..._usec``), durations are microseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from deferred_middleware.server.store.statistics.traceback_text import FailureSite
from deferred_middleware.wire import protocol

PULL = "PULL"
"""The method of a pull queue's task, as in the SDK's ``Task.method``."""

HTTP_TARGET = "http:"
"""The target of a task whose URL is complete. No service has this name."""

DAY_SECONDS = 24 * 3600

State = Literal["ready", "running", "succeeded", "failed"]
"""``ready``: waits for its ETA or its turn. ``failed``: a dead letter, which will not be run again."""

Headers = tuple[tuple[str, str], ...]
"""Header names and values; each character stands for one byte, as in WSGI."""

RetryOutcome = Literal["retried", "not failed", "name taken", "unknown"]
"""The answer to a retry of a dead letter. ``name taken``: an unfinished task has the same name."""

_MAX_EXPONENT = 1023  # 2.0 ** 1024 overflows a float


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a failed task is retried: the arithmetic of App Engine's push queues.

    ``retry_limit`` is a number of retries, ``age_limit_seconds`` counts from the first attempt; None means no limit.
    The back-off doubles ``max_doublings`` times and then grows linearly. Retry 1 is the one that follows the first
    attempt. Raises :class:`ValueError` for a value that is negative or not finite.

    Source: https://cloud.google.com/appengine/docs/standard/services/task-queue/rest ("RetryParameters") and
    ``Retry`` in the SDK's ``google/appengine/api/taskqueue/taskqueue_stub.py``.
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
        """Return the time to wait before retry ``retry_number``, which counts from 1."""
        if retry_number < 1:
            raise ValueError(f"retry_number={retry_number!r}: retries count from 1")
        doublings = min(retry_number - 1, self.max_doublings)
        linear_steps = max(1, retry_number - doublings)
        grown = self.min_backoff_seconds * 2.0 ** min(doublings, _MAX_EXPONENT) * linear_steps
        return min(self.max_backoff_seconds, grown)

    def allows(self, retry_number: int, age_seconds: float) -> bool:
        """Return whether retry ``retry_number`` is allowed ``age_seconds`` after the first attempt.

        If both limits are set, a task is given up only when it is past both of them.
        """
        permissions = []
        if self.retry_limit is not None:
            permissions.append(retry_number <= self.retry_limit)
        if self.age_limit_seconds is not None:
            permissions.append(age_seconds <= self.age_limit_seconds)
        return any(permissions) if permissions else True


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long finished tasks, attempts and names are kept.

    Succeeded tasks are deleted after ``succeeded_seconds``, and the oldest of them if there are more than
    ``succeeded_tasks``. Dead letters are kept until a person retries or deletes them. Of a task's attempts, the first
    ``first_attempts`` and the last ``last_attempts`` are kept. A name that the app chose is blocked for
    ``tombstone_seconds`` after its task has finished. Raises :class:`ValueError` for a negative number, or if no last
    attempt is kept.
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


class Lane(NamedTuple):
    """The tasks of one queue with one target. They share a rate and a service, so they run in order of their ETAs."""

    queue: str
    target: str


@dataclass(frozen=True, kw_only=True)
class CloudOrigin:
    """What is known of a task because the Cloud Tasks API created it.

    ``token`` is the kind of the token that each attempt carries, if any; ``email`` is the service account in it, and
    ``purpose`` is the token's audience (OIDC) or scope (OAuth), empty for the default.
    """

    token: Literal["oidc", "oauth"] | None = None
    email: str = ""
    purpose: str = ""


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """A task to add.

    If ``name`` is None, the store chooses one. ``target`` is ``[instance.][version.]service``, empty for the default
    service. If ``retry`` is None, the queue's policy holds. A task with the ``method`` :data:`PULL` is leased, by its
    ``tag`` if it has one, and never delivered. With the ``target`` :data:`HTTP_TARGET`, ``url`` is a complete URL.
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
    origin: CloudOrigin | None = None


@dataclass(frozen=True, kw_only=True)
class AddResult:
    """The answer for one task of an add. The task was stored only if the outcome is ``added``."""

    name: str
    outcome: Literal["added", "exists", "tombstoned"]


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """A stored task without its headers and its body.

    ``retry_count`` is the number of attempts since the task was added or a person retried it; for a pull task, the
    number of leases. ``execution_count`` is the number of those attempts that got an HTTP response.
    ``previous_response`` is the status of the last attempt, 0 if it got no response, None before the first attempt.
    ``eta_usec`` of a leased task is the end of its lease. A task whose transaction is not committed yet is ``held``.
    """

    id: int
    queue: str
    name: str
    state: State | Literal["held"]
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

    @property
    def is_http(self) -> bool:
        """Whether the task goes to its own complete URL, and not to a service."""
        return self.target == HTTP_TARGET


@dataclass(frozen=True, kw_only=True)
class StoredTask(TaskSummary):
    """A stored task."""

    headers: Headers
    body: bytes
    origin: CloudOrigin | None = None


@dataclass(frozen=True, kw_only=True)
class ClaimedTask(StoredTask):
    """A task that was claimed to be run. ``claim_token`` is needed to write its result."""

    claim_token: int


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One attempt, as it is kept.

    ``number`` counts from 1; ``status`` is None if there was no HTTP response. ``scheduled_usec`` was the task's ETA,
    None if it is not known.
    """

    number: int
    started_usec: int
    duration_usec: int
    status: int | None
    reason: str | None
    service: str
    excerpt: bytes
    scheduled_usec: int | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The result of a claimed task's attempt: finished, or ``ready`` for another attempt at ``eta_usec``.

    ``queue`` and ``url`` are the task's, and ``waited_usec`` is the time from its ETA to the attempt. ``failure`` says
    why the attempt failed, if it did.
    """

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
    queue: str
    url: str
    waited_usec: int = 0
    failure: FailureSite | None = None


@dataclass(frozen=True, kw_only=True)
class TaskPage:
    """Some tasks, the newest first. The next page begins before the id ``next_before_id``.

    On the last page, ``next_before_id`` is None. Other pages may have fewer tasks than were asked for, even none.
    """

    tasks: tuple[TaskSummary, ...]
    next_before_id: int | None
