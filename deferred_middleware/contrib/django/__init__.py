"""Django: tasks run as requests of the site, through its ``MIDDLEWARE``.

In ``settings.py``::

    INSTALLED_APPS = [..., "deferred_middleware.contrib.django"]
    MIDDLEWARE = ["deferred_middleware.contrib.django.middleware.TaskMiddleware", ...]    # the first one
    DEFERRED = {"BACKGROUND_MODULE": "background"}    # the settings, as well as the environment's variables

and in ``urls.py``::

    urlpatterns = [path("", include("deferred_middleware.contrib.django.urls")), ...]

Use it *instead of* ``DeferredMiddleware``, which runs tasks beneath Django. The view under which tasks are delivered is
exempt from CSRF protection and from login, and nothing else is. What a task raises is raised in the view, so that
``ATOMIC_REQUESTS`` rolls back; the status that the queue gets is always the one of the task's outcome.

Of any other request the middleware waits at its end for what ``defer_async`` started. With ``DEFERRED_COALESCE`` that
leaves together, and not at all if a view raises and no middleware answers for it.
"""

from __future__ import annotations

from typing import Any

from deferred_middleware.calls.call import call
from deferred_middleware.calls.callables import AnyCallable
from deferred_middleware.enqueue.api import enqueue


def defer_on_commit(func: AnyCallable, /, *args: Any, _using: str | None = None, **kwargs: Any) -> None:
    """Defer a call when the database transaction around this commits, or at once where there is none.

    The call is checked now, and enqueued after the commit; arguments are pickled then. ``_using`` is the database's
    alias, by default that of the default one; for the others see :func:`deferred_middleware.defer`.

    A crash between the commit and the enqueue loses the call: the database and the queue have no transaction in common.
    """
    from django.db import transaction

    prepared = call(func, *args, **kwargs)
    transaction.on_commit(lambda: enqueue(prepared), using=_using)
