"""The conversions of settings: each makes a setting's value from a variable's text, or checks a value given in code.

Each raises :class:`ValueError` for a value that is not accepted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from deferred_middleware.wire import protocol

_SERVICE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MODULE_NAME: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_CALLABLE_NAME: Final = re.compile(rf"{_MODULE_NAME.pattern}:(\*|{_MODULE_NAME.pattern})")
_PATH: Final = re.compile(r"/[!-)+->@-~]*\*?")  # printable, without ? and, except at the end, *
_URL_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_EMAIL: Final = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,255}")
_AUDIENCE: Final = re.compile(r"[!-~]{1,1000}")
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def queues(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return the queue names in a list."""
    names = value.split(",") if isinstance(value, str) else value
    queues = tuple(name.strip() for name in names)
    if not queues or not all(protocol.QUEUE_NAME_PATTERN.fullmatch(name) for name in queues):
        raise ValueError(value)
    if len(set(queues)) < len(queues):
        raise ValueError(value)
    return queues


def service(value: str | None) -> str | None:
    """Return a service's name."""
    if value is not None and not _SERVICE_NAME.fullmatch(value):
        raise ValueError(value)
    return None if value is None else str.__str__(value)  # of an enum member, its value


def version(value: str) -> str:
    """Return a version's name, or one of the words that stand for a version."""
    if not _SERVICE_NAME.fullmatch(value):
        raise ValueError(value)
    return str.__str__(value)


def module(value: str | None) -> str | None:
    """Return a module's dotted name."""
    if value is not None and not _MODULE_NAME.fullmatch(value):
        raise ValueError(value)
    return None if value is None else str.__str__(value)  # of an enum member, its value


def callables(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return a list of callables: module:qualname, or module:* for the functions that a module defines itself."""
    names = tuple(name.strip() for name in (value.split(",") if isinstance(value, str) else value))
    if not all(_CALLABLE_NAME.fullmatch(name) for name in names):
        raise ValueError(value)
    return names


def paths(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the paths in a list. A ``*`` at the end of a path stands for any text, but ``/*`` would be every path."""
    paths = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)
    if not all(_PATH.fullmatch(path) and path != "/*" for path in paths):
        raise ValueError(value)
    return paths


def path(value: str | None) -> str | None:
    """Return a path."""
    if value is not None and (not _PATH.fullmatch(value) or value.startswith("//") or value[-1] == "*" or "#" in value):
        raise ValueError(value)
    return None if value is None else str.__str__(value)


def email(value: str | None) -> str | None:
    """Return the e-mail address of a service account."""
    if value is not None and not _EMAIL.fullmatch(value):
        raise ValueError(value)
    return None if value is None else str.__str__(value)


def audience(value: str | None) -> str | None:
    """Return the audience of a token, which is a URL or another text without blanks."""
    if value is not None and not _AUDIENCE.fullmatch(value):
        raise ValueError(value)
    return None if value is None else str.__str__(value)


def optional(convert: Callable[[str], str]) -> Callable[[str | None], str | None]:
    """Return a conversion that also accepts None."""
    return lambda value: None if value is None else convert(value)


def url_prefix(value: str) -> str:
    """Return a path without a slash at its end."""
    if not _URL_PREFIX.fullmatch(value):
        raise ValueError(value)
    return str.__str__(value)


def boolean(value: str | bool) -> bool:
    """Return a boolean."""
    if isinstance(value, bool):
        return value
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise ValueError(value)


def integer(lowest: int, highest: int) -> Callable[[str | int], int]:
    """Return a conversion to a whole number from ``lowest`` to ``highest``."""

    def convert(value: str | int) -> int:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]+", value):
            raise ValueError(value)
        number = int(value)
        if not lowest <= number <= highest:
            raise ValueError(value)
        return number

    return convert


def seconds(lowest: float, highest: float) -> Callable[[str | float], float]:
    """Return a conversion that accepts numbers of seconds from ``lowest`` to ``highest``."""

    def convert(value: str | float) -> float:
        if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)):
            raise ValueError(value)
        seconds = float(value)
        if not lowest <= seconds <= highest:
            raise ValueError(value)
        return seconds

    return convert


def log_level(value: str | int) -> int:
    """Return the number of a log level."""
    if isinstance(value, str) and value.upper() in LEVELS:
        return int(getattr(logging, value.upper()))
    return integer(0, 100)(value)


def one_of(*words: str) -> Callable[[str], str]:
    """Return a conversion that accepts only ``words``."""

    def convert(value: str) -> str:
        if value not in words:
            raise ValueError(value)
        return str.__str__(value)

    return convert
