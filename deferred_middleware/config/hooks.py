"""Hooks: the user's objects that are called when something happens to a task.

A hook has one or more of the methods that :data:`EVENTS` names::

    before_task(context: TaskContext)
    after_task(context: TaskContext, outcome: Outcome)
    on_failure(failure: Failure)
    on_dead_letter(letter: DeadLetter)
    on_refused(refused: RefusedRequest)
    on_enqueue(enqueued: Enqueued)

:class:`Enqueued` is described here, the other arguments in :mod:`deferred_middleware.execution.outcomes`. An exception
that a hook raises is logged, and never changes an outcome.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.errors.text import log_error, shortened

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Call
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask

logger = get_logger("deferred_middleware")

EVENTS: Final = ("before_task", "after_task", "on_failure", "on_dead_letter", "on_refused", "on_enqueue")
"""The methods that a hook may have."""


class Hooks:
    """The hooks of a process, in the order in which they are called.

    Raises :class:`TypeError` for an object that has none of the methods.
    """

    def __init__(self, hooks: Iterable[object] = ()) -> None:
        given = tuple(hooks)
        for hook in given:
            if not any(callable(getattr(hook, event, None)) for event in EVENTS):
                raise TypeError(f"{hook!r} is not a hook: it has none of the methods {', '.join(EVENTS)}")
        self.is_empty = not given
        """Whether there are no hooks."""
        self._methods: dict[str, tuple[Callable[..., object], ...]] = {
            event: tuple(getattr(hook, event) for hook in given if callable(getattr(hook, event, None)))
            for event in EVENTS
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
