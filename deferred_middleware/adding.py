"""Add prepared calls to their queue, and find out what became of them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.preparing import Prepared


def add(prepared: Prepared) -> taskqueue.Task:
    """Add one task; when this returns, it is enqueued. Raises :class:`EnqueueError`."""
    try:
        task = _attempt(prepared)
    except BaseException as error:
        _not_enqueued(prepared, error)
        raise
    _enqueued(prepared)
    return task


def _attempt(prepared: Prepared) -> taskqueue.Task:
    from deferred_middleware import rejections

    call, queue, task = prepared.call, prepared.queue, prepared.task
    name = call.options.name
    try:
        with _in_its_transaction(prepared):
            if prepared.overflowed is not None:
                prepared.overflowed.store()
            task.add(queue, transactional=prepared.transactional)
    except AssertionError as error:
        # The SDK asserts that the queue answers for each task (taskqueue.py, Queue.__AddTasks).
        reason = f"the queue's answer makes no sense ({error or 'an assertion in the SDK failed'})."
        raise rejections.EnqueueError(call.label, queue, name, reason) from error
    except rejections.EnqueueError:
        raise
    except Exception as error:
        # Not the SDK's own errors alone: it stumbles over some answers with a TypeError and the like.
        raise rejections.explain(error, call.label, queue, name) from error
    if not prepared.transactional and not task.was_enqueued:
        # A result of SKIPPED is no error to the SDK (taskqueue.py, Queue.__AddTasks), but nothing was enqueued.
        raise rejections.EnqueueError(call.label, queue, name, "the queue skipped the task.")
    return task


def _in_its_transaction(prepared: Prepared) -> contextlib.AbstractContextManager[None]:
    """Return the context in which the SDK adds to the transaction of ``prepared``, if it has one."""
    if prepared.transaction is None:
        return contextlib.nullcontext()
    from deferred_middleware import transactions

    return transactions.joined(prepared.transaction, prepared.call, prepared.queue)


def _enqueued(prepared: Prepared) -> None:
    """Tell whoever wants to know that a call is enqueued; whatever way it took, it comes by here."""


def _not_enqueued(prepared: Prepared, error: BaseException) -> None:
    """Undo what was done for a call that is not enqueued after all; whatever way it took, it comes by here.

    After an error that leaves open whether the task is there, its payload has to stay in the datastore.
    """
    from deferred_middleware import rejections

    if prepared.overflowed is not None and rejections.is_final(error):
        prepared.overflowed.remove()
