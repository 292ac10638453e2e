"""Remove payloads from the datastore whose time is over; see :mod:`deferred_middleware.wire.overflow`.

Most are removed when their task is done. What is left is what nobody could remove: an enqueue whose outcome was not
known, a process that ended in between, a task that failed for good.
"""

from __future__ import annotations

import datetime
import logging
import time

from deferred_middleware.wire import overflow

logger = logging.getLogger("deferred_middleware")

_BATCH = 500  # keys to one Delete (SDK: datastore/datastore_rpc.py, MAX_DELETE_KEYS)


def sweep(*, max_seconds: float = 300.0) -> int:
    """Remove the expired payloads; return how many entities that were.

    It ends after ``max_seconds`` at the latest, and what is left then is for the next one. Safe to run at any time, and
    at the same time as another. Raises the SDK's ``datastore_errors``.
    """
    from google.appengine.api import datastore
    from google.appengine.datastore import datastore_rpc

    ends_at = time.monotonic() + max_seconds
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    connection = datastore_rpc.Connection(adapter=datastore.DatastoreAdapter())
    removed = 0
    while time.monotonic() < ends_at:
        query = datastore.Query(overflow.KIND, {f"{overflow.EXPIRES} <": now}, keys_only=True, namespace="")
        keys = query.Get(_BATCH)
        if not keys:
            break
        connection.delete(keys)
        removed += len(keys)
        if len(keys) < _BATCH:
            break
    logger.info("%d expired entities of payloads were removed from the datastore", removed)
    return removed
