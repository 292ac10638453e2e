"""Hooks: objects of the user's that are told what happens to tasks.

A hook has any of the methods that :data:`EVENTS` names::

    before_task(context: TaskContext)
    after_task(context: TaskContext, outcome: Outcome)
    on_failure(failure: Failure)
    on_dead_letter(letter: DeadLetter)
    on_refused(refusal: Refusal)
    on_enqueue(enqueued: Enqueued)

The facts are described in :mod:`deferred_middleware.execution.outcomes`. What a hook raises is logged, and never
changes an
outcome.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Call
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask

logger = logging.getLogger("deferred_middleware")

EVENTS: Final = ("before_task", "after_task", "on_failure", "on_dead_letter", "on_refused", "on_enqueue")
"""The methods that a hook may have."""


class Hooks:
    """The hooks of a process, in the order in which they are told.

    Raises :class:`TypeError` for an object that has none of the methods.
    """

    def __init__(self, hooks: Iterable[object] = ()) -> None:
        given = tuple(hooks)
        for hook in given:
            if not any(callable(getattr(hook, event, None)) for event in EVENTS):
                raise TypeError(f"{hook!r} is no hook: it has none of the methods {', '.join(EVENTS)}")
        self._listeners: dict[str, tuple[Callable[..., object], ...]] = {
            event: tuple(getattr(hook, event) for hook in given if callable(getattr(hook, event, None)))
            for event in EVENTS
        }

    def listens(self, event: str) -> bool:
        """Tell whether any hook has a method for ``event``, so that what it would be told needn't be made otherwise."""
        return bool(self._listeners[event])

    def fire(self, event: str, *facts: Any) -> None:
        """Call the method ``event`` of each hook that has it with ``facts``."""
        for listener in self._listeners[event]:
            try:
                listener(*facts)
            except KeyboardInterrupt:
                raise
            except BaseException:
                logger.exception("a hook failed in %s (%r)", event, listener)


_hooks = Hooks()


def current_hooks() -> Hooks:
    """Return the process's hooks: those of the last :class:`~deferred_middleware.DeferredMiddleware` made with some."""
    return _hooks


def install_hooks(hooks: Hooks) -> None:
    """Make ``hooks`` the process's, so that what is enqueued is told to them too."""
    global _hooks
    _hooks = hooks


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Enqueued:
    """A call was enqueued: what ``on_enqueue`` is given, in the thread that enqueued it."""

    call: Call
    queue: str
    """The queue's name."""
    task: EnqueuedTask
    """The task. One that is added in a transaction has no final name, and is there only if that commits."""
    transactional: bool = False
