"""The SDK's exception types, or stand-ins of the same names in a process that does without App Engine's SDK.

Code that was written for the SDK catches errors such as ``taskqueue.TaskAlreadyExistsError``. So our errors are of the
SDK's types too (:mod:`deferred_middleware.errors.sdk`). An app whose tasks have HTTP targets, such as on Cloud Run,
does not need the SDK, and importing the SDK takes half a second. There this module makes stand-ins: classes of the same
names and bases. If the app imports the SDK all the same, each new error is of the SDK's own type as well, because the
app may catch it by that type.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

ENGINE_VARIABLE: Final = "DEFERRED_ENGINE"
SERVICE_URLS_VARIABLE: Final = "DEFERRED_SERVICE_URLS"
CLOUD_TASKS: Final = "cloud-tasks"

_MODULES: Final = {
    "taskqueue": "google.appengine.api.taskqueue",
    "datastore_errors": "google.appengine.api.datastore_errors",
    "apiproxy_errors": "google.appengine.runtime.apiproxy_errors",
    "deferred": "google.appengine.ext.deferred",
}
_BASES: Final = {
    "taskqueue": {
        "InvalidQueueNameError": "InvalidQueueError",
        "InvalidTaskNameError": "InvalidTaskError",
        "InvalidUrlError": "InvalidTaskError",
        "TaskAlreadyExistsError": "InvalidTaskError",
        "TaskTooLargeError": "InvalidTaskError",
        "TombstonedTaskError": "InvalidTaskError",
        "TransactionalRequestTooLargeError": "TaskTooLargeError",
        "InvalidEtaError": "InvalidTaskError",
    },
    "datastore_errors": {"CommittedButStillApplying": "Timeout"},
}
"""The bases of the SDK's exception types that are not the ``Error`` of their module (SDK 3.1.0)."""


def _does_without_sdk() -> bool:
    """Tell whether the environment selects HTTP targets, and the app has not imported the SDK."""
    return (
        _MODULES["taskqueue"] not in sys.modules
        and os.environ.get(ENGINE_VARIABLE, "").strip() == CLOUD_TASKS
        and bool(os.environ.get(SERVICE_URLS_VARIABLE, "").strip())
    )


HAS_SDK: Final = not _does_without_sdk()
"""Whether this process uses the SDK. It is decided once, when this module is imported."""


class StandIn(Exception):
    """The base of the stand-ins. A new instance is of the SDK's own type too if the app has imported the SDK."""

    sdk_name = ""
    """The type that the class stands for, as ``module.name``."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Return a new instance of ``cls``, or of a subclass of it that is also the SDK's."""
        found: StandIn = super().__new__(of_sdk_too(cls), *args)
        return found


def of_sdk_too(cls: Any) -> Any:
    """Return ``cls``, or if the app has imported the SDK a subclass of it and of the types that it stands for."""
    if not issubclass(cls, StandIn) or _MODULES["taskqueue"] not in sys.modules:
        return cls
    return _also_of_sdk(cls)


@functools.lru_cache(maxsize=128)
def _also_of_sdk(cls: type[StandIn]) -> type[StandIn]:
    """Return a subclass of ``cls`` that is also a subclass of the SDK's types that its bases stand for."""
    if getattr(cls, "is_of_sdk", False):
        return cls
    names = [base.__dict__.get("sdk_name", "") for base in cls.__mro__]
    theirs: list[type] = []
    for name in names:
        module, _, attribute = name.partition(".")
        loaded = sys.modules.get(_MODULES.get(module, ""))
        kind = getattr(loaded, attribute, None) if attribute else None
        if kind is not None and not any(issubclass(other, kind) for other in theirs):
            theirs.append(kind)
    if not theirs:
        return cls
    members = {"__doc__": cls.__doc__, "__module__": cls.__module__, "__str__": cls.__str__, "is_of_sdk": True}
    return type(cls.__name__, (cls, *theirs), members)


@functools.lru_cache(maxsize=128)
def _stand_in(module: str, name: str) -> type[StandIn]:
    base = _BASES.get(module, {}).get(name, "Error")
    bases = (StandIn,) if name == "Error" or module == "deferred" else (_stand_in(module, base),)
    return type(name, bases, {"__doc__": f"Stands for the SDK's {module}.{name}.", "sdk_name": f"{module}.{name}"})


