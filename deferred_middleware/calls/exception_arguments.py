"""Find the exceptions among the arguments, because pickle can't read back every exception that it writes.

Pickle makes an exception again by calling its class with ``args``. If ``__init__`` takes other arguments than it passes
to ``super().__init__()``, the call fails, and every attempt of a task that carries the exception would fail too.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from deferred_middleware.calls.references import NamePickler


class _Finder(NamePickler):
    """Collects the exceptions in an object while it pickles the object."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), pickle.HIGHEST_PROTOCOL)
        self.exceptions: list[BaseException] = []

    def reducer_override(self, obj: Any) -> Any:
        """Note an exception."""
        if issubclass(type(obj), BaseException):
            self.exceptions.append(obj)
        return super().reducer_override(obj)


def exceptions_in(value: object) -> list[BaseException]:
    """Return the exceptions anywhere in ``value``, which has to be picklable; an outer one before those inside it."""
    finder = _Finder()
    finder.dump(value)
    return finder.exceptions
