"""The connections for API calls between the processes on this machine."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from deferred_middleware.server.api.connections import (
    MAX_FRAME_BYTES,
    ApiConnections,
    FrameError,
    receive_frame,
    send_frame,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(10)
        other.settimeout(10)
        yield one, other


def opened(control: socket.socket) -> socket.socket:
    """Open a connection, as an app process does."""
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(control, [b"c"], [theirs.fileno()])
    ours.settimeout(10)
    return ours


@pytest.mark.parametrize("size", [0, 1, 3, 70_000, 5_000_000])
def test_a_frame_arrives_whole(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    """A frame of any length is received as it was sent."""
    data = os.urandom(size)
    sender = threading.Thread(target=send_frame, args=(pair[0], data))
    sender.start()
    assert receive_frame(pair[1]) == data
    sender.join()


def test_a_frame_arrives_whole_in_single_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    """A frame is put together from parts, also if its length comes in parts."""

    def send() -> None:
        for byte in b"\0\0\0\3abc":
            pair[0].sendall(bytes([byte]))
            threading.Event().wait(0.001)

    sender = threading.Thread(target=send)
    sender.start()
    assert receive_frame(pair[1]) == b"abc"
    sender.join()


def test_the_end_of_a_connection_is_no_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    """A connection may end between two frames."""
    pair[0].close()
    assert receive_frame(pair[1]) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\0\0", id="a part of the length"),
        pytest.param(b"\0\0\0\3ab", id="a part of the message"),
        pytest.param((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), id="too long"),
        pytest.param(b"\0\0\0\1ab", id="more than the message"),
    ],
)
def test_what_is_no_frame_is_an_error(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    """Broken frames are errors, and none is believed."""
    pair[0].sendall(data)
    pair[0].close()
    with pytest.raises(FrameError):
        receive_frame(pair[1])


def test_a_frame_that_is_too_long_is_not_sent(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender hears of a message that the receiver would refuse."""
    monkeypatch.setitem(send_frame.__globals__, "MAX_FRAME_BYTES", 3)
    with pytest.raises(FrameError, match="4 bytes"):
        send_frame(pair[0], b"four")


def test_calls_on_several_connections_are_answered_at_the_same_time() -> None:
    """A call does not wait for one on another connection, and a connection carries one call after the other."""
    go_on = threading.Event()

    def answer(request: bytes) -> bytes:
        if request == b"slow":
            assert go_on.wait(10)
        return request + b"!"

    with ApiConnections(answer).control_socket("default") as control, opened(control) as one, opened(control) as other:
        send_frame(one, b"slow")
        for number in range(3):
            send_frame(other, b"%d" % number)
            assert receive_frame(other) == b"%d!" % number
        go_on.set()
        assert receive_frame(one) == b"slow!"


def test_a_broken_message_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    """After a broken message the connection is closed and the log says why; others go on."""
    connections = ApiConnections(lambda request: request)
    with connections.control_socket("default") as control, opened(control) as one, opened(control) as other:
        with caplog.at_level(logging.ERROR):
            one.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
            assert receive_frame(one) is None
        send_frame(other, b"x")
        assert receive_frame(other) == b"x"
    assert "A connection for API calls is closed: a message of" in caplog.text


def test_the_threads_end_with_the_process() -> None:
    """When the other ends are closed, no thread stays."""
    before = set(threading.enumerate())
    with ApiConnections(lambda request: request).control_socket("default") as control, opened(control) as one:
        send_frame(one, b"x")
        assert receive_frame(one) == b"x"
        mine = set(threading.enumerate()) - before
        assert {thread.name for thread in mine} == {"api-default", "api-connection"}
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()
