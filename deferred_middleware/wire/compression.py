"""Decompress payloads up to a limit, because a few bytes can describe content that fills the memory."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

ZLIB_PREFIX: Final = b"\x78"
"""The first byte of compressed data (RFC 1950); no pickle starts with it."""


@dataclass(frozen=True, kw_only=True)
class Decompressed:
    """The first bytes of the content of compressed data.

    If ``exceeds_limit`` is true, the content has more bytes. If ``is_cut_off`` is true, the compressed data lacks its
    end. ``trailing_bytes`` is the number of bytes after the compressed data.
    """

    content: bytes
    exceeds_limit: bool
    is_cut_off: bool
    trailing_bytes: int


def looks_compressed(data: bytes) -> bool:
    """Tell whether a payload is compressed, by its first byte."""
    return data.startswith(ZLIB_PREFIX)


def decompress(data: bytes, max_bytes: int) -> Decompressed:
    """Return at most ``max_bytes`` of the content of compressed data. Raises :class:`zlib.error` for damaged data."""
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(data, max_bytes + 1)
    exceeds_limit = len(content) > max_bytes
    return Decompressed(
        content=content[:max_bytes] if exceeds_limit else content,
        exceeds_limit=exceeds_limit,
        is_cut_off=not exceeds_limit and not decompressor.eof,
        trailing_bytes=len(decompressor.unused_data),
    )
