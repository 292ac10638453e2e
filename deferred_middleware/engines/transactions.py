"""Tasks that are enqueued if and when a datastore transaction commits, in the SDK's ndb and in its db.

Both make the transaction's connection the SDK's current one while the transaction's function runs, and ndb follows its
tasklets with it (SDK: ``ext/ndb/tasklets.py``, _help_tasklet_along). The SDK adds a transactional task to that.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deferred_middleware.errors import OptionError
from deferred_middleware.errors.sdk import CrossGroupError, EnqueueError, TransactionError, TransactionLimitError
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Call

# How many tasks each transaction has got from here. A transaction that is tried again has a new connection each time.
_added: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def current() -> Any | None:
    """Return the connection of the innermost datastore transaction around the caller, or None outside of any."""
    from google.appengine.api import datastore

    return datastore._GetConnection() if datastore.IsInTransaction() else None


def of_call(call: Call, queue: str) -> Any | None:
    """Return the transaction that ``call`` is to be added in, or None if it is to be added at once.

    Raises:
        TransactionError: it is to be transactional and there is no transaction.
        TransactionLimitError: the transaction has as many tasks as the platform allows.
        OptionError: ``_transactional="auto"`` found a transaction, and the call has a name.
    """
    wanted = call.options.transactional
    if not wanted:
        return None
    connection = current()
    name = call.options.name
    if connection is None:
        if wanted == "auto":
            return None
        raise TransactionError(
            call.label,
            queue,
            name,
            "_transactional=True needs a datastore transaction around the defer(), and there is none.",
        )
    if name is not None:
        raise OptionError(
            "_name",
            name,
            "a task added in a transaction can't have a name of its own, and there is a transaction around this "
            "defer(). Leave the name out, or say _transactional=False to enqueue it whether or not that commits.",
        )
    if _added.get(connection, 0) >= protocol.MAX_TASKS_PER_TRANSACTION:
        raise TransactionLimitError(
            call.label,
            queue,
            name,
            f"the transaction has {protocol.MAX_TASKS_PER_TRANSACTION} tasks already, and the platform allows no more. "
            "Defer one call in it that defers the others.",
        )
    return connection


@contextlib.contextmanager
def joined(connection: Any | None, call: Call, queue: str) -> Iterator[None]:
    """Add the task of ``call`` to a transaction inside this; None is no transaction, and changes nothing.

    Raises :class:`CrossGroupError` when the datastore refuses what is written inside, because the transaction was not
    declared as one over several entity groups.
    """
    if connection is None:
        yield
        return
    from google.appengine.api import datastore_errors

    try:
        yield
    except datastore_errors.BadRequestError as error:
        if isinstance(error, EnqueueError) or "cross-group" not in str(error):
            raise
        raise CrossGroupError(
            call.label,
            queue,
            call.options.name,
            "the task is an entity of its own in this transaction, as is one with a large payload, or one on Cloud "
            "Tasks. Declare the transaction with xg=True.",
        ) from error
    _added[connection] = _added.get(connection, 0) + 1
