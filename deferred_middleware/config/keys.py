"""Secret keys: texts that sign tasks, and never show themselves.

They belong to the process, not to the code: settings made in code that say nothing of keys have the environment's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final

MIN_KEY_BYTES: Final = 32


class SecretKey(str):
    """A secret key, as a text that doesn't show itself where it is printed, formatted or logged."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret key>"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def to_bytes(self) -> bytes:
        """Return the key's bytes; a variable of the environment may hold some that are no UTF-8."""
        return self.encode("utf-8", "surrogateescape")


def parse(value: str | Iterable[str]) -> tuple[SecretKey, ...]:
    """Return the keys in a text that separates them by commas, or in a list.

    Raises :class:`ValueError`, which holds nothing of them, for keys that can't be used.
    """
    texts = str.split(value, ",") if isinstance(value, str) else value
    keys = tuple(SecretKey(str.strip(text)) for text in texts)
    if any(len(key.to_bytes()) < MIN_KEY_BYTES for key in keys):
        raise ValueError("a key is too short")
    if len(set(keys)) < len(keys):
        raise ValueError("a key is there twice")
    return keys


_of_process: tuple[SecretKey, ...] = ()


def of_process() -> tuple[SecretKey, ...]:
    """Return the keys of this process's environment."""
    return _of_process


def install(keys: tuple[SecretKey, ...]) -> None:
    """Make ``keys`` the process's."""
    global _of_process
    _of_process = keys


def make() -> SecretKey:
    """Return a new random key."""
    return SecretKey(secrets.token_urlsafe(48))
