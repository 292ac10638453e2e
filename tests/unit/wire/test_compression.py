"""Tests that compressed payloads are decompressed up to a limit."""

from __future__ import annotations

import zlib

import pytest

from deferred_middleware.wire.compression import Decompressed, decompress, looks_compressed

CONTENT = b"x" * 1000


@pytest.mark.parametrize(
    ("data", "limit", "expected"),
    [
        (zlib.compress(CONTENT), 1000, (CONTENT, False, False, 0)),
        (zlib.compress(CONTENT), 999, (CONTENT[:999], True, False, 0)),
        (zlib.compress(CONTENT) + b"more", 1000, (CONTENT, False, False, 4)),
        (zlib.compress(CONTENT)[:-1], 1000, (CONTENT, False, True, 0)),
        (zlib.compress(b""), 0, (b"", False, False, 0)),
    ],
)
def test_decompression_reports_what_is_left(data: bytes, limit: int, expected: tuple[bytes, bool, bool, int]) -> None:
    """The result says whether content exceeds the limit, the end is missing, or bytes follow the stream."""
    content, exceeds_limit, is_cut_off, trailing_bytes = expected

    assert looks_compressed(data)
    assert decompress(data, limit) == Decompressed(
        content=content, exceeds_limit=exceeds_limit, is_cut_off=is_cut_off, trailing_bytes=trailing_bytes
    )


def test_damaged_data_is_an_error() -> None:
    """Data that only starts like compressed data raises zlib's error."""
    with pytest.raises(zlib.error):
        decompress(b"\x78 is a letter", 1000)
