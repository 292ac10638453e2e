"""Errors of the package: one root, :class:`DeferredError`.

Every error says what was wrong, with which value, and what to do about it, and keeps the evidence as attributes. Each
child is also the built-in type that callers of older code already catch. The errors that are one of the SDK's own types
besides are in :mod:`deferred_middleware.errors.sdk`, because making them imports the SDK.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable


class DeferredError(Exception):
    """Anything that goes wrong in deferred_middleware."""


class DeferredWarning(UserWarning):
    """Something in a ``defer()`` or in the environment that works, but hardly as meant."""


class SettingsError(DeferredError, ValueError):
    """A setting has a value that can't be used.

    ``variable`` is the environment variable's name, ``value`` what it holds.
    """

    def __init__(self, variable: str, value: object, accepted: str) -> None:
        self.variable = variable
        self.value = value
        self.accepted = accepted
        super().__init__(f"{variable}={value!r} can't be used: it takes {accepted}.")


class SecretKeyMissingError(SettingsError):
    """Signatures are required, and there is no key to check them with."""

    def __init__(self, *, on_app_engine_standard: bool) -> None:
        super().__init__("DEFERRED_SECRET_KEYS", None, "a random text of at least 32 bytes")
        why = (
            "signatures are required (DEFERRED_REQUIRE_SIGNATURE)"
            if on_app_engine_standard
            else "this is not App Engine standard (GAE_ENV is not 'standard'), which keeps strangers from tasks' URLs: "
            "here anybody could have code run"
        )
        self.args = (
            f"DEFERRED_SECRET_KEYS is not set, and {why}. Set it to a random text of at least 32 bytes, the same in "
            "every process that defers or runs tasks; `python -c 'import secrets; print(secrets.token_urlsafe(48))'` "
            "makes one. The local server (`deferred-middleware serve`) does all this by itself.",
        )


class UntrustedRequestError(DeferredError):
    """A request for a task's URL is not believed to be the task queue's.

    ``check`` names the check that failed; the message, which is for the log, holds nothing of the request. ``count`` is
    how many requests the process has refused, this one included.
    """

    def __init__(self, check: str, message: str) -> None:
        self.check = check
        self.count = 0
        super().__init__(message)


class BodyError(DeferredError):
    """The body of a task's request can't be had. ``status`` is the HTTP status to answer with."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class CallError(DeferredError):
    """A call can't be deferred. ``label`` names the callable, as ``module/qualname`` or its ``repr``."""

    def __init__(self, label: str, message: str) -> None:
        self.label = label
        super().__init__(message)


class NotCallableError(CallError, TypeError, ValueError):
    """What was given to ``defer()`` can't be called, or calling it would not run its body."""


class NotImportableError(CallError, pickle.PicklingError, AttributeError):
    """The callable can't be found again by import, so that the task could not find it either."""


class ArgumentsError(CallError, TypeError):
    """The arguments don't fit the callable's signature."""


class UnpicklableArgumentError(CallError, pickle.PicklingError, TypeError):
    """An argument can't be pickled. ``path`` says where it is, such as ``args[0].session``."""

    def __init__(self, label: str, path: str, message: str) -> None:
        self.path = path
        super().__init__(label, message)


class TaskContentError(DeferredError):
    """A delivered task can't be turned into a call on this version of the app.

    It is retried: a newer version may be able to.
    """


class NotAllowedError(CallError, TaskContentError):
    """The callable is not in ``DEFERRED_ALLOWED_CALLABLES``.

    ``defer()`` raises it, and a task that another version enqueued is retried: a newer one may allow it.
    """


class UnknownOptionError(DeferredError, TypeError):
    """An ``_option`` that neither ``defer()`` nor the function knows.

    ``option`` is its name, ``suggestion`` the nearest known one, if any is near.
    """

    def __init__(self, label: str, option: str, suggestion: str | None, message: str) -> None:
        self.label = label
        self.option = option
        self.suggestion = suggestion
        super().__init__(message)


class OptionError(DeferredError, ValueError, TypeError):
    """An option of ``defer()`` has a value that can't be used. ``option`` is its name, ``value`` what was given."""

    def __init__(self, option: str, value: object, message: str) -> None:
        self.option = option
        self.value = value
        super().__init__(f"{option}={value!r}: {message}")


class LocationError(DeferredError, RuntimeError):
    """Cloud Tasks is to be used, and the project or the region of its queues is not known or doubtful.

    ``variable`` is the environment variable that says it.
    """

    def __init__(self, variable: str, problem: str) -> None:
        self.variable = variable
        super().__init__(f"Cloud Tasks can't be used: {problem}. Set {variable} to that of the App Engine app.")


class PayloadError(TaskContentError):
    """The payload is not a pickled call: truncated, empty, damaged, or written by something else."""


class PayloadMissingError(PayloadError):
    """The payload was too large for the task, and can't be had from the datastore. ``key`` names it there."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


class PayloadFinishedError(PayloadMissingError):
    """The payload was removed from the datastore because the task is done; the queue delivers it once more."""


class CallableNotFoundError(TaskContentError, ImportError):
    """The payload names a callable, or a class of an argument, that this version of the app doesn't have."""


class WarmupError(TaskContentError, ImportError):
    """The warm-up module can't be imported. ``module`` is its name."""

    def __init__(self, module: str, message: str) -> None:
        self.module = module
        super().__init__(message)


class NeverRanError(DeferredError, TypeError):
    """The task's callable returned without having run its body, as a generator function does."""


class ServerError(DeferredError):
    """The local server can't start or go on. Its message is one sentence for the person at the terminal."""


def nearest(name: str, known: Iterable[str], *, similarity: float = 0.6) -> str | None:
    """Return the known name that a misspelt ``name`` probably means; None if none is near.

    ``similarity`` is how alike the names must be, from 0 to 1, as in :func:`difflib.get_close_matches`.
    """
    import difflib  # for error messages only

    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=similarity)), None)
