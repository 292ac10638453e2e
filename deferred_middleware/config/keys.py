"""Secret keys: texts that sign tasks, and that are never printed, formatted or logged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MIN_KEY_BYTES: Final = 32


class SecretKey(str):
    """A secret key: a text that shows a placeholder where it is printed, formatted or logged."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret key>"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def to_bytes(self) -> bytes:
        """Return the key's bytes; an environment variable may hold bytes that are not UTF-8."""
        return self.encode("utf-8", "surrogateescape")


def parse(value: str | Iterable[str]) -> tuple[SecretKey, ...]:
    """Return the keys in a list, or in a text that separates them by commas.

    Raises :class:`ValueError` for a key that is too short or given twice. The error holds no part of the keys.
    """
    texts = str.split(value, ",") if isinstance(value, str) else value
    keys = tuple(SecretKey(str.strip(text)) for text in texts)
    if any(len(key.to_bytes()) < MIN_KEY_BYTES for key in keys):
        raise ValueError("a key is too short")
    if len(set(keys)) < len(keys):
        raise ValueError("a key is given twice")
    return keys


def make() -> SecretKey:
    """Return a new random key."""
    import secrets  # few processes make a key

    return SecretKey(secrets.token_urlsafe(48))
