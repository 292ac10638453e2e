"""What an app process has been given, and what its messages and its end mean: decisions without a thread or a socket.

A :class:`Channel` numbers the deliveries, and says which frames to send. What the app process sends, the passing of
time and the end of the process become :class:`AttemptEvent` values. The driver
(:mod:`~deferred_middleware.server.delivery.channel_socket`) moves the bytes, reads the clock and the shared memory, and
passes both in.

Deliveries ahead
    An app process gets up to as many deliveries as it may run at a time, which begin at once. While tasks are short, it
    also gets deliveries *ahead*, so that it always finds the next task: together no more than
    :data:`AHEAD_SECONDS` of work and :data:`AHEAD_BYTES` of bodies. If no result arrives for :data:`STALL_SECONDS`, the
    tasks are not short after all. What was delivered ahead and has not begun is then withdrawn, so that it waits where
    every queue has its turn.

A process that can't be trusted
    Answers that make no sense, and a process that does nothing for :data:`PATIENCE_SECONDS` although it could, raise
    :class:`ChannelError`. The driver's owner ends the process.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from deferred_middleware.server.delivery import frames
from deferred_middleware.server.delivery.attempt_result import AttemptEvent, AttemptResult, cut_off
from deferred_middleware.server.delivery.begun import ENDED, NOT_BEGUN, SUCCEEDED
from deferred_middleware.server.delivery.frames import SLOT_BITS, SLOT_MASK
from deferred_middleware.server.store.records import ClaimedTask
from deferred_middleware.wire.protocol import DEFAULT_DISPATCH_DEADLINE_SECONDS

AHEAD_SECONDS: Final = 0.02
AHEAD_BYTES: Final = 1 << 20
MOST_AHEAD: Final = 256
STALL_SECONDS: Final = 0.03
PATIENCE_SECONDS: Final = 60.0

_MESSAGE_BYTES: Final = 256 << 10
# Results of a process that ended before it could send them.
_LOST: Final = "the app process ended after the task had run and before its response arrived"


class ChannelError(Exception):
    """An app process has sent what it may not send, or doesn't answer; the message says what."""


class SharedNumbers(Protocol):
    """The memory that is shared with the app process; see :mod:`~deferred_middleware.server.delivery.begun`."""

    def __len__(self) -> int: ...
    def __getitem__(self, slot: int, /) -> float: ...
    def __setitem__(self, slot: int, number: float, /) -> None: ...


class ToDeliver(NamedTuple):
    """A task to deliver: whether before it has a place to run, and how long it will probably take."""

    task: ClaimedTask
    is_ahead: bool = False
    expected_seconds: float = 0.0


@dataclass(slots=True)
class Delivery:
    """A task that an app process has been given."""

    task: ClaimedTask
    is_ahead: bool
    expected_seconds: float
    deadline_seconds: float
    is_cut_off: bool = False


class AheadBudget:
    """How much more may be delivered ahead."""

    def __init__(self, *, number: int, size: int, seconds: float) -> None:
        self._number = number
        self._size = size
        self._seconds = seconds

    def take(self, task: ClaimedTask, expected_seconds: float) -> bool:
        """Return whether a task of this expected duration may be delivered ahead; if so, count it."""
        size = len(task.body)
        if self._number < 1 or size > self._size or expected_seconds > self._seconds:
            return False
        self._number -= 1
        self._size -= size
        self._seconds -= expected_seconds
        return True


_NOTHING_AHEAD: Final = AheadBudget(number=0, size=0, seconds=0.0)


