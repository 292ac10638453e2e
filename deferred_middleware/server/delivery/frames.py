"""The messages between the queue process and an app process, which deliver tasks and return their results.

Both sides send frames over one socket pair: a header of six bytes (version, kind, and length of the content), and the
content. The queue process sends :data:`DELIVER`, :data:`BODY` and :data:`WITHDRAW`; the app process answers with
:data:`RESULTS` and :data:`HANDED_BACK`. Each delivery has a number. Its lowest bits are the delivery's slot in the
shared memory (:mod:`~deferred_middleware.server.delivery.begun`), where one follows another.

What goes to the app process is marshalled, because it is a lot and both processes run the same Python. What comes back
is JSON: :mod:`marshal` may crash on bytes that were made up, and an app may write anything to its sockets.

A body that is longer than :data:`INLINE_BYTES` follows in parts, with other frames between them, so that a large task
doesn't hold up small ones.
"""

from __future__ import annotations

import json
import marshal
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

VERSION: Final = 1
"""Both sides refuse another version: the package may be replaced while the server runs."""

DELIVER: Final = 1
BODY: Final = 2
WITHDRAW: Final = 3
RESULTS: Final = 4
HANDED_BACK: Final = 5

WITHDRAW_ALL: Final = b"all"
WITHDRAW_AHEAD: Final = b"ahead"
"""The contents of :data:`WITHDRAW`: everything that has not begun, or only what was delivered ahead."""

MAX_CONTENT_BYTES: Final = 64 << 20
INLINE_BYTES: Final = 64 << 10
"""Up to this length, a body is part of its delivery's frame."""
PART_BYTES: Final = 256 << 10
SLOT_BITS: Final = 16
SLOT_MASK: Final = (1 << SLOT_BITS) - 1

_MARSHAL_VERSION: Final = 2  # without references to earlier values, for which it would have to remember all values
_HEADER: Final = struct.Struct(">BBI")
_LENGTH: Final = struct.Struct(">I")
_NUMBER: Final = struct.Struct(">Q")
_KINDS: Final = frozenset({DELIVER, BODY, WITHDRAW, RESULTS, HANDED_BACK})


class BadFrameError(ConnectionError):
    """What was received is no frame of this version."""


class Delivered(NamedTuple):
    """A delivery as the app process receives it. ``body`` is None if its parts follow."""

    number: int
    is_first: bool
    environ: dict[str, Any]
    length: int
    body: bytes | None


class DeliveryResult(NamedTuple):
    """The result of the delivery with this number.

    ``status`` is None if the app's response was not complete, and ``reason`` then says why. ``excerpt`` is the
    beginning of the response's body; each character stands for one byte.
    """

    number: int
    status: int | None
    outcome: str | None
    excerpt: str
    duration_usec: int
    reason: str | None


def frame(kind: int, content: bytes) -> bytes:
    """Return a frame. Raises :class:`ValueError` if the content is too long."""
    if len(content) > MAX_CONTENT_BYTES:
        raise ValueError(f"{len(content)} bytes are too many for one message")
    return _HEADER.pack(VERSION, kind, len(content)) + content


def deliver_frame(limit: int, deliveries: Sequence[tuple[int, bool, dict[str, Any], bytes]]) -> bytes:
    """Return the frame that delivers tasks, each given by its number, ``is_first``, environment and body.

    The app process runs no more than ``limit`` tasks at a time. It begins those that are first before the others.
    """
    heads = [(number, is_first, environ, len(body)) for number, is_first, environ, body in deliveries]
    head = marshal.dumps([limit, heads], _MARSHAL_VERSION)
    bodies = [body for _number, _is_first, _environ, body in deliveries if len(body) <= INLINE_BYTES]
    return frame(DELIVER, b"".join([_LENGTH.pack(len(head)), head, *bodies]))


