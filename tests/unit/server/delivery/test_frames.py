"""The messages of the channel: what is written is read, and what is none is refused."""

from __future__ import annotations

import marshal
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.delivery import frames
from deferred_middleware.server.delivery.frames import BadFrameError, DeliveryResult, FrameReader

LATIN = st.text(st.characters(max_codepoint=255), max_size=20)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 2**40),
            st.booleans(),
            st.dictionaries(LATIN, LATIN, max_size=3),
            st.one_of(st.binary(max_size=50), st.integers(0, 3).map(lambda more: bytes(frames.INLINE_BYTES + more))),
        ),
        max_size=5,
    ),
    st.integers(1, 100),
)
def test_deliveries_are_read_as_written(deliveries: list[tuple[int, bool, dict[str, str], bytes]], limit: int) -> None:
    """The deliveries in a message, and the bodies that follow in parts, arrive as they were sent."""
    message = frames.deliver_frame(limit, deliveries)
    ((kind, content),) = FrameReader().feed(message)
    read_limit, read = frames.read_deliver(content)
    assert (kind, read_limit) == (frames.DELIVER, limit)
    bodies = []
    for delivered, (number, _first, _environ, body) in zip(read, deliveries, strict=True):
        whole = delivered.body
        if whole is None:
            parts = [FrameReader().feed(head + bytes(part))[0][1] for head, part in frames.body_frames(number, body)]
            assert {frames.read_body(part)[0] for part in parts} == {number}
            whole = b"".join(frames.read_body(part)[1] for part in parts)
        bodies.append(whole)
        assert delivered.length == len(body)
    assert bodies == [body for _number, _first, _environ, body in deliveries]
    assert [(one.number, one.is_first, one.environ) for one in read] == [one[:3] for one in deliveries]


@given(
    st.lists(
        st.builds(
            DeliveryResult,
            st.integers(0, 2**40),
            st.one_of(st.none(), st.integers(100, 599)),
            st.one_of(st.none(), LATIN),
            LATIN,
            st.integers(0, 2**40),
            st.one_of(st.none(), st.text(max_size=20)),
        ),
        max_size=5,
    ),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_results_are_read_however_they_arrive(results: list[DeliveryResult], sizes: list[int]) -> None:
    """Messages that arrive in pieces of any size are the same messages."""
    data = frames.results_frame(results) + frames.handed_back_frame([7, 8])
    reader = FrameReader()
    found = []
    position = 0
    while data:
        size = sizes[position % len(sizes)]
        found += reader.feed(data[:size])
        data = data[size:]
        position += 1
    assert [kind for kind, _content in found] == [frames.RESULTS, frames.HANDED_BACK]
    assert frames.read_results(found[0][1]) == results
    assert frames.read_handed_back(found[1][1]) == [7, 8]
    assert not reader.has_part


def test_a_part_of_a_message_is_noticed() -> None:
    """A reader knows that a message has begun, so that the end of the channel can cut it off."""
    reader = FrameReader()
    assert reader.feed(frames.handed_back_frame([1])[:-1]) == []
    assert reader.has_part


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (struct.pack(">BBI", frames.VERSION + 1, frames.RESULTS, 2) + b"[]", "version 2"),
        (struct.pack(">BBI", frames.VERSION, 99, 2) + b"[]", "unknown kind 99"),
        (struct.pack(">BBI", frames.VERSION, frames.RESULTS, frames.MAX_CONTENT_BYTES + 1), "was announced"),
        (b"HTTP/1.1 200 OK\r\n", "version 72"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, problem: str) -> None:
    """Another version, an unknown kind and a length beyond the limit are refused before the content is read."""
    with pytest.raises(BadFrameError, match=problem):
        FrameReader().feed(data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"7",
        b"[[]]",
        b'[[1, 200, null, "", 5, null, 6]]',
        b'[["1", 200, null, "", 5, null]]',
        b'[[1, "200", null, "", 5, null]]',
        b'[[1, 200, 3, "", 5, null]]',
        b"[[1, 200, null, null, 5, null]]",
        b'[[1, 200, null, "", null, null]]',
        b'[[true, 200, null, "", 5, null]]',
        b"\xff\xfe",
    ],
)
def test_results_that_are_none_are_refused(content: bytes) -> None:
    """A result needs each value in its type."""
    with pytest.raises(BadFrameError):
        frames.read_results(content)


@pytest.mark.parametrize("content", [b"", b"{}", b"7", b'["1"]', b"[null]", b"[true]", b"\xff"])
def test_numbers_that_are_none_are_refused(content: bytes) -> None:
    """What is handed back is a list of numbers."""
    with pytest.raises(BadFrameError):
        frames.read_handed_back(content)


def _content(heads: Any, bodies: bytes) -> bytes:
    head = marshal.dumps(heads)
    return struct.pack(">I", len(head)) + head + bodies


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\5{",
        _content([1], b""),
        _content([1, [[1, True, {}]]], b""),
        _content([1, [[1, True, {}, 5]]], b"four"),
        _content([1, [[1, True, {}, 3]]], b"four"),
        _content([1, [[1, True, {}, "3"]]], b"two"),
    ],
)
def test_deliveries_that_are_none_are_refused(content: bytes) -> None:
    """The heads and the bodies of deliveries have to fit together."""
    with pytest.raises(BadFrameError):
        frames.read_deliver(content)


def test_a_part_without_a_number_is_refused() -> None:
    """A part of a body says whose it is."""
    with pytest.raises(BadFrameError):
        frames.read_body(b"1234567")


def test_a_message_that_is_too_long_is_not_sent() -> None:
    """The limit holds for the writer too."""
    with pytest.raises(ValueError, match="too many"):
        frames.frame(frames.RESULTS, bytes(frames.MAX_CONTENT_BYTES + 1))