class _StandIns(SimpleNamespace):
    """The stand-ins of one module of the SDK, made when they are first used."""

    def __getattr__(self, name: str) -> Any:
        if not name.endswith(("Error", "Timeout", "Applying", "Failure", "BadTransactionState", "Rollback")):
            raise AttributeError(name)
        found = _stand_in(self.name, name)
        setattr(self, name, found)
        return found


class RetryOptions:
    """Stands for the SDK's ``taskqueue.TaskRetryOptions``: how often a task is retried, and after what time."""

    __slots__ = ("max_backoff_seconds", "max_doublings", "min_backoff_seconds", "task_age_limit", "task_retry_limit")

    def __init__(
        self,
        *,
        min_backoff_seconds: float | None = None,
        max_backoff_seconds: float | None = None,
        task_age_limit: float | None = None,
        max_doublings: int | None = None,
        task_retry_limit: int | None = None,
    ) -> None:
        given = {
            "min_backoff_seconds": min_backoff_seconds,
            "max_backoff_seconds": max_backoff_seconds,
            "task_age_limit": task_age_limit,
            "max_doublings": max_doublings,
            "task_retry_limit": task_retry_limit,
        }
        for name, value in given.items():
            if value is not None and value < 0:
                raise _stand_in("taskqueue", "InvalidTaskRetryOptionsError")(f"{name} can't be negative")
        if (max_backoff_seconds or 0) < (min_backoff_seconds or 0) and max_backoff_seconds is not None:
            raise _stand_in("taskqueue", "InvalidTaskRetryOptionsError")(
                "max_backoff_seconds can't be less than min_backoff_seconds"
            )
        self.min_backoff_seconds: float | None = min_backoff_seconds
        self.max_backoff_seconds: float | None = max_backoff_seconds
        self.task_age_limit: int | None = None if task_age_limit is None else math.ceil(task_age_limit)
        self.max_doublings: int | None = max_doublings
        self.task_retry_limit: int | None = task_retry_limit


def __getattr__(name: str) -> Any:
    """Import a module of the SDK, or make its stand-ins, when it is first used."""
    if name not in _MODULES:
        raise AttributeError(name)
    found: Any
    if HAS_SDK:
        found = importlib.import_module(_MODULES[name])
    else:
        found = _StandIns(name=name)
        if name == "taskqueue":
            found.TaskRetryOptions = RetryOptions
    globals()[name] = found
    return found


if TYPE_CHECKING:
    # The SDK has no types. If the bases of our errors were Any, type checkers would believe anything of them.
    class taskqueue:
        """The SDK's module ``google.appengine.api.taskqueue``, or the stand-ins of its exceptions and retry options."""

        TaskRetryOptions: Any

        class Error(Exception): ...

        class BadTransactionStateError(Error): ...

        class DatastoreError(Error): ...

        class DuplicateTaskNameError(Error): ...

        class InvalidDispatchDeadlineError(Error): ...

        class InvalidQueueModeError(Error): ...

        class InvalidQueueNameError(Error): ...

        class InvalidTaskError(Error): ...

        class InvalidEtaError(InvalidTaskError): ...

        class InvalidTaskNameError(InvalidTaskError): ...

        class InvalidTaskRetryOptionsError(Error): ...

        class InvalidUrlError(InvalidTaskError): ...

        class TaskAlreadyExistsError(InvalidTaskError): ...

        class TaskTooLargeError(InvalidTaskError): ...

        class TombstonedTaskError(InvalidTaskError): ...

        class UnknownQueueError(Error): ...

    class datastore_errors:
        """The SDK's module ``google.appengine.api.datastore_errors``, or the stand-ins of its exceptions."""

        class Error(Exception): ...

        class BadRequestError(Error): ...

    apiproxy_errors: Any
    """The SDK's module ``google.appengine.runtime.apiproxy_errors``, or the stand-ins of its exceptions."""


def is_retry_options(value: object) -> bool:
    """Tell whether ``value`` is the SDK's ``TaskRetryOptions``, or what stands for it."""
    theirs = getattr(sys.modules.get(_MODULES["taskqueue"]), "TaskRetryOptions", RetryOptions)
    return isinstance(value, (theirs, RetryOptions))


def task_failure(name: str) -> Any:
    """Return the stand-in for an exception of ``google.appengine.ext.deferred``."""
    return _stand_in("deferred", name)
