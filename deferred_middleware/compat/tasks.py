"""In place of freshplanet's ``tasks`` module: the same names, on Python 3 and on top of ours.

    from deferred_middleware.compat import tasks

    tasks.BACKGROUND_MODULE = "background"
    yield tasks.addTask(["mail"], send_welcome, user_id, _countdown=60)

What differs is listed in ``docs/migrating-from-tasks.rst``.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from google.appengine.api import taskqueue
from google.appengine.ext import ndb

from deferred_middleware.calls.call import call
from deferred_middleware.calls.callables import AnyCallable
from deferred_middleware.config import process
from deferred_middleware.enqueue.api import enqueue_async
from deferred_middleware.execution.context import current_task, log_as_retried
from deferred_middleware.wire.protocol import TASK_NAME_HEADER

if TYPE_CHECKING:
    import webob

__all__ = [
    "BACKGROUND_MODULE",
    "DEFAULT_QUEUES",
    "WARMUP_MODULE",
    "DeferredHandler",  # noqa: F822 - made by __getattr__
    "addTask",
    "getRetryCount",
    "isFromTaskQueue",
    "logAsRetried",
]

_logger = logging.getLogger("deferred_middleware")

_initial = process.current_settings()
DEFAULT_QUEUES: list[str] = list(_initial.default_queues)
"""The queues that ``'default'`` means; assign it, or set ``DEFAULT_QUEUES`` in the environment."""
WARMUP_MODULE: str | None = _initial.warmup_module
"""A module that is imported before the first task is decoded; assign it before the app is made."""
BACKGROUND_MODULE: str | None = _initial.background_module
"""The service that runs the tasks of the default service."""
del _initial


def addTask(queues: str | Sequence[str], func: AnyCallable, /, *args: Any, **kwargs: Any) -> Any:
    """Enqueue a call; return an ndb Future of True, or of False if the task's name is taken.

    ``queues`` is a list of names to spread over, one name, or ``'default'`` for :data:`DEFAULT_QUEUES`. The options are
    those of :func:`deferred_middleware.defer`, an ``_eta`` in seconds since 1970 as well, and two more:
    ``_raiseIfExists`` raises ``TaskAlreadyExistsError`` instead of yielding False; ``_parent`` is taken and has no
    meaning, for a payload that doesn't fit in a task is stored by us.

    Wrong arguments are raised at once, and what keeps the task from being enqueued is raised by the Future. Without
    anybody who waits for it the call is enqueued nevertheless, before its request ends.
    """
    install_settings()
    raise_if_exists = kwargs.pop("_raiseIfExists", False)
    kwargs.pop("_parent", None)
    eta = kwargs.get("_eta")
    if isinstance(eta, (int, float)) and not isinstance(eta, bool):
        kwargs["_eta"] = datetime.datetime.fromtimestamp(eta, datetime.timezone.utc)
    if queues != "default":
        kwargs["_queue"] = queues
    prepared = call(func, *args, **kwargs)
    return _wait_for(enqueue_async(prepared), prepared.options.name, raise_if_exists)


@ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
def _wait_for(future: Any, name: str | None, raise_if_exists: bool) -> Any:
    try:
        yield future
    except (taskqueue.TaskAlreadyExistsError, taskqueue.TombstonedTaskError):
        if raise_if_exists or name is None:
            raise
        _logger.info("A task named %s is or was in the queue already; it is not enqueued again.", name)
        raise ndb.Return(False) from None
    raise ndb.Return(True)


def isFromTaskQueue(request: webob.Request | None = None) -> bool:
    """Tell whether a task is running, or whether ``request`` says that it delivers one."""
    if request is not None:
        return bool(request.headers.get(TASK_NAME_HEADER))
    return current_task() is not None


def getRetryCount() -> int:
    """Return how often the running task was tried before; 0 outside of tasks."""
    task = current_task()
    return 0 if task is None else task.retry_count


def logAsRetried(message: str, *args: Any, **kwargs: Any) -> None:
    """Log a message, the louder the more often the task was tried; see :func:`deferred_middleware.log_as_retried`."""
    kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
    log_as_retried(message, *args, **kwargs)


def install_settings() -> None:
    """Make what was assigned to this module's settings the process's settings."""
    current = process.current_settings()
    assigned = dataclasses.replace(
        current,
        default_queues=tuple(DEFAULT_QUEUES),
        warmup_module=WARMUP_MODULE,
        background_module=BACKGROUND_MODULE,
    )
    if assigned != current:
        process.install_settings(assigned)


def __getattr__(name: str) -> Any:
    if name != "DeferredHandler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Made when it is asked for: webapp2 is needed for it alone, and the settings have been assigned by then.
    from deferred_middleware.contrib.webapp2 import handler_class

    install_settings()
    globals()[name] = handler_class()
    return globals()[name]
