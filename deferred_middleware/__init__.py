"""Run Python calls later, on App Engine, through your own WSGI stack.

Wrap the WSGI app in :class:`DeferredMiddleware`, and call :func:`defer`::

    app.wsgi_app = wrap_wsgi_app(DeferredMiddleware(app.wsgi_app))

    defer(send_welcome, user_id, _countdown=60)

Importing the package does not import the SDK, which is heavy: the names that need it are made when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deferred_middleware.calls.call import Call, call
from deferred_middleware.config.settings import Settings
from deferred_middleware.enqueue.api import defer, defer_async, defer_many
from deferred_middleware.enqueue.batch import defer_batch
from deferred_middleware.enqueue.decorator import task
from deferred_middleware.enqueue.report import EnqueueReport
from deferred_middleware.errors import (
    ArgumentsError,
    CallError,
    DeferredError,
    DeferredWarning,
    NotAllowedError,
    NotCallableError,
    NotImportableError,
    OptionError,
    SettingsError,
    UnknownOptionError,
    UnpicklableArgumentError,
)
from deferred_middleware.execution.context import TaskContext, current_task, log_as_retried
from deferred_middleware.execution.middleware import DeferredMiddleware
from deferred_middleware.execution.outcomes import Outcome

if TYPE_CHECKING:
    from google.appengine.ext.deferred import PermanentTaskFailure, SingularTaskFailure

    from deferred_middleware.enqueue.futures import EnqueueFuture
    from deferred_middleware.errors.sdk import EnqueueError, NoEngineError, NotAllEnqueuedError, TaskTooLargeError
    from deferred_middleware.execution.retry_later import RetryLater

__version__ = "0.1.0"

__all__ = [
    "ArgumentsError",
    "Call",
    "CallError",
    "DeferredError",
    "DeferredMiddleware",
    "DeferredWarning",
    "EnqueueError",
    "EnqueueFuture",
    "EnqueueReport",
    "NoEngineError",
    "NotAllEnqueuedError",
    "NotAllowedError",
    "NotCallableError",
    "NotImportableError",
    "OptionError",
    "Outcome",
    "PermanentTaskFailure",
    "RetryLater",
    "Settings",
    "SettingsError",
    "SingularTaskFailure",
    "TaskContext",
    "TaskTooLargeError",
    "UnknownOptionError",
    "UnpicklableArgumentError",
    "call",
    "current_task",
    "defer",
    "defer_async",
    "defer_batch",
    "defer_many",
    "log_as_retried",
    "task",
]

_NEED_THE_SDK = {
    "EnqueueError": "deferred_middleware.errors.sdk",
    "EnqueueFuture": "deferred_middleware.enqueue.futures",
    "NoEngineError": "deferred_middleware.errors.sdk",
    "NotAllEnqueuedError": "deferred_middleware.errors.sdk",
    "TaskTooLargeError": "deferred_middleware.errors.sdk",
    "PermanentTaskFailure": "google.appengine.ext.deferred",
    "RetryLater": "deferred_middleware.execution.retry_later",
    "SingularTaskFailure": "google.appengine.ext.deferred",
}


def __getattr__(name: str) -> object:
    if name not in _NEED_THE_SDK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(_NEED_THE_SDK[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
