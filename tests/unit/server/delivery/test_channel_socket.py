"""The queue process's end of the channel, on a real socket: what is sent and received, and how the channel ends."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

from deferred_middleware.server.delivery import frames
from deferred_middleware.server.delivery.attempt_result import AttemptEvent
from deferred_middleware.server.delivery.begun import ENDED, Begun
from deferred_middleware.server.delivery.channel import PATIENCE_SECONDS, ChannelError, ToDeliver
from deferred_middleware.server.delivery.channel_socket import ChannelSocket
from deferred_middleware.server.delivery.frames import SLOT_MASK, DeliveryResult, FrameReader
from tests.support.storing import TASK


class Both:
    """Both ends of a channel."""

    def __init__(self) -> None:
        self.ours = ChannelSocket(2)
        ends = self.ours.ends
        self.theirs: socket.socket = ends.connection.dup()
        self.begun = Begun(os.dup(ends.memory))
        ends.close()
        self.events: list[AttemptEvent] = []

    def proceed(self, after_seconds: float = 0.0) -> None:
        """Do what can be done."""
        self.ours.proceed(self.events, time.monotonic() + after_seconds)

    def answer(self, *numbers: int) -> bytes:
        """Begin and end tasks; return the message with their results."""
        for number in numbers:
            self.begun.slots[number & SLOT_MASK] = ENDED
        return frames.results_frame([DeliveryResult(number, 200, None, "", 5, None) for number in numbers])

    def deliver(self) -> int:
        """Deliver a task; return the number of the delivery."""
        self.ours.deliver([(ToDeliver(TASK), {})], limit=1, now=time.monotonic())
        ((_kind, content),) = FrameReader().feed(self.theirs.recv(10_000))
        return frames.read_deliver(content)[1][0].number

    def close(self) -> None:
        """Close both ends."""
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def both() -> Iterator[Both]:
    """A channel."""
    both = Both()
    yield both
    both.close()


def test_tasks_and_results_pass(both: Both) -> None:
    """A delivery arrives, and its result too; without one, nothing blocks."""
    number = both.deliver()
    both.proceed()
    assert (both.events, both.ours.awaited) == ([], select.POLLIN)
    both.theirs.sendall(both.answer(number))
    both.proceed()
    assert [(event.kind, event.task) for event in both.events] == [("answered", TASK)]


def test_a_process_that_reads_slowly_blocks_nobody(both: Both) -> None:
    """What the socket doesn't take waits, and is sent when the process reads again."""
    large = dataclasses.replace(TASK, body=os.urandom(8 << 20))
    both.ours.deliver([(ToDeliver(large), {})], limit=1, now=time.monotonic())
    both.proceed()
    assert both.ours.awaited == select.POLLIN | select.POLLOUT
    reader, body = FrameReader(), b""
    both.theirs.settimeout(10)
    while len(body) < len(large.body):
        for kind, content in reader.feed(both.theirs.recv(1 << 20)):
            if kind == frames.BODY:
                body += frames.read_body(content)[1]
        both.proceed()
    assert body == large.body
    assert both.ours.awaited == select.POLLIN


def test_what_was_sent_before_the_end_counts(both: Both) -> None:
    """Results that a process has sent before it ended are read before its deliveries are judged."""
    first, second = both.deliver(), both.deliver()
    both.theirs.sendall(both.answer(first))
    both.theirs.close()
    both.begun.slots[second & SLOT_MASK] = time.monotonic()
    both.ours.ended(both.events, time.monotonic())
    assert [event.kind for event in both.events] == ["answered", "died"]
    assert both.ours.fileno() == -1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (frames.handed_back_frame([1])[:-1], "cut off"),
        (b"\1", "cut off"),
        (b"\7\4\0\0\0\0", "version 7"),
        (b"\1\4\xff\xff\xff\xff", "was announced"),
        (frames.frame(frames.WITHDRAW, b""), "only the queue process sends"),
        (frames.results_frame([DeliveryResult(5 << 16, 200, None, "", 5, None)]), "never given"),
    ],
)
def test_bad_messages_lose_no_task(both: Both, data: bytes, problem: str) -> None:
    """After a bad message nothing is believed any more; the results before it count, the other tasks run again."""
    first, second = both.deliver(), both.deliver()
    both.begun.slots[second & SLOT_MASK] = time.monotonic()
    both.theirs.sendall(both.answer(first) + data)
    both.theirs.shutdown(socket.SHUT_WR)

    def proceed() -> None:
        for _ in range(3):
            both.proceed()

    with pytest.raises(ChannelError, match=problem):
        proceed()
    both.ours.ended(both.events, time.monotonic())
    assert [event.kind for event in both.events] == ["answered", "died"]


def test_a_process_that_does_nothing_is_given_up(both: Both) -> None:
    """A task that is never begun ends the patience."""
    both.deliver()
    both.proceed(1.0)
    with pytest.raises(ChannelError, match="neither begun nor handed back"):
        both.proceed(PATIENCE_SECONDS + 2)


def test_too_many_tasks_at_a_time_are_refused() -> None:
    """Each delivery has a slot, and there are 65,535."""
    with pytest.raises(ValueError, match="too many"):
        ChannelSocket(70_000)
