"""The contract of an engine, and the message that an engine takes.

An engine accepts tasks. It is App Engine's taskqueue API (:mod:`.app_engine`) or Google Cloud Tasks
(:mod:`.cloud_tasks`). The rest of the package uses only this contract.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.calls.options import Options
    from deferred_middleware.engines.answers import Answer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskTemplate:
    """The common parts of similar tasks. :meth:`Engine.encode` completes it."""

    queue: str
    path: str
    headers: Mapping[str, str]
    """The headers of the task's request, without the signature."""
    signed: bool
    """Whether the messages have a signature."""
    target: str | None = None
    retry_options: taskqueue.TaskRetryOptions | None = None
    deadline_seconds: float | None = None
    encoded: Any = None
    """The engine's own form of the template. Only the engine reads it."""
    overhead_bytes: int = 0
    """The size of a task without its body and its signature, counted as the engine counts it."""


class TaskMessage(NamedTuple):
    """One task to add. It is a named tuple because each call creates one, and a named tuple is fast to create."""

    template: TaskTemplate
    name: str | None
    """None means that the queue chooses the name."""
    body: bytes
    eta_posix: float
    """The earliest time of the first attempt, in seconds since 1970, to the microsecond."""
    signature: str | None
    """The value of ``X-Deferred-Signature``. None means that the header is not sent."""

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.template.queue

    @property
    def path(self) -> str:
        """The path that the task is posted to."""
        return self.template.path

    @property
    def size_bytes(self) -> int:
        """The size of the task, counted as the engine counts it."""
        return self.template.overhead_bytes + len(self.body) + len(self.signature or "")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AddFailure:
    """The reason why a task was not added, or is not known to be."""

    error: Exception
    answer: Answer
    of_whole_add: bool
    """Whether the whole add failed, so that another of its tasks may be the cause."""


class StartedAdd(Protocol):
    """An add that is under way."""

    @property
    def future(self) -> Future[Any] | None:
        """Done when the answer has arrived. None if the engine makes progress only while a thread waits for it."""

    def results(self) -> Sequence[str | AddFailure]:
        """Wait for the answer. For each message, return the name of its task or the reason why it was not added."""


class Engine(Protocol):
    """Accepts tasks."""

    name: str
    has_outbox: bool
    """Whether transactional tasks wait in the datastore, from where a sweep sends those that are left."""
    max_task_bytes: int
    """The largest task, counted as :attr:`TaskMessage.size_bytes`."""

    def is_available(self) -> bool:
        """Tell whether tasks can be added in this process."""

    def context(self) -> Hashable | None:
        """Return the context that a task depends on. Two equal contexts give equal templates.

        Returns None if it can't be determined. Raises :class:`~deferred_middleware.errors.LocationError`.
        """

    def encode(self, template: TaskTemplate) -> TaskTemplate:
        """Return ``template`` with the engine's own form of it, for tasks that are enqueued in the current context.

        Raises :class:`TargetUnknownError`, or the engine's own errors.
        """

    def unsupported(self, options: Options) -> Sequence[str]:
        """Return a sentence for each part of ``options`` that the engine doesn't support."""

    def start(self, messages: Sequence[TaskMessage], timeout_seconds: float | None) -> StartedAdd:
        """Start to add messages of one queue. Never raises. If ``timeout_seconds`` is None, the engine decides."""

    def add(self, messages: Sequence[TaskMessage], timeout_seconds: float | None) -> Sequence[str | AddFailure]:
        """Add messages of one queue, and return the results; see :meth:`start` and :meth:`StartedAdd.results`."""

    def add_in_transaction(self, message: TaskMessage) -> None:
        """Add a task that is enqueued when the current datastore transaction commits. Raises the engine's errors."""


class TargetUnknownError(Exception):
    """The engine can't address the target. ``problem`` says why, and what to do about it."""

    def __init__(self, target: str | None, problem: str) -> None:
        self.problem = problem
        super().__init__(f"the target {target!r} can't be addressed: {problem}")


class FailedStart:
    """An add that could not be started. Nothing was sent."""

    future = None

    def __init__(self, count: int, failure: AddFailure) -> None:
        self._failures = [failure] * count

    def results(self) -> Sequence[AddFailure]:
        """Return the reason for each message."""
        return self._failures
