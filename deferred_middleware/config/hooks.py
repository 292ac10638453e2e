"""Hooks: the user's objects that are called when something happens to a task.

A hook has one or more of the methods of :class:`Hook`. :class:`Enqueued` is described here, the other arguments in
:mod:`deferred_middleware.execution.outcomes`. An exception that a hook raises is logged, and never changes an outcome.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.errors.text import log_error, shortened

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Call
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
    from deferred_middleware.execution.context import TaskContext
    from deferred_middleware.execution.outcomes import DeadLetter, Failure, Outcome, RefusedRequest

logger: Final = get_logger("deferred_middleware")

EVENTS: Final = ("before_task", "after_task", "on_failure", "on_dead_letter", "on_refused", "on_enqueue")
"""The methods that a hook may have."""


class BeforeTask(Protocol):
    """A hook with this method."""

    def before_task(self, context: TaskContext, /) -> None:
        """Do something before a call runs. ``context.call`` is set."""
        return


class AfterTask(Protocol):
    """A hook with this method."""

    def after_task(self, context: TaskContext, outcome: Outcome, /) -> None:
        """Do something after a call for which ``before_task`` was called, whether it succeeded or failed."""
        return


class OnFailure(Protocol):
    """A hook with this method."""

    def on_failure(self, failure: Failure, /) -> None:
        """Do something after an attempt that failed, or whose payload could not be loaded here."""
        return


class OnDeadLetter(Protocol):
    """A hook with this method."""

    def on_dead_letter(self, letter: DeadLetter, /) -> None:
        """Do something after ``on_failure``, if the task is known not to be retried."""
        return


class OnRefused(Protocol):
    """A hook with this method."""

    def on_refused(self, refused: RefusedRequest, /) -> None:
        """Do something after a request that is not trusted to be from the task queue."""
        return


class OnEnqueue(Protocol):
    """A hook with this method."""

    def on_enqueue(self, enqueued: Enqueued, /) -> None:
        """Do something after a call was enqueued."""
        return


class Hook(BeforeTask, AfterTask, OnFailure, OnDeadLetter, OnRefused, OnEnqueue, Protocol):
    """All methods that a hook may have. A hook needs one of them, and doesn't have to inherit from this class.

    If it inherits, it has only the methods that it defines itself, and a type checker compares their arguments with
    those below. If it doesn't, a type checker reports an object that has none of the methods as they are below.
    """


AnyHook: TypeAlias = BeforeTask | AfterTask | OnFailure | OnDeadLetter | OnRefused | OnEnqueue
"""The type of an argument that takes a hook."""


class Hooks:
    """The hooks of a process, in the order in which they are called.

    Raises :class:`TypeError` for an object that has none of the methods, or one that would have to be awaited.
    """

    def __init__(self, hooks: Iterable[AnyHook] = ()) -> None:
        given = tuple(hooks)
        for hook in given:
            found = [event for event in EVENTS if _has(hook, event)]
            if not found:
                raise TypeError(f"{hook!r} is not a hook: it has none of the methods {', '.join(EVENTS)}")
            for event in found:
                if inspect.iscoroutinefunction(getattr(hook, event)):
                    raise TypeError(f"the method {event} of the hook {hook!r} is `async def`. Hooks are not awaited.")
        self.is_empty: bool = not given
        """Whether there are no hooks."""
        self._methods: dict[str, tuple[Callable[..., object], ...]] = {
            event: tuple(getattr(hook, event) for hook in given if _has(hook, event)) for event in EVENTS
        }

    def listens(self, event: str) -> bool:
        """Tell whether any hook has a method for ``event``; if none has, its arguments need not be made."""
        return bool(self._methods[event])

    def fire(self, event: str, *arguments: Any) -> None:
        """Call the method ``event`` of each hook that has it."""
        for method in self._methods[event]:
            try:
                method(*arguments)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - a hook never changes an outcome
                log_error(logger, logging.ERROR, "a hook failed in %s (%s)", event, shortened(method), error=error)


def _has(hook: object, event: str) -> bool:
    """Tell whether ``hook`` has a method of its own for ``event``. One that it inherits from :class:`Hook` is none."""
    method = getattr(hook, event, None)
    return callable(method) and getattr(method, "__func__", None) is not getattr(Hook, event)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Enqueued:
    """A call that was enqueued: the argument of ``on_enqueue``, which runs in the thread that enqueued the call."""

    call: Call
    """The call."""
    queue: str
    """The queue's name."""
    task: EnqueuedTask
    """The task. A task that is added in a transaction has no final name, and exists only if the transaction commits."""
    transactional: bool = False
    """Whether the task was added in a transaction."""
