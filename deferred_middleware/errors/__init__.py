"""The errors of the package. All of them are a :class:`DeferredError`.

The message of an error says what is wrong, with which value, and what to do about it; the attributes hold the same
facts. Where older code already catches a built-in type, the error is of that type too. The errors that are also one of
the SDK's own types are in :mod:`deferred_middleware.errors.sdk`, because that module imports the SDK.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Self

_STAND_INS: Final = "deferred_middleware.errors.sdk_types"


class DeferredError(Exception):
    """The base class of all errors that deferred_middleware raises."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Return a new error. In a process without the SDK it is of the SDK's type too if the app imports the SDK."""
        stand_ins = sys.modules.get(_STAND_INS)
        kind: type[Self] = cls if stand_ins is None else stand_ins.of_sdk_too(cls)
        return super().__new__(kind, *args)


class DeferredWarning(UserWarning):
    """An argument of ``defer()`` or a variable of the environment that probably does not do what you expect."""


class SettingsError(DeferredError, ValueError):
    """The value of a setting is not accepted.

    ``variable`` is the name of the environment variable, and ``value`` its value. ``accepted`` describes the accepted
    values.
    """

    def __init__(self, variable: str, value: object, accepted: str) -> None:
        self.variable = variable
        self.value = value
        self.accepted = accepted
        super().__init__(f"{variable}={value!r} can't be used: it takes {accepted}.")


class SecretKeyMissingError(SettingsError):
    """Signatures are required, but the process has no secret key."""

    def __init__(self, *, on_app_engine_standard: bool) -> None:
        super().__init__("DEFERRED_SECRET_KEYS", None, "a random text of at least 32 bytes")
        reason = (
            "signatures are required (DEFERRED_REQUIRE_SIGNATURE)"
            if on_app_engine_standard
            else "this process does not run on App Engine standard, which blocks forged task requests: here anybody "
            "could run code in the app. (On App Engine standard, GAE_ENV is 'standard', GAE_APPLICATION, GAE_SERVICE, "
            "GAE_VERSION and GAE_INSTANCE are set, and K_SERVICE is not)"
        )
        self.args: tuple[object, ...] = (
            f"DEFERRED_SECRET_KEYS is not set, and {reason}. Set it to a random text of at least 32 bytes, and use the "
            "same text in every process that defers or runs tasks. To make one, run "
            "`python -c 'import secrets; print(secrets.token_urlsafe(48))'`. If Cloud Tasks delivers tasks to a URL "
            "(DEFERRED_SERVICE_URLS), you can name the service account of their tokens instead "
            "(DEFERRED_SERVICE_ACCOUNT). "
            "The local server (`deferred-middleware serve`) sets it for you.",
        )


class UntrustedRequestError(DeferredError):
    """A request for a task's URL does not prove that the task queue sent it.

    ``check`` names the check that failed. The message is for the log, and holds nothing of the request. ``count`` is
    the number of requests that the process has refused so far, including this one.
    """

    def __init__(self, check: str, message: str) -> None:
        self.check = check
        self.count = 0
        super().__init__(message)


class BodyError(DeferredError):
    """The body of a task's request can't be read. ``status`` is the HTTP status of the response."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class CallError(DeferredError):
    """A call can't be deferred. ``label`` names the callable: ``module/qualname``, or its ``repr``."""

    def __init__(self, label: str, message: str) -> None:
        self.label = label
        super().__init__(message)


class NotCallableError(CallError, TypeError, ValueError):
    """The object given to ``defer()`` can't be called, or a call would not run its body."""


class NotImportableError(CallError, pickle.PicklingError, AttributeError):
    """The callable can't be found by import, so the task could not find it either."""


class ArgumentsError(CallError, TypeError):
    """The arguments don't match the callable's signature."""


class UnpicklableArgumentError(CallError, pickle.PicklingError, TypeError):
    """An argument can't be pickled. ``path`` locates the part that can't be, such as ``args[0].session``."""

    def __init__(self, label: str, path: str, message: str) -> None:
        self.path = path
        super().__init__(label, message)


class TaskContentError(DeferredError):
    """This version of the app can't read the call in a delivered task.

    The task is retried, because a newer version may be able to read it.
    """


class NotAllowedError(CallError, TaskContentError):
    """The callable is not in ``DEFERRED_ALLOWED_CALLABLES``.

    ``defer()`` raises it. If another version enqueued the task, the task is retried, because a newer version may allow
    the callable.
    """


class UnknownOptionError(DeferredError, TypeError):
    """Neither ``defer()`` nor the function has an argument with this name, which starts with an underscore.

    ``option`` is the name. ``suggestion`` is the most similar known name, or None if no name is similar.
    """

    def __init__(self, label: str, option: str, suggestion: str | None, message: str) -> None:
        self.label = label
        self.option = option
        self.suggestion = suggestion
        super().__init__(message)


class OptionError(DeferredError, ValueError, TypeError):
    """The value of an option of ``defer()`` is not accepted. ``option`` is its name, and ``value`` the value."""

    def __init__(self, option: str, value: object, message: str) -> None:
        self.option = option
        self.value = value
        super().__init__(f"{option}={value!r}: {message}")


class LocationError(DeferredError, RuntimeError):
    """The engine is Cloud Tasks, but the project or the region of its queues is not known, or not certain.

    ``variable`` is the environment variable that sets it.
    """

    def __init__(self, variable: str, problem: str) -> None:
        self.variable = variable
        super().__init__(f"Cloud Tasks can't be used: {problem}. Set {variable} to that of the app's queues.")


class PayloadError(TaskContentError):
    """The payload is not a pickled call: it is empty, truncated or damaged, or another program wrote it."""


class PayloadMissingError(PayloadError):
    """The payload was too large for the task, and can't be read from the datastore. ``key`` is its key there."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


class PayloadFinishedError(PayloadMissingError):
    """The payload was removed from the datastore because the task is done, but the queue delivered it again.

    ``retry_count`` is that of the attempt in which the call returned; None if it is not known.
    """

    def __init__(self, key: str, retry_count: int | None, message: str) -> None:
        self.retry_count = retry_count
        super().__init__(key, message)


class LayerError(DeferredError):
    """After the task was done, a layer of the app answered its request with ``status``, so the attempt failed."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"a layer of the app answered with {status} after the task was done")


class CallableNotFoundError(TaskContentError, ImportError):
    """The payload names a callable, or the class of an argument, that this version of the app does not have."""


class WarmupError(TaskContentError, ImportError):
    """The warm-up module can't be imported. ``module`` is its name."""

    def __init__(self, module: str, message: str) -> None:
        self.module = module
        super().__init__(message)


class NeverRanError(DeferredError, TypeError):
    """The task's callable returned but did not run its body, as a generator function does."""


class ServerError(DeferredError):
    """The local server can't start or continue. The message is one sentence for the person at the terminal."""


def nearest(name: str, known: Iterable[str], *, similarity: float = 0.6) -> str | None:
    """Return the known name that is most similar to ``name``, to suggest in a message; None if none is similar.

    ``similarity`` is the least similarity, from 0 to 1, as in :func:`difflib.get_close_matches`.
    """
    import difflib  # only needed for messages

    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=similarity)), None)
