"""The options of ``defer``: its arguments with a leading underscore, and the checks of their values."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from deferred_middleware.calls.callables import AnyCallable, Label, looked_at, without_partials
from deferred_middleware.errors import DeferredWarning, OptionError, UnknownOptionError, nearest
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    import inspect

    from google.appengine.api import taskqueue

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a header's name (RFC 9110, section 5.6.2)
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # a header's value (RFC 9110, section 5.5)
_TARGET: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?){0,2}")
# The only header of the platform's that a task may set. It makes an attempt fail at once if no instance is free.
_ALLOWED_PLATFORM_HEADERS: Final = ("x-appengine-fail-fast", "x-appengine-failfast")
_MAX_ETA_SECONDS: Final = protocol.MAX_ETA_DAYS * 24 * 3600


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How and when a call is enqueued; None where the settings or the queue decide."""

    queues: tuple[str, ...] | None = None
    """The queues to choose from."""
    eta_posix: float | None = None
    """The earliest time at which the task may run, in seconds since 1970."""
    name: str | None = None
    target: str | None = None
    transactional: bool | Literal["auto"] = False
    """Whether to enqueue in the current datastore transaction; ``"auto"``: if there is one."""
    retry_options: taskqueue.TaskRetryOptions | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    deadline_seconds: float | None = None
    """The dispatch deadline: how long an attempt may take."""
    url: str | None = None
    max_attempts: int | None = None
    """The total number of attempts, whatever the queue allows."""
    earlier_attempts: int = 0
    """The number of attempts in earlier tasks that this task follows."""

    @classmethod
    def take_from(
        cls, kwargs: Mapping[str, Any], label: Label, signature: inspect.Signature | None
    ) -> tuple[Options, dict[str, Any]]:
        """Split ``kwargs`` into options and the call's own arguments.

        An option that is None counts as not given. Raises :class:`UnknownOptionError` for a name with a leading
        underscore that is neither an option nor an argument of the function, and :class:`OptionError` for a value that
        is not accepted.
        """
        own = {name: value for name, value in kwargs.items() if name not in _CHECKS}
        for name in own:
            if name.startswith("_"):
                _check_own(name, label, signature)
        if kwargs.get("_eta") is not None and kwargs.get("_countdown") is not None:
            raise OptionError(
                "_countdown",
                kwargs["_countdown"],
                "_eta is given too. Give only one of the two.",
            )
        values: dict[str, Any] = {}
        for name, (field, check) in _CHECKS.items():
            value = kwargs.get(name)
            if value is not None:
                values[field] = check(value)
        if values.get("transactional") is True and "name" in values:
            raise OptionError(
                "_name",
                values["name"],
                "a task that is added in a transaction can't have a name.",
            )
        return cls(**values), own


NO_OPTIONS: Final = Options()

DECLARED_ATTRIBUTE: Final = "__deferred_options__"
"""The attribute of a function that holds the options that ``@task`` declares."""