class Channel:
    """The deliveries of one app process. Only one thread at a time may use it.

    Times are by the monotonic clock. ``begun`` has the numbers of the shared memory, one for each slot.
    """

    def __init__(self, begun: SharedNumbers) -> None:
        self._begun = begun
        self._free = deque(range(len(begun)))
        self._deliveries: dict[int, Delivery] = {}
        # What is to be sent: messages, and the parts of long bodies, which go after the messages.
        self._messages: deque[bytes] = deque()
        self._parts: deque[tuple[int, bytes, memoryview]] = deque()
        self._last_number = 0
        self._ahead = 0
        self._ahead_bytes = 0
        self._ahead_seconds = 0.0
        self._withdrawing = False
        # Whether deliveries had to be withdrawn, and no result has arrived since.
        self._has_stalled = False
        # When the last message was made or received.
        self._since = 0.0
        self.next_check: float = math.inf
        """When to call :meth:`check`, at the latest."""

    @property
    def is_empty(self) -> bool:
        """Whether the process has no deliveries."""
        return not self._deliveries

    def ahead_budget(self) -> AheadBudget:
        """Return what may be delivered before there is a place for it to run."""
        if self._withdrawing or self._has_stalled:
            return _NOTHING_AHEAD
        return AheadBudget(
            number=MOST_AHEAD - self._ahead,
            size=AHEAD_BYTES - self._ahead_bytes,
            seconds=AHEAD_SECONDS - self._ahead_seconds,
        )

    def deliver(self, deliveries: Iterable[tuple[ToDeliver, dict[str, str]]], *, limit: int, now: float) -> None:
        """Take tasks to deliver, with their environments. The process may run ``limit`` tasks at a time."""
        message: list[tuple[int, bool, dict[str, str], bytes]] = []
        size = 0
        for one, environ in deliveries:
            number = self._take_slot(one)
            body = one.task.body
            message.append((number, not one.is_ahead, environ, body))
            if len(body) > frames.INLINE_BYTES:
                self._parts += ((number, head, part) for head, part in frames.body_frames(number, body))
            else:
                size += len(body)
            if size > _MESSAGE_BYTES:
                self._messages.append(frames.deliver_frame(limit, message))
                message, size = [], 0
        if message:
            self._messages.append(frames.deliver_frame(limit, message))
        self._since = now
        self.next_check = min(self.next_check, now + STALL_SECONDS)

    def next_frame(self) -> tuple[bytes, memoryview | None] | None:
        """Return the next frame to send: its beginning, and the bytes that complete it, if any. None: there is none."""
        if self._messages:
            return self._messages.popleft(), None
        if self._parts:
            _number, head, part = self._parts.popleft()
            return head, part
        return None

    def received(self, kind: int, content: bytes, now: float) -> list[AttemptEvent]:
        """Take a frame of the app process; return what it means.

        Raises :class:`ChannelError`; the deliveries are as before then.
        """
        try:
            if kind == frames.RESULTS:
                events = self._answered(frames.read_results(content))
            elif kind == frames.HANDED_BACK:
                events = self._handed_back(frames.read_handed_back(content))
            else:
                raise ChannelError(f"it sent a message of kind {kind}, which only the queue process sends")
        except frames.BadFrameError as error:
            raise ChannelError(f"it sent a message that can't be read: {error}") from error
        self._since = now
        self.next_check = min(self.next_check, now + STALL_SECONDS) if self._deliveries else math.inf
        return events

    def check(self, now: float) -> list[AttemptEvent]:
        """Take note of the time; return which attempts are past their deadline.

        Raises :class:`ChannelError` if the process has done nothing for too long.
        """
        events: list[AttemptEvent] = []
        waiting = ahead = running = ended = 0
        next_check = math.inf
        for number, delivery in self._deliveries.items():
            state = self._begun[number & SLOT_MASK]
            if state == NOT_BEGUN:
                waiting += 1
                ahead += delivery.is_ahead
                continue
            if state < 0:
                ended += 1
                continue
            running += 1
            if delivery.is_cut_off:
                continue
            deadline = state + delivery.deadline_seconds
            if deadline <= now:
                delivery.is_cut_off = True
                result = cut_off(delivery.deadline_seconds, int((now - state) * 1e6))
                events.append(AttemptEvent("cut off", delivery.task, result))
            else:
                next_check = min(next_check, deadline)
        if now >= self._since + PATIENCE_SECONDS:
            if ended:
                raise ChannelError(f"it has not sent the results of {ended} tasks that it has run")
            if waiting and (self._withdrawing or not running):
                raise ChannelError(f"it has neither begun nor handed back {waiting} tasks that it was given")
            self._since = now
        if ahead and not self._has_stalled:
            if now >= self._since + STALL_SECONDS:
                self._withdraw(frames.WITHDRAW_AHEAD, now)
            else:
                next_check = min(next_check, self._since + STALL_SECONDS)
        elif waiting and next_check == math.inf:
            # What waits may begin at any time, and then has a deadline.
            next_check = now + min(1.0, min(one.deadline_seconds for one in self._deliveries.values()))
        self.next_check = min(next_check, self._since + PATIENCE_SECONDS) if self._deliveries else math.inf
        return events

    def withdraw(self, now: float) -> None:
        """Have the process hand back what has not begun."""
        self._withdraw(frames.WITHDRAW_ALL, now)

    def not_begun(self) -> list[int]:
        """Return the IDs of the delivered tasks that have not begun. Any thread may call it."""
        return [
            delivery.task.id
            for number, delivery in self._deliveries.copy().items()
            # The second condition: the slot may have another task by now.
            if self._begun[number & SLOT_MASK] == NOT_BEGUN and number in self._deliveries
        ]

    def ended(self, now: float) -> list[AttemptEvent]:
        """Return what the end of the process means for each delivery. Take everything that it has sent before that."""
        events: list[AttemptEvent] = []
        for number, delivery in self._deliveries.items():
            task, state = delivery.task, self._begun[number & SLOT_MASK]
            if state == SUCCEEDED:
                events.append(AttemptEvent("answered", task, AttemptResult(status=200, duration_usec=0)))
            elif state == ENDED:
                result = AttemptResult(status=None, duration_usec=0, reason=_LOST)
                events.append(AttemptEvent("answered", task, result))
            elif state == NOT_BEGUN:
                events.append(AttemptEvent("handed back", task))
            else:
                result = AttemptResult(status=None, duration_usec=int((now - state) * 1e6))
                events.append(AttemptEvent("died", task, result))
        self._deliveries.clear()
        self._messages.clear()
        self._parts.clear()
        self.next_check = math.inf
        return events

    def _withdraw(self, what: bytes, now: float) -> None:
        if self._deliveries:
            self._withdrawing = self._has_stalled = True
            self._messages.append(frames.frame(frames.WITHDRAW, what))
            self._since = now

    def _take_slot(self, one: ToDeliver) -> int:
        task = one.task
        # The slot that has been free for longest.
        slot = self._free.popleft()
        self._begun[slot] = NOT_BEGUN
        seconds: float = DEFAULT_DISPATCH_DEADLINE_SECONDS
        if task.dispatch_deadline_usec is not None:
            seconds = task.dispatch_deadline_usec / 1e6
        self._last_number += 1
        number = self._last_number << SLOT_BITS | slot
        self._deliveries[number] = Delivery(task, one.is_ahead, one.expected_seconds, seconds)
        if one.is_ahead:
            self._ahead += 1
            self._ahead_bytes += len(task.body)
            self._ahead_seconds += one.expected_seconds
        return number

    def _answered(self, results: Sequence[frames.DeliveryResult]) -> list[AttemptEvent]:
        self._check([result.number for result in results], "the result", begun=True)
        self._has_stalled = False
        return [
            AttemptEvent(
                "answered",
                self._release(result.number).task,
                AttemptResult(
                    status=result.status,
                    duration_usec=result.duration_usec,
                    reason=result.reason,
                    outcome=result.outcome,
                    excerpt=result.excerpt.encode("latin-1", "replace"),
                ),
            )
            for result in results
        ]

    def _handed_back(self, numbers: Sequence[int]) -> list[AttemptEvent]:
        self._check(numbers, "back the task", begun=False)
        self._withdrawing = False
        if self._parts:
            # The rest of their bodies. The next delivery in the slot has another one.
            self._parts = deque(part for part in self._parts if part[0] not in numbers)
        return [AttemptEvent("handed back", self._release(number).task) for number in numbers]

    def _check(self, numbers: Sequence[int], what: str, *, begun: bool) -> None:
        """Raise :class:`ChannelError` if the process may not give ``what`` of these deliveries."""
        if len(set(numbers)) < len(numbers):
            raise ChannelError(f"it gave {what} of a delivery twice")
        for number in numbers:
            delivery = self._deliveries.get(number)
            if delivery is None:
                given = 0 < number >> SLOT_BITS <= self._last_number
                state = "which it doesn't have any more" if given else "which it was never given"
                raise ChannelError(f"it gave {what} of delivery {number >> SLOT_BITS}, {state}")
            if begun is (self._begun[number & SLOT_MASK] == NOT_BEGUN):
                state = "has not begun" if begun else "has begun"
                raise ChannelError(f"it gave {what} of task {delivery.task.name}, which {state}")

    def _release(self, number: int) -> Delivery:
        delivery = self._deliveries.pop(number)
        self._free.append(number & SLOT_MASK)
        if delivery.is_ahead:
            self._ahead -= 1
            self._ahead_bytes -= len(delivery.task.body)
            self._ahead_seconds = self._ahead_seconds - delivery.expected_seconds if self._ahead else 0.0
        return delivery
