"""Django: tasks run as requests of the site, through its ``MIDDLEWARE``. The middleware's module has the manual."""

from __future__ import annotations

from typing import Any

from deferred_middleware.calls.call import call
from deferred_middleware.calls.callables import AnyCallable
from deferred_middleware.enqueue.api import enqueue


def defer_on_commit(func: AnyCallable, /, *args: Any, _using: str | None = None, **kwargs: Any) -> None:
    """Defer a call when the surrounding database transaction commits, or at once outside of a transaction.

    The call is checked now. After the commit its arguments are pickled, and it is enqueued. ``_using`` is the alias of
    the database, by default of the default database. The other options are those of :func:`deferred_middleware.defer`.

    A crash between the commit and the enqueue loses the call, because the database and the queue can't share a
    transaction.
    """
    from django.db import transaction

    prepared = call(func, *args, **kwargs)
    transaction.on_commit(lambda: enqueue(prepared), using=_using)
