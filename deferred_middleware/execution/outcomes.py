"""How attempts end, and the facts that hooks are told about it."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from deferred_middleware.calls.call import Call
    from deferred_middleware.errors import UntrustedRequestError
    from deferred_middleware.execution.context import TaskContext


class Outcome(enum.Enum):
    """How an attempt ended."""

    DONE = "done"
    """The call returned."""
    RETRY = "retry"
    """The call asked for another attempt with ``SingularTaskFailure``."""
    POSTPONED = "postponed"
    """The call asked for another attempt with ``RetryLater``, and is enqueued again."""
    PERMANENT_FAILURE = "permanent-failure"
    """The call raised ``PermanentTaskFailure``: it is not to be tried again."""
    ATTEMPTS_EXHAUSTED = "attempts-exhausted"
    """The call did not succeed in the last of the attempts that its function allows: it is not tried again."""
    FAILED = "failed"
    """The call raised anything else; it is tried again."""
    UNREADABLE = "unreadable"
    """The task can't be turned into a call here; it is tried again, for a newer version may be able to."""

    # There is one of each, which makes this right, and quicker than the one of Enum, which is written in Python.
    __hash__ = object.__hash__


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An attempt that did not succeed: what ``on_failure`` is told."""

    context: TaskContext
    """The task."""
    call: Call | None
    """The call; None if the payload could not be turned into one here."""
    error: BaseException
    """What was raised. Its traceback begins with the user's own frame."""
    outcome: Outcome
    """What becomes of the task."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A task that did not succeed and will not be tried again: what ``on_dead_letter`` is told."""

    context: TaskContext
    """The task."""
    call: Call | None
    """The call; None if the payload could not be turned into one here."""
    error: BaseException
    """What its last attempt raised."""
    outcome: Outcome
    """How its last attempt ended."""
    reason: str
    """Why it is not tried again, for people."""
    body: bytes
    """The body of the task's request: the payload, or what stands for one that is kept elsewhere."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A request that is not believed to be from the task queue: what ``on_refused`` is told."""

    environ: WSGIEnvironment
    """The request."""
    error: UntrustedRequestError
    """Which check it failed, and how many requests the process has refused."""
