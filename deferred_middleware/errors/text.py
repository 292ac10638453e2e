"""The exceptions and values of users as text that can be logged and sent.

An exception of a user may refuse attributes, its ``str`` or ``repr`` may raise, and its text may have lone surrogates,
which UTF-8 can't encode. The functions here never raise for such an object.
"""

from __future__ import annotations

import contextlib
import logging
import reprlib
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, cast

_MAX_CAUSES: Final = 20
# The descriptors of BaseException, which a class of a user can't replace.
_TRACEBACK: Final[Any] = vars(BaseException)["__traceback__"]
_CAUSE: Final[Any] = vars(BaseException)["__cause__"]


def encodable(text: str) -> str:
    """Return ``text`` with a backslash escape in place of each character that UTF-8 can't encode."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    """Return ``text`` with its control characters escaped, so that it can't control a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, or a note that it raised."""
    return _text_by(str, error, "str")


def shortened(value: object, limits: reprlib.Repr = reprlib.aRepr) -> str:
    """Return a short ``repr`` of ``value``, or a note that it raised."""
    return _text_by(limits.repr, value, "repr")


def _text_by(function: Callable[[Any], str], value: object, name: str) -> str:
    try:
        return encodable(function(value))
    except BaseException as error:  # noqa: BLE001 - the code of the value may raise anything
        return f"<{type(value).__name__}, whose {name} failed: {type(error).__name__}>"


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return the traceback of ``error``. No code of the exception's class runs."""
    return cast("TracebackType | None", _TRACEBACK.__get__(error))


def cause_of(error: BaseException) -> BaseException | None:
    """Return the cause of ``error``. No code of the exception's class runs."""
    return cast("BaseException | None", _CAUSE.__get__(error))


def set_traceback(error: BaseException, found: TracebackType | None) -> None:
    """Set the traceback of ``error``. No code of the exception's class runs."""
    BaseException.with_traceback(error, found)


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Set the cause of ``error``. No code of the exception's class runs."""
    _CAUSE.__set__(error, cause)


def formatted(error: BaseException) -> str:
    """Return the traceback of ``error`` and of its causes as text."""
    text = _formatted_by_python(error)
    return _formatted_by_us(error) if text is None else encodable(text)


def _formatted_by_python(error: BaseException) -> str | None:
    """Return the text that ``traceback`` makes; None if the exception doesn't let it."""
    try:
        return "".join(traceback.format_exception(type(error), error, traceback_of(error)))
    except BaseException:  # noqa: BLE001 - attributes of the exception may raise anything
        return None


def _formatted_by_us(error: BaseException) -> str:
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and len(chain) < _MAX_CAUSES and not any(found is other for other in chain):
        chain.append(found)
        found = cause_of(found)
    parts = []
    for one in reversed(chain):
        frames = ""
        with contextlib.suppress(Exception):
            frames = "Traceback (most recent call last):\n" + "".join(traceback.format_tb(traceback_of(one)))
        parts.append(f"{frames}{type(one).__module__}.{type(one).__qualname__}: {text_of(one)}\n")
    return encodable("\nThe above exception was the direct cause of the following exception:\n\n".join(parts))


def log_error(
    logger: logging.Logger,
    level: int,
    message: str,
    *args: object,
    error: BaseException,
    extra: dict[str, object] | None = None,
) -> None:
    """Log ``message`` with the traceback of ``error``, which may be hostile. The record has ``error`` itself."""
    if not logger.isEnabledFor(level):
        return
    exc_info = (type(error), error, traceback_of(error))
    text = _formatted_by_python(error)
    if text is not None and _is_encodable(text):
        logger.log(level, message, *args, exc_info=exc_info, extra=extra, stacklevel=2)
        return
    file, line, function, _ = logger.findCaller(stacklevel=2)
    record = logger.makeRecord(logger.name, level, file, line, message, args, exc_info, function, extra)
    # A formatter uses this text, and doesn't format the exception itself.
    record.exc_text = (_formatted_by_us(error) if text is None else encodable(text)).rstrip("\n")
    logger.handle(record)


def _is_encodable(text: str) -> bool:
    return text.isascii() or encodable(text) == text
