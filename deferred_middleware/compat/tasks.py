"""The names of freshplanet's ``tasks`` module, for Python 3, implemented by this package.

    from deferred_middleware.compat import tasks

    tasks.BACKGROUND_MODULE = "background"
    yield tasks.addTask(["mail"], send_welcome, user_id, _countdown=60)

``docs/migrating-from-tasks.rst`` lists the differences.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from google.appengine.api import taskqueue
from google.appengine.ext import ndb

from deferred_middleware.calls.call import call
from deferred_middleware.calls.callables import AnyCallable
from deferred_middleware.config import process
from deferred_middleware.enqueue.api import enqueue_async
from deferred_middleware.errors import BodyError, SecretKeyMissingError, UntrustedRequestError
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.execution.context import current_task, log_as_retried
from deferred_middleware.execution.trust import Authenticator
from deferred_middleware.wire import protocol

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

logger: Final = get_logger("deferred_middleware")

_initial = process.current_settings()
DEFAULT_QUEUES: list[str] = list(_initial.default_queues)
"""The queues that ``'default'`` stands for. Assign it, or set ``DEFAULT_QUEUES`` in the environment."""
WARMUP_MODULE: str | None = _initial.warmup_module
"""A module to import before the first payload is decoded. Assign it before the app is made."""
BACKGROUND_MODULE: str | None = _initial.background_module
"""The service that runs the tasks that the default service enqueues."""
del _initial


def addTask(queues: str | Sequence[str], func: AnyCallable, /, *args: Any, **kwargs: Any) -> Any:
    """Enqueue a call. Returns an ndb Future of True, or of False if the task's name is taken.

    ``queues`` is a list of names to spread over, one name, or ``'default'`` for :data:`DEFAULT_QUEUES`. The options are
    those of :func:`deferred_middleware.defer`, with these differences: ``_eta`` can also be seconds since 1970;
    ``_raiseIfExists`` makes the Future raise ``TaskAlreadyExistsError`` instead of returning False; ``_parent`` is
    accepted and ignored, because this package stores large payloads itself.

    Errors in the arguments are raised at once. The Future raises the errors of the enqueue. If nobody waits for the
    Future, the call is enqueued nevertheless, before its request ends.
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
        logger.info("A task named %s is or was in the queue, so this call is not enqueued.", name)
        raise ndb.Return(False) from None
    raise ndb.Return(True)


def isFromTaskQueue(request: webob.Request | None = None) -> bool:
    """Return whether a task is running, or with ``request``, whether the task queue sent that request.

    A request is checked as the one of a deferred call is: its headers, and its signature where one is required. So the
    answer is False for requests that others forge. To check a signature, the body of the request is read; webob keeps
    it.
    """
    task = current_task()
    if request is None:
        return task is not None
    if task is not None and task.environ is request.environ:
        return True
    if not request.headers.get(protocol.TASK_NAME_HEADER):
        return False
    settings = process.current_settings()
    if (request.content_length or 0) > settings.max_payload_bytes:
        return False
    try:
        trusted = Authenticator(settings, process.current_deployment())
        body = request.body if protocol.environ_key(protocol.SIGNATURE_HEADER) in request.environ else b""
        # The stream of the request itself stays as it is.
        trusted.body_of({**request.environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))})
    except (UntrustedRequestError, BodyError, SecretKeyMissingError):
        return False
    return True


def getRetryCount() -> int:
    """Return the number of earlier attempts of the running task; 0 outside of tasks."""
    task = current_task()
    return 0 if task is None else task.retry_count


def logAsRetried(message: str, *args: Any, **kwargs: Any) -> None:
    """Log a message at a level that rises with each retry; see :func:`deferred_middleware.log_as_retried`."""
    kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
    log_as_retried(message, *args, **kwargs)


def install_settings() -> None:
    """Copy the settings that were assigned in this module to the settings of the process."""
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
    # Made on first access: only it needs webapp2, and the app has assigned the settings by then.
    from deferred_middleware.contrib.webapp2 import handler_class

    install_settings()
    globals()[name] = handler_class()
    return globals()[name]
