"""Run Python calls later, on App Engine, through your own WSGI stack.

Wrap the WSGI app in :class:`DeferredMiddleware`, and call :func:`defer`::

    app.wsgi_app = wrap_wsgi_app(DeferredMiddleware(app.wsgi_app))

    defer(send_welcome, user_id, _countdown=60)

Importing the package reads the settings from the environment. Each public name is imported when it is first used, so
that a process imports only the parts that it needs, and the SDK only if one of them needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deferred_middleware.config import process  # noqa: F401 - it reads the environment, in the importing thread

if TYPE_CHECKING:
    from deferred_middleware.calls import payload
    from deferred_middleware.calls.call import Call, call
    from deferred_middleware.config.hooks import Hook
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.enqueue.api import defer, defer_async, defer_many
    from deferred_middleware.enqueue.batch import defer_batch
    from deferred_middleware.enqueue.decorator import task
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
    from deferred_middleware.enqueue.futures import EnqueueFuture
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
    from deferred_middleware.errors.sdk import EnqueueError, NoEngineError, NotAllEnqueuedError, TaskTooLargeError
    from deferred_middleware.errors.task_failures import PermanentTaskFailure, SingularTaskFailure
    from deferred_middleware.execution.context import TaskContext, current_task, log_as_retried
    from deferred_middleware.execution.middleware import DeferredMiddleware
    from deferred_middleware.execution.outcomes import Outcome
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
    "EnqueuedTask",
    "Hook",
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
    "payload",
    "task",
]

_NAMES_BY_MODULE = {
    "deferred_middleware.calls": ("payload",),
    "deferred_middleware.calls.call": ("Call", "call"),
    "deferred_middleware.config.hooks": ("Hook",),
    "deferred_middleware.config.settings": ("Settings",),
    "deferred_middleware.enqueue.api": ("defer", "defer_async", "defer_many"),
    "deferred_middleware.enqueue.batch": ("defer_batch",),
    "deferred_middleware.enqueue.decorator": ("task",),
    "deferred_middleware.enqueue.enqueued_task": ("EnqueuedTask",),
    "deferred_middleware.enqueue.futures": ("EnqueueFuture",),
    "deferred_middleware.enqueue.report": ("EnqueueReport",),
    "deferred_middleware.errors.sdk": ("EnqueueError", "NoEngineError", "NotAllEnqueuedError", "TaskTooLargeError"),
    "deferred_middleware.errors.task_failures": ("PermanentTaskFailure", "SingularTaskFailure"),
    "deferred_middleware.execution.context": ("TaskContext", "current_task", "log_as_retried"),
    "deferred_middleware.execution.middleware": ("DeferredMiddleware",),
    "deferred_middleware.execution.outcomes": ("Outcome",),
    "deferred_middleware.execution.retry_later": ("RetryLater",),
}
# All other names are the errors that don't need the SDK.
_MODULES = dict.fromkeys(__all__, "deferred_middleware.errors") | {
    name: module for module, names in _NAMES_BY_MODULE.items() for name in names
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = importlib.import_module(_MODULES[name])
    # A module is an attribute of its package only after it is imported.
    value: object = getattr(found, name, None) or importlib.import_module(f"{_MODULES[name]}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
