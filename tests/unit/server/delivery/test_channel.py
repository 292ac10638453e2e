"""What is given to an app process, and what its messages, its silence and its end mean."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from deferred_middleware.server.delivery import channel as channel_module
from deferred_middleware.server.delivery import frames
from deferred_middleware.server.delivery.attempt_result import AttemptEvent
from deferred_middleware.server.delivery.begun import ENDED, NOT_BEGUN, SUCCEEDED
from deferred_middleware.server.delivery.channel import (
    AHEAD_BYTES,
    AHEAD_SECONDS,
    MOST_AHEAD,
    PATIENCE_SECONDS,
    STALL_SECONDS,
    Channel,
    ChannelError,
    ToDeliver,
)
from deferred_middleware.server.delivery.frames import SLOT_MASK, DeliveryResult
from tests.support.storing import TASK

NOW = 1000.0


def task(number: int, **fields: Any) -> Any:
    """Return a task."""
    return dataclasses.replace(TASK, id=number, name=f"task{number}", **fields)


class Process:
    """A channel, and what the app process at its other end has received."""

    def __init__(self, slots: int = 300) -> None:
        self.begun = [NOT_BEGUN] * slots
        self.channel = Channel(self.begun)
        self.received: list[tuple[int, bytes]] = []
        self.delivered: list[frames.Delivered] = []
        self.limit = 0

    def deliver(self, *tasks: Any, ahead: bool = False, seconds: float = 0.0, now: float = NOW) -> list[int]:
        """Deliver tasks; return the numbers of their deliveries."""
        to_deliver = [(ToDeliver(one, ahead, seconds), {"PATH_INFO": one.url}) for one in tasks]
        self.channel.deliver(to_deliver, limit=6, now=now)
        before = len(self.delivered)
        self.take()
        return [one.number for one in self.delivered[before:]]

    def take(self) -> None:
        """Receive everything that is to be sent."""
        reader = frames.FrameReader()
        while (found := self.channel.next_frame()) is not None:
            head, part = found
            for kind, content in reader.feed(head + bytes(part or b"")):
                self.received.append((kind, content))
                if kind == frames.DELIVER:
                    self.limit, delivered = frames.read_deliver(content)
                    self.delivered += delivered

    def begin(self, number: int, at: float = NOW) -> None:
        """Begin a task."""
        self.begun[number & SLOT_MASK] = at

    def answer(self, *numbers: int, now: float = NOW, **fields: Any) -> list[AttemptEvent]:
        """Begin tasks, and send their results in one message."""
        for number in numbers:
            self.begun[number & SLOT_MASK] = ENDED
        result = DeliveryResult(0, 200, None, "", 5, None)._replace(**fields)
        message = frames.results_frame([result._replace(number=number) for number in numbers])
        return self.channel.received(frames.RESULTS, message[6:], now)

    def hand_back(self, *numbers: int, now: float = NOW) -> list[AttemptEvent]:
        """Hand back tasks."""
        return self.channel.received(frames.HANDED_BACK, frames.handed_back_frame(numbers)[6:], now)


@pytest.fixture
def process() -> Process:
    """A process without tasks."""
    return Process()


def kinds(events: list[AttemptEvent]) -> list[tuple[str, int]]:
    """Return what has happened to which tasks."""
    return [(event.kind, event.task.id) for event in events]


def test_one_message_carries_many_deliveries_and_many_results(process: Process) -> None:
    """Tasks are delivered together, with the limit, and answered together."""
    numbers = process.deliver(task(1, body=b"one"), task(2, body=b"two"))
    assert [kind for kind, _content in process.received] == [frames.DELIVER]
    assert (process.limit, [one.body for one in process.delivered]) == (6, [b"one", b"two"])
    events = process.answer(*numbers, outcome="dropped", excerpt="\xe9", duration_usec=7)
    assert kinds(events) == [("answered", 1), ("answered", 2)]
    result = events[0].result
    assert result is not None
    assert (result.status, result.outcome, result.excerpt, result.duration_usec) == (200, "dropped", b"\xe9", 7)
    assert process.channel.is_empty
    assert process.channel.next_check == float("inf")


def test_large_bodies_do_not_hold_up_small_tasks(process: Process) -> None:
    """The parts of a large body are sent one by one, and what is delivered meanwhile goes between them."""
    large = bytes(range(256)) * 4096 * 2
    channel = process.channel
    channel.deliver([(ToDeliver(task(1, body=large)), {})], limit=6, now=NOW)
    first, _nothing = channel.next_frame() or (b"", None)
    assert frames.read_deliver(first[6:])[1][0].body is None
    channel.next_frame()
    channel.deliver([(ToDeliver(task(2, body=b"small")), {})], limit=6, now=NOW)
    following = channel.next_frame()
    assert following is not None
    assert frames.read_deliver(following[0][6:])[1][0].body == b"small"
    assert channel.next_frame() is not None


def test_the_rest_of_a_body_is_not_sent_after_its_task_was_handed_back(process: Process) -> None:
    """Parts that are left would belong to the next delivery."""
    channel = process.channel
    channel.deliver([(ToDeliver(task(1, body=bytes(2_000_000))), {})], limit=6, now=NOW)
    head, _nothing = channel.next_frame() or (b"", None)
    (delivered,) = frames.read_deliver(head[6:])[1]
    channel.next_frame()
    assert kinds(process.hand_back(delivered.number)) == [("handed back", 1)]
    assert channel.next_frame() is None


def test_what_goes_ahead_is_bounded_in_work_bytes_and_number(process: Process) -> None:
    """Tasks go ahead until they are too many, too long or too large together; each result makes room again."""
    short, large = task(1, body=b""), task(2, body=bytes(AHEAD_BYTES // 2 + 1))
    assert sum(process.channel.ahead_budget().take(short, 0.0) for _ in range(1)) == 1
    for one, seconds, expected in [(short, 0.0, MOST_AHEAD), (short, AHEAD_SECONDS / 3.5, 3), (large, 0.0, 1)]:
        budget = process.channel.ahead_budget()
        number = 0
        while budget.take(one, seconds):
            number += 1
        assert number == expected
    numbers = process.deliver(short, ahead=True, seconds=AHEAD_SECONDS)
    assert not process.channel.ahead_budget().take(short, 0.001)
    process.answer(*numbers)
    assert process.channel.ahead_budget().take(short, AHEAD_SECONDS)


def test_tasks_that_are_not_short_after_all_are_withdrawn(process: Process) -> None:
    """Without a result for a while, what has not begun is asked back, once, and nothing goes ahead until a result."""
    (running,) = process.deliver(task(1))
    (waiting,) = process.deliver(task(2), ahead=True)
    process.begin(running)
    channel = process.channel
    assert channel.check(NOW + STALL_SECONDS / 2) == []
    process.take()
    assert process.received[-1][0] == frames.DELIVER
    channel.check(NOW + STALL_SECONDS)
    process.take()
    assert process.received[-1] == (frames.WITHDRAW, frames.WITHDRAW_AHEAD)
    assert kinds(process.hand_back(waiting, now=NOW + 1)) == [("handed back", 2)]
    assert not channel.ahead_budget().take(task(3), 0.0)
    (again,) = process.deliver(task(2), now=NOW + 1)
    channel.check(NOW + 2)
    process.take()
    assert process.received[-1][0] == frames.DELIVER
    process.answer(running, now=NOW + 3)
    assert channel.ahead_budget().take(task(3), 0.0)
    assert kinds(process.answer(again)) == [("answered", 2)]


def test_what_has_a_place_is_not_withdrawn(process: Process) -> None:
    """A task that may run, but whose body is on its way or whose process is busy, stays where it is."""
    process.deliver(task(1, body=bytes(1_000_000)))
    process.channel.check(NOW + 2 * STALL_SECONDS)
    process.take()
    assert frames.WITHDRAW not in {kind for kind, _content in process.received}


def test_an_attempt_is_cut_off_at_its_deadline_once(process: Process) -> None:
    """The deadline counts from the begin of the task, not from its delivery; its end is another event."""
    (number,) = process.deliver(task(1, dispatch_deadline_usec=5_000_000))
    channel = process.channel
    assert channel.check(NOW + 5) == []
    process.begin(number, NOW + 6)
    assert channel.check(NOW + 10.9) == []
    assert channel.next_check == pytest.approx(NOW + 11)
    (event,) = channel.check(NOW + 11.25)
    assert (event.kind, event.task.id) == ("cut off", 1)
    assert event.result is not None
    assert (event.result.status, event.result.duration_usec) == (None, 5_250_000)
    assert channel.check(NOW + 12) == []
    assert kinds(process.answer(number)) == [("answered", 1)]


def test_a_running_task_needs_no_checks(process: Process) -> None:
    """While a task runs, nothing is looked at before its deadline or the end of patience."""
    (number,) = process.deliver(task(1))
    process.begin(number)
    process.channel.check(NOW + STALL_SECONDS)
    assert process.channel.next_check == NOW + PATIENCE_SECONDS
    process.channel.check(NOW + PATIENCE_SECONDS)
    assert process.channel.next_check == NOW + 2 * PATIENCE_SECONDS


def test_what_has_not_begun_is_known(process: Process) -> None:
    """Of the delivered tasks, those that neither run nor have ended are named."""
    begun, ended, *_others = process.deliver(task(1), task(2), task(3), task(4))
    process.begin(begun)
    process.begun[ended & SLOT_MASK] = ENDED

    assert process.channel.not_begun() == [3, 4]


def test_the_end_of_a_process_says_what_had_begun(process: Process) -> None:
    """Only a task that was running died with its process: others had not begun, or had ended."""
    numbers = process.deliver(*(task(number) for number in range(1, 6)))
    for number, state in zip(numbers, [NOW, NOT_BEGUN, SUCCEEDED, ENDED, NOT_BEGUN], strict=True):
        process.begun[number & SLOT_MASK] = state
    events = process.channel.ended(NOW + 2)
    assert kinds(events) == [("died", 1), ("handed back", 2), ("answered", 3), ("answered", 4), ("handed back", 5)]
    results = [event.result for event in events]
    assert [result and result.status for result in results] == [None, None, 200, None, None]
    assert results[0] is not None
    assert results[0].duration_usec == 2_000_000
    assert results[3] is not None
    assert "before its response arrived" in str(results[3].reason)
    assert process.channel.ended(NOW + 3) == []


def _twice_in_one(process: Process, number: int) -> None:
    process.answer(number, number)


def _twice(process: Process, number: int) -> None:
    process.answer(number)
    process.answer(number)


def _another_task(process: Process, number: int) -> None:
    process.answer(number + (1 << frames.SLOT_BITS))


def _not_begun(process: Process, number: int) -> None:
    message = frames.results_frame([DeliveryResult(number, 200, None, "", 5, None)])
    process.channel.received(frames.RESULTS, message[6:], NOW)


def _back_after_begin(process: Process, number: int) -> None:
    process.begin(number)
    process.hand_back(number)


def _back_unknown(process: Process, number: int) -> None:
    process.hand_back(number + 1)


def _no_results(process: Process, number: int) -> None:
    process.channel.received(frames.RESULTS, b"[", NOW)


def _our_kind(process: Process, number: int) -> None:
    process.channel.received(frames.DELIVER, b"", NOW)


def _never_begins(process: Process, number: int) -> None:
    process.channel.check(NOW + STALL_SECONDS)
    process.channel.check(NOW + STALL_SECONDS + PATIENCE_SECONDS)


def _never_sends(process: Process, number: int) -> None:
    process.begin(number, ENDED)
    process.channel.check(NOW + PATIENCE_SECONDS)


def _never_hands_back(process: Process, number: int) -> None:
    process.begin(number)
    process.deliver(task(2))
    process.channel.withdraw(NOW)
    process.channel.check(NOW + PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("misbehave", "problem"),
    [
        (_twice_in_one, "the result of a delivery twice"),
        (_twice, "the result of delivery 1, which it doesn't have any more"),
        (_another_task, "the result of delivery 2, which it was never given"),
        (_not_begun, "the result of task task1, which has not begun"),
        (_back_after_begin, "back the task of task task1, which has begun"),
        (_back_unknown, "back the task of delivery 1, which"),
        (_no_results, "a message that can't be read"),
        (_our_kind, "which only the queue process sends"),
        (_never_begins, "neither begun nor handed back 1 tasks"),
        (_never_sends, "not sent the results of 1 tasks"),
        (_never_hands_back, "neither begun nor handed back 1 tasks"),
    ],
)
def test_a_process_that_breaks_the_rules_is_found_out(process: Process, misbehave: Any, problem: str) -> None:
    """What a process may not do raises an error that says what it did."""
    (number,) = process.deliver(task(1))
    with pytest.raises(ChannelError, match=problem):
        misbehave(process, number)


def test_a_bad_message_takes_no_result_along(process: Process) -> None:
    """If one result of a message is wrong, none of them counts, so that each task is retried."""
    first, second = process.deliver(task(1), task(2))
    with pytest.raises(ChannelError):
        process.answer(first, first + 77)
    process.begun[first & SLOT_MASK] = process.begun[second & SLOT_MASK] = NOW
    assert kinds(process.channel.ended(NOW)) == [("died", 1), ("died", 2)]


@pytest.mark.parametrize("seed", range(20))
def test_no_delivery_is_lost_or_answered_twice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens, each delivered task has exactly one end, and the slots don't run out."""
    random_ = random.Random(seed)
    process = Process(slots=8)
    open_: dict[int, int] = {}
    ends: list[int] = []
    now, last = NOW, 0
    for _ in range(400):
        now += random_.choice([0.0, 0.001, 0.05])
        step = random_.randrange(5)
        if step == 0 and len(open_) < 8:
            last += 1
            (number,) = process.deliver(task(last, body=bytes(random_.choice([1, 70_000]))), now=now)
            open_[number] = last
        elif step == 1 and open_:
            process.begin(random_.choice(list(open_)), now)
        elif step == 2:
            begun = [number for number in open_ if process.begun[number & SLOT_MASK] > 0]
            ends += [event.task.id for event in process.answer(*begun[:2], now=now)]
            for number in begun[:2]:
                del open_[number]
        elif step == 3:
            back = [number for number in open_ if process.begun[number & SLOT_MASK] == NOT_BEGUN][:1]
            ends += [event.task.id for event in process.hand_back(*back, now=now)]
            for number in back:
                del open_[number]
        else:
            assert process.channel.check(now) == []
            process.take()
    ends += [event.task.id for event in process.channel.ended(now)]
    assert sorted(ends) == list(range(1, last + 1))


def test_the_limits_fit_together() -> None:
    """A withdrawal comes long before the end of patience."""
    assert channel_module.STALL_SECONDS * 10 < channel_module.PATIENCE_SECONDS
