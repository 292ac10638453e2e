"""What ``defer`` returns: :class:`EnqueuedTask`, a read-only view of the task that was added."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.engines.engine import TaskMessage


class AddState(Protocol):
    """The state of the add of one task. The prepared call implements it."""

    name: str | None
    was_enqueued: bool


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class EnqueuedTask:
    """A task, with the attribute names of the SDK's ``taskqueue.Task``."""

    message: TaskMessage
    """The message that the engine received."""
    transactional: bool
    """Whether the task is enqueued only when the surrounding transaction commits."""
    state: AddState

    @property
    def name(self) -> str | None:
        """The task's name. None if the task is transactional, or if the queue chooses the name and hasn't yet."""
        return self.state.name

    @property
    def was_enqueued(self) -> bool:
        """Whether the queue has accepted the task. It accepts those of a ``defer_batch`` at the end of the block."""
        return self.state.was_enqueued

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.message.queue

    @property
    def queue_name(self) -> str:
        """The queue's name."""
        return self.message.queue

    @property
    def url(self) -> str:
        """The path that the task is posted to."""
        return self.message.path

    @property
    def method(self) -> str:
        """``POST``."""
        return "POST"

    @property
    def payload(self) -> bytes:
        """The body of the task's request."""
        return self.message.body

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the task's request, without those that the platform adds."""
        headers = dict(self.message.template.headers)
        if self.message.signature is not None:
            headers[protocol.SIGNATURE_HEADER] = self.message.signature
        return headers

    @property
    def eta_posix(self) -> float:
        """The earliest time of the first attempt, in seconds since 1970."""
        return self.message.eta_posix

    @property
    def eta(self) -> datetime.datetime:
        """The earliest time of the first attempt, in UTC."""
        return datetime.datetime.fromtimestamp(self.message.eta_posix, datetime.timezone.utc)

    @property
    def target(self) -> str | None:
        """The target: ``service``, ``version.service`` or ``instance.version.service``. None: the enqueuing service."""
        return self.message.template.target

    @property
    def retry_options(self) -> taskqueue.TaskRetryOptions | None:
        """The task's own retry options."""
        return self.message.template.retry_options

    @property
    def dispatch_deadline_usec(self) -> int | None:
        """The dispatch deadline, in microseconds."""
        seconds = self.message.template.deadline_seconds
        return None if seconds is None else round(seconds * 1e6)

    @property
    def size_bytes(self) -> int:
        """The size of the task, as the engine counts it."""
        return self.message.size_bytes

    @property
    def size(self) -> int:
        """The size of the task in bytes, as the engine counts it."""
        return self.message.size_bytes

    @property
    def retry_count(self) -> int:
        """Always 0. A running task's retry count is in its :class:`~deferred_middleware.TaskContext`."""
        return 0

    @property
    def was_deleted(self) -> bool:
        """Always False. To delete a task, use ``taskqueue.Queue(...).delete_tasks_by_name(...)``."""
        return False

    @property
    def tag(self) -> None:
        """Always None, because only pull tasks have tags."""
        return None

    @property
    def on_queue_url(self) -> bool:
        """Always False, because the task has its own URL."""
        return False

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<EnqueuedTask{name}, queue {self.queue!r}, {self.url}>"