def read_deliver(content: bytes) -> tuple[int, list[Delivered]]:
    """Return the limit and the deliveries in a frame's content. Raises :class:`BadFrameError`."""
    try:
        (length,) = _LENGTH.unpack_from(content)
        at = _LENGTH.size + length
        limit, heads = marshal.loads(content[_LENGTH.size : at])
        found = []
        for number, is_first, environ, body_length in heads:
            body = None
            if body_length <= INLINE_BYTES:
                body = content[at : at + body_length]
                at += body_length
            found.append(Delivered(number, is_first, environ, body_length, body))
    except (ValueError, TypeError, EOFError, struct.error) as error:
        raise BadFrameError(f"deliveries can't be read: {error}") from error
    if at != len(content):
        raise BadFrameError("deliveries have bodies of other lengths than announced")
    return limit, found


def body_frames(number: int, body: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Return the frames of a long body: for each the beginning, and the part of the body that completes it."""
    view = memoryview(body)
    for start in range(0, len(body), PART_BYTES):
        part = view[start : start + PART_BYTES]
        yield _HEADER.pack(VERSION, BODY, _NUMBER.size + len(part)) + _NUMBER.pack(number), part


def read_body(content: bytes) -> tuple[int, bytes]:
    """Return a delivery's number and a part of its body. Raises :class:`BadFrameError`."""
    if len(content) < _NUMBER.size:
        raise BadFrameError("a part of a body has no number")
    return _NUMBER.unpack_from(content)[0], content[_NUMBER.size :]


def results_frame(results: Sequence[DeliveryResult]) -> bytes:
    """Return the frame with results."""
    return frame(RESULTS, json.dumps(results, separators=(",", ":")).encode())


def read_results(content: bytes) -> list[DeliveryResult]:
    """Return the results in a frame's content. Raises :class:`BadFrameError`."""
    try:
        results = [DeliveryResult(*result) for result in json.loads(content)]
    except (ValueError, TypeError) as error:
        raise BadFrameError(f"results can't be read: {error}") from error
    for number, status, outcome, excerpt, duration_usec, reason in results:
        if not (
            type(number) is type(duration_usec) is int
            and isinstance(status, int | None)
            and isinstance(outcome, str | None)
            and type(excerpt) is str
            and isinstance(reason, str | None)
        ):
            raise BadFrameError("a result has a value of another type")
    return results


def handed_back_frame(numbers: Sequence[int]) -> bytes:
    """Return the frame that hands back deliveries that have not begun; it also answers :data:`WITHDRAW`."""
    return frame(HANDED_BACK, json.dumps(numbers).encode())


def read_handed_back(content: bytes) -> list[int]:
    """Return the numbers in a frame's content. Raises :class:`BadFrameError`."""
    try:
        numbers = json.loads(content)
    except ValueError as error:
        raise BadFrameError(f"numbers can't be read: {error}") from error
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise BadFrameError("numbers can't be read: not a list of numbers")
    return numbers


class FrameReader:
    """Divides what arrives into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def has_part(self) -> bool:
        """Whether a frame has arrived in part."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take what has arrived; return the frames that are complete, each with its kind and its content.

        Raises :class:`BadFrameError` for a frame that can't be of this version.
        """
        buffer = self._buffer
        buffer += data
        found = []
        at = 0
        while len(buffer) - at >= _HEADER.size:
            version, kind, length = _HEADER.unpack_from(buffer, at)
            if version != VERSION:
                raise BadFrameError(f"version {version} of the messages was received, version {VERSION} is known")
            if kind not in _KINDS:
                raise BadFrameError(f"a message of the unknown kind {kind} was received")
            if length > MAX_CONTENT_BYTES:
                raise BadFrameError(f"a message of {length} bytes was announced")
            end = at + _HEADER.size + length
            if len(buffer) < end:
                break
            found.append((kind, bytes(buffer[at + _HEADER.size : end])))
            at = end
        del buffer[:at]
        return found
