"""Tests of reading a request's body."""

from __future__ import annotations

import io
from typing import Any

import pytest

from deferred_middleware.errors import BodyError
from deferred_middleware.execution.trust import read_body
from tests.support.delivering import task_environ


class Counting(io.BytesIO):
    """A stream that sums the requested sizes."""

    asked = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and record the requested size."""
        assert size is not None
        assert size >= 0
        self.asked += size
        return super().read(size)


def status_of(body: Any, limit: int = 10, **environ: Any) -> int:
    """Return the status of the error that reading a body raises."""
    given = task_environ(b"", **{"wsgi.input": body, **environ})
    with pytest.raises(BodyError) as caught:
        read_body(given, limit)
    return caught.value.status


def test_as_much_is_read_as_was_announced() -> None:
    """Bytes after the announced length, such as the next request, are not read."""
    stream = Counting(b"0123456789")

    assert read_body(task_environ(b"", CONTENT_LENGTH="4", **{"wsgi.input": stream}), 10) == b"0123"
    assert stream.asked == 4


def test_an_empty_body_is_empty() -> None:
    """A length of 0 is valid."""
    assert read_body(task_environ(b"", CONTENT_LENGTH="0"), 10) == b""


@pytest.mark.parametrize("length", ["11", "9" * 30, "9" * 5000])
def test_nothing_of_a_body_that_is_too_large_is_read(length: str) -> None:
    """A body with an announced length over the limit is refused before any byte is read."""
    stream = Counting(b"x" * 20)

    assert status_of(stream, CONTENT_LENGTH=length) == 413
    assert stream.asked == 0


def test_a_body_without_an_end_is_read_to_the_limit() -> None:
    """If only the server knows the body's end, at most one byte more than the limit is read."""
    ended: dict[str, Any] = {"CONTENT_LENGTH": None, "wsgi.input_terminated": True}
    stream = Counting(b"x" * 1000)

    assert status_of(stream, **ended) == 413
    assert stream.asked == 11
    assert read_body(task_environ(b"", **{"wsgi.input": io.BytesIO(b"x" * 10)}, **ended), 10) == b"x" * 10


@pytest.mark.parametrize("length", [None, ""])
def test_a_body_without_a_length_is_not_read(length: str | None) -> None:
    """A body without a length is not read, because an unbounded read could block forever."""
    stream = Counting(b"x")

    assert status_of(stream, CONTENT_LENGTH=length) == 411
    assert stream.asked == 0


@pytest.mark.parametrize("length", ["-1", "+1", "1_0", " 1", "0x1", "1,1", "1, 1", "abc", "٣", "1.0"])
def test_what_is_no_length_is_refused(length: str) -> None:
    """Only digits are a valid length; two lengths that the server joined are not."""
    assert status_of(Counting(b"x"), CONTENT_LENGTH=length) == 400


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, ValueError, RuntimeError])
def test_whatever_the_server_raises_is_a_body_that_cannot_be_read(error: type[Exception]) -> None:
    """Any exception that the server raises for a broken connection or malformed chunk counts as an unreadable body."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise error

    assert status_of(Broken(), CONTENT_LENGTH="4") == 400


def test_an_error_of_the_server_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The log says what the server raised."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("connection reset")

    assert status_of(Broken(b"x"), CONTENT_LENGTH="1") == 400
    assert "connection reset" in caplog.text


@pytest.mark.parametrize("limit", [9, 10])
@pytest.mark.parametrize("given", [8, 9, 10, 11, 12])
def test_the_limit_of_a_body_without_a_length_is_exact(limit: int, given: int) -> None:
    """A body of as many bytes as are allowed is read; one of one byte more is refused, and no more is read."""
    ended: dict[str, Any] = {"CONTENT_LENGTH": None, "wsgi.input_terminated": True}
    stream = Counting(b"x" * given)

    if given > limit:
        assert status_of(stream, limit, **ended) == 413
        assert stream.tell() == limit + 1
    else:
        assert read_body(task_environ(b"", **{"wsgi.input": stream}, **ended), limit) == b"x" * given


@pytest.mark.parametrize("length", range(1, 11))
@pytest.mark.parametrize("first", range(1, 11))
def test_what_a_stream_gives_later_is_read_and_no_more(first: int, length: int) -> None:
    """If a stream gives less than it was asked for, the rest is read, and nothing of the request behind it."""

    class Slow(Counting):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            return super().read(min(size, first if self.tell() == 0 else size))

    stream = Slow(b"0123456789"[:length] + b"POST / HTTP/1.1")

    body = read_body(task_environ(b"", CONTENT_LENGTH=str(length), **{"wsgi.input": stream}), 10)
    assert body == b"0123456789"[:length]
    assert stream.tell() == length


def test_a_body_that_ends_early_is_refused() -> None:
    """A body shorter than announced is refused."""
    assert status_of(io.BytesIO(b"012"), CONTENT_LENGTH="4") == 400
    assert status_of(io.BytesIO(b""), CONTENT_LENGTH="4") == 400


def test_another_request_behind_a_body_is_not_read() -> None:
    """If the server's stream gives less than the length at a time, no more than the length is read in all."""

    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(4, size if size is not None and size >= 0 else 4))

    stream = Dripping(b"0123456789POST / HTTP/1.1")

    assert read_body(task_environ(b"", CONTENT_LENGTH="10", **{"wsgi.input": stream}), 100) == b"0123456789"
    assert stream.getvalue()[stream.tell() :] == b"POST / HTTP/1.1"