def with_declared(func: AnyCallable, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return ``kwargs`` and the options that ``func`` declares; an option in ``kwargs`` takes precedence."""
    # A bound method has the attributes of its function.
    declared = looked_at(without_partials(func), DECLARED_ATTRIBUTE)
    if not isinstance(declared, Mapping) or not declared:
        return kwargs
    if kwargs.get("_eta") is not None:
        declared = {name: value for name, value in declared.items() if name != "_countdown"}
    return {**declared, **kwargs}


def _check_own(name: str, label: Label, signature: inspect.Signature | None) -> None:
    """Raise unless ``name`` is an argument of the function itself."""
    parameters = signature.parameters if signature is not None else {}
    if name in parameters:
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    suggestion = nearest(name, _CHECKS, similarity=0.75 if takes_any else 0.5)
    if takes_any and suggestion is None:
        return
    message = f"{name} is neither an option of defer() nor an argument of {label}."
    if takes_any:
        message = (
            f"{name} looks like a misspelt option of defer(). If it is one of the **kwargs of {label}, pass it in a "
            "functools.partial."
        )
    if suggestion:
        message += f" Did you mean {suggestion}?"
    else:
        message += f" The options are {', '.join(_CHECKS)}."
    raise UnknownOptionError(str(label), name, suggestion, message)


def _rejection(kind: str, option: str, value: object, message: str) -> OptionError:
    """Return the OptionError of the class ``kind``, which is also a type of the SDK. This imports the SDK."""
    from deferred_middleware.errors import sdk

    error: OptionError = getattr(sdk, kind)(option, value, message)
    return error


def _text(value: str) -> str:
    """Return ``value`` as a plain ``str``. The ``str()`` and ``format()`` of an enum member give its name instead."""
    return str.__str__(value)


def _queue_name(value: object) -> str:
    if not isinstance(value, str) or not protocol.QUEUE_NAME_PATTERN.fullmatch(value):
        raise _rejection(
            "InvalidQueueNameError",
            "_queue",
            value,
            "a queue name has 1 to 100 of the characters a-z, A-Z, 0-9 and -.",
        )
    return _text(value)


def _queues(value: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_queue_name(value),)
    try:
        names = tuple(value)
    except TypeError:
        raise OptionError("_queue", value, "expected a queue name or a list of queue names.") from None
    if not names:
        raise OptionError("_queue", value, "the list of queues is empty.")
    return tuple(_queue_name(name) for name in names)


def _seconds(option: str, value: object) -> float:
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise OptionError(option, value, "expected a number of seconds or a timedelta.")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if math.isnan(seconds):
        raise OptionError(option, value, "expected a number, not NaN.")
    return seconds


def _countdown(value: object) -> float:
    seconds = _seconds("_countdown", value)
    now = time.time()
    if seconds < 0:
        warn(f"_countdown={value!r} is negative, so the task runs now.")
        return now
    return _not_too_late("_countdown", value, now + seconds, now)


def _eta(value: object) -> float:
    if not isinstance(value, datetime.datetime):
        raise _rejection("InvalidEtaError", "_eta", value, "expected a datetime, preferably with a time zone.")
    if value.utcoffset() is None:
        warn(f"_eta={value!r} has no time zone. It is interpreted as local time, as the SDK does.")
    now = time.time()
    try:
        eta = value.timestamp()
    except (OverflowError, ValueError, OSError):
        eta = math.inf if value.year > 1970 else 0.0
    if eta < now:
        warn(f"_eta={value!r} is in the past, so the task runs now.")
        return now
    return _not_too_late("_eta", value, eta, now)


def _not_too_late(option: str, value: object, eta: float, now: float) -> float:
    if eta - now > _MAX_ETA_SECONDS:
        raise _rejection(
            "InvalidEtaError",
            option,
            value,
            f"a task can be at most {protocol.MAX_ETA_DAYS} days ({_MAX_ETA_SECONDS:,} s) in the future. Store the "
            "date, and let a cron job defer the call when the date is near.",
        )
    return eta


def _name(value: object) -> str:
    if not isinstance(value, str) or not protocol.TASK_NAME_PATTERN.fullmatch(value):
        raise _rejection(
            "InvalidTaskNameError",
            "_name",
            value,
            "a task name has 1 to 500 of the characters a-z, A-Z, 0-9, _ and -. Without _name, the queue chooses one.",
        )
    return _text(value)


def _target(value: object) -> str:
    if not isinstance(value, str) or not _TARGET.fullmatch(value):
        raise OptionError(
            "_target",
            value,
            "expected <service>, <version>.<service> or <instance>.<version>.<service>.",
        )
    return _text(value)


def _transactional(value: object) -> bool | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not isinstance(value, bool):
        raise OptionError("_transactional", value, 'expected True, False or "auto" (True inside a transaction).')
    return value


def _retry_options(value: object) -> taskqueue.TaskRetryOptions:
    from deferred_middleware.errors.sdk_types import is_retry_options, taskqueue

    if is_retry_options(value):
        return value
    if not isinstance(value, Mapping):
        raise OptionError("_retry_options", value, "expected a TaskRetryOptions or a dict of its arguments.")
    try:
        options: taskqueue.TaskRetryOptions = taskqueue.TaskRetryOptions(**value)
        return options
    except (taskqueue.InvalidTaskRetryOptionsError, TypeError) as error:
        raise _rejection("InvalidRetryOptionsError", "_retry_options", value, f"{error}.") from error


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise OptionError("_headers", value, "expected a dict of header names and values.")
    for name, content in value.items():
        problem = _problem_of_header(name, content)
        if problem:
            raise _rejection("InvalidHeaderError", "_headers", {name: content}, problem)
    return {_text(name): _text(content) for name, content in value.items()}


def _problem_of_header(name: object, content: object) -> str | None:
    if not isinstance(name, str) or not isinstance(content, str):
        return "the name and the value of a header must be strings."
    if not _TOKEN.fullmatch(name):
        return "this is not a valid header name."
    if not _VALUE.fullmatch(content):
        return "the value of a header must be one line of printable Latin-1 characters."
    lower = name.lower()
    if lower.startswith(("x-appengine-", "x-google-")) and lower not in _ALLOWED_PLATFORM_HEADERS:
        return "the platform drops headers with this name. Choose another name."
    if lower.startswith("x-deferred-") or lower == "content-length":
        return "deferred_middleware sets this header itself. Choose another name."
    if lower == "host":
        return "to send a task to another service, use _target instead of a Host header."
    return None


def _deadline(value: object) -> float:
    seconds = _seconds("_deadline", value)
    shortest, longest = (
        protocol.MIN_DISPATCH_DEADLINE_SECONDS,
        protocol.MAX_DISPATCH_DEADLINE_SECONDS,
    )
    if not shortest <= seconds <= longest:
        raise _rejection(
            "InvalidDispatchDeadlineError",
            "_deadline",
            value,
            f"a dispatch deadline must be {shortest} to {longest:,} seconds.",
        )
    return seconds


def _max_attempts(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError("_max_attempts", value, "expected a whole number, at least 1.")
    return int(value)


def _url(value: object) -> str:
    if not isinstance(value, str):
        raise OptionError("_url", value, "expected a path as a string.")
    # Printable ASCII without "?" and "#"; two slashes at the start would begin a host name.
    if not re.fullmatch(r"/(?!/)[\x21-\x7e]*", value) or "?" in value or "#" in value:
        raise _rejection(
            "InvalidUrlError",
            "_url",
            value,
            "expected a percent-encoded path of this app that starts with one slash and has no query.",
        )
    return _text(value)


def warn(message: str) -> None:
    """Issue a DeferredWarning for the line of code outside the package that called it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("deferred_middleware."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DeferredWarning, stacklevel=level)


_CHECKS: Final[Mapping[str, tuple[str, Callable[[Any], object]]]] = {
    "_queue": ("queues", _queues),
    "_countdown": ("eta_posix", _countdown),
    "_eta": ("eta_posix", _eta),
    "_name": ("name", _name),
    "_target": ("target", _target),
    "_transactional": ("transactional", _transactional),
    "_retry_options": ("retry_options", _retry_options),
    "_headers": ("headers", _headers),
    "_deadline": ("deadline_seconds", _deadline),
    "_max_attempts": ("max_attempts", _max_attempts),
    "_url": ("url", _url),
}
"""The options: for each one its field of Options, and the check that returns the field's value."""

OPTION_NAMES: Final = tuple(_CHECKS)
"""The names of the options, with the leading underscore."""
