"""How attempts end, and the values that hooks get about it."""

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
    """The call asked for another attempt with ``RetryLater``, and was enqueued again."""
    PERMANENT_FAILURE = "permanent-failure"
    """The call raised ``PermanentTaskFailure``. The task is not retried."""
    ATTEMPTS_EXHAUSTED = "attempts-exhausted"
    """The call failed in the last attempt that its function allows. The task is not retried."""
    FAILED = "failed"
    """The call raised any other exception. The task is retried."""
    UNREADABLE = "unreadable"
    """This version of the app can't read the call. The task is retried: a newer version may be able to read it."""

    if not TYPE_CHECKING:
        # Each member exists once, so its identity is a correct hash. The hash of Enum is slower: it is in Python.
        __hash__ = object.__hash__


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An attempt that did not succeed: the argument of ``on_failure``."""

    context: TaskContext
    """The task."""
    call: Call | None
    """The call; None if the payload could not be read."""
    error: BaseException
    """The exception. Its traceback begins with the first frame of the user's code."""
    outcome: Outcome
    """How the attempt ended."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A task that did not succeed and is not retried: the argument of ``on_dead_letter``."""

    context: TaskContext
    """The task."""
    call: Call | None
    """The call; None if the payload could not be read."""
    error: BaseException
    """The exception of the last attempt."""
    outcome: Outcome
    """How the last attempt ended."""
    reason: str
    """Why the task is not retried, for people."""
    body: bytes
    """The body of the task's request: the payload, or a reference to a payload in the datastore."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefusedRequest:
    """A request for a task's URL that does not come from the task queue: the argument of ``on_refused``."""

    environ: WSGIEnvironment
    """The WSGI environment of the request."""
    error: UntrustedRequestError
    """The check that failed, and the number of requests that the process has refused."""
