"""Add prepared calls to their queue: group the calls for one RPC, retry the add, and report the outcome of each call.

If an attempt fails temporarily, or its outcome is unknown, the add is retried with the same task name. If the queue
then answers that a generated name is taken, an earlier attempt added the task, because no other task can have that
name. If the caller gave the name, the answer is an error.

Importing this module imports the SDK.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from deferred_middleware.config.hooks import Enqueued
from deferred_middleware.engines import answers, transactions
from deferred_middleware.engines.engine import AddFailure, StartedAdd, TaskMessage
from deferred_middleware.errors import sdk
from deferred_middleware.errors.sdk_types import taskqueue
from deferred_middleware.wire import protocol
from deferred_middleware.wire.monotonic import monotonic

if TYPE_CHECKING:
    from deferred_middleware.enqueue.prepare import PreparedCall
    from deferred_middleware.errors.sdk import EnqueueError

T = TypeVar("T")

MAX_RPC_SECONDS: Final = 10.0
"""The longest that one attempt waits for the queue's answer. The platform's default is about 5 s (SDK: create_rpc)."""
MIN_ATTEMPTS: Final = 3
"""An attempt may take at most ``1 / MIN_ATTEMPTS`` of the time, so that one that hangs leaves time for others."""
FIRST_DELAY_SECONDS: Final = 0.1
MAX_DELAY_SECONDS: Final = 5.0

_MAX_WAITING_CALLS: Final = 1000
"""How many calls may wait until the group of their queue is full."""
_MAX_WAITING_BYTES: Final = 4 * protocol.MAX_ADD_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """The sources of time and randomness. ``clock`` and ``sleep`` use seconds; ``chance`` returns a value in [0, 1)."""

    clock: Callable[[], float] = monotonic
    sleep: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = random.random


REAL_TIMING: Final = Timing()


class RetryBudget:
    """Limits the attempts of one add to ``seconds`` in total; 0 allows a single attempt."""

    __slots__ = ("_ends", "_seconds", "_timing", "retries")

    def __init__(self, seconds: float, timing: Timing = REAL_TIMING) -> None:
        self._seconds = seconds
        self._timing = timing
        self._ends = timing.clock() + seconds if seconds else 0.0
        self.retries: int = 0
        """How many attempts have been followed by another."""

    def rpc_seconds(self) -> float | None:
        """Return how long the next attempt may wait for its answer. None means that the engine decides."""
        if not self._seconds:
            return None
        shortest = self._seconds / 10
        left = max(self._ends - self._timing.clock(), shortest)
        return min(MAX_RPC_SECONDS, self._seconds / MIN_ATTEMPTS, left)

    def delay(self) -> float | None:
        """Return the seconds to wait after a failed attempt before the next one, or None if there is no next one.

        The upper bound doubles with each failure. A random part of up to half of it is subtracted, so that clients that
        failed at the same time don't retry at the same time.
        """
        bound = min(FIRST_DELAY_SECONDS * 2.0 ** min(self.retries, 16), MAX_DELAY_SECONDS)
        delay = bound * (1 - self._timing.chance() / 2)
        if self._timing.clock() + delay >= self._ends:
            return None
        self.retries += 1
        return delay


class Add:
    """An add of up to 100 calls to one queue, with all its attempts. Not for transactional calls.

    Call :meth:`start` and :meth:`finish` alternately, and wait between them for as long as :meth:`finish` returns.
    """

    __slots__ = ("_budget", "_engine", "_isolating", "_last", "_maybe", "_pending", "_sent", "errors", "prepared")

    def __init__(self, prepared: Sequence[PreparedCall], timing: Timing = REAL_TIMING) -> None:
        self.prepared: Sequence[PreparedCall] = prepared
        self.errors: dict[int, EnqueueError] = {}
        """The errors, by the index of the call. When the add is over, the calls without an error are enqueued."""
        self._engine = prepared[0].engine
        self._budget = RetryBudget(prepared[0].retry_seconds, timing)
        self._pending = list(range(len(prepared)))
        self._sent: list[int] = []
        self._isolating = False
        """Whether tasks are sent one at a time, because the queue didn't say which task made the add fail."""
        self._maybe: set[int] = set()
        """Indexes of the tasks that an earlier attempt may have added."""
        self._last: dict[int, AddFailure] = {}

    def run(self, sleep: Callable[[float], object]) -> None:
        """Run all attempts in the calling thread."""
        delay: float | None = 0.0
        while delay is not None:
            if delay:
                sleep(delay)
            messages = self._next_messages()
            delay = self._decide(self._engine.add(messages, self._budget.rpc_seconds()) if messages else ())

    def start(self) -> StartedAdd | None:
        """Send the tasks that are still to be added. Returns None if there are none."""
        messages = self._next_messages()
        return self._engine.start(messages, self._budget.rpc_seconds()) if messages else None

    def finish(self, started: StartedAdd | None) -> float | None:
        """Wait for the answer and read it; return the seconds until the next start, or None if the add is over."""
        return self._decide(() if started is None else started.results())

    def _next_messages(self) -> list[TaskMessage]:
        """Store the overflowed payloads of the next attempt, and return the messages to send."""
        self._sent = self._pending[:1] if self._isolating else list(self._pending)
        for index in list(self._sent):
            if self.prepared[index].overflowed is not None:
                self._store(index)
        return [self.prepared[index].message for index in self._sent]

    def _store(self, index: int) -> None:
        """Store a payload that doesn't fit in its task. If this fails, the task isn't sent."""
        overflowed = self.prepared[index].overflowed
        try:
            if overflowed is not None:
                overflowed.store()
        except Exception as error:  # noqa: BLE001 - any datastore error means that this call is not enqueued
            self._sent.remove(index)
            self._pending.remove(index)
            self._last[index] = AddFailure(error=error, answer=answers.NOT_SENT, of_whole_add=True)
            self._fail(index)

    def _decide(self, results: Sequence[str | AddFailure]) -> float | None:
        """Read the results of an attempt; return the seconds until the next attempt, or None if the add is over."""
        if not results:
            return 0.0 if self._pending else None
        again: list[int] = []
        added: list[PreparedCall] = []
        decided = isolate = False
        for index, result in zip(self._sent, results, strict=True):
            prepared = self.prepared[index]
            if isinstance(result, str):
                prepared.name = result
                added.append(prepared)
                continue
            answer = result.answer
            if answer.exists and prepared.named_by_us:
                added.append(prepared)
                continue
            self._last[index] = result
            if answer.maybe_enqueued:
                self._maybe.add(index)
            if answer.retried and prepared.retry_seconds:
                again.append(index)
            elif result.of_whole_add and len(results) > 1 and not (answer.of_queue or answer.exists):
                isolate = True
                again.append(index)
            else:
                decided = True
                self._fail(index)
        if added:
            decided = True
            report_enqueued(added)
        self._pending = self._pending[len(self._sent) :] + again
        self._isolating = self._isolating or isolate
        if not self._pending:
            return None
        if decided or isolate:
            return 0.0  # these tasks failed only because others in the same RPC failed
        delay = self._budget.delay()
        if delay is None:
            for index in self._pending:
                self._fail(index)
            self._pending = []
        return delay

    def exists(self, index: int) -> bool:
        """Tell whether the call at ``index`` failed because its task name is, or was, in use in the queue."""
        return index in self.errors and self._last[index].answer.exists

    def tombstoned(self, index: int) -> bool:
        """Tell whether the name is a tombstone: its task is no longer in the queue."""
        return isinstance(self._last[index].error, taskqueue.TombstonedTaskError)

    def fail_all(self, error: Exception) -> None:
        """Fail all calls that have no outcome yet, with ``error``."""
        for index in self._pending:
            self._last[index] = AddFailure(error=error, answer=answers.UNKNOWN, of_whole_add=True)
            self._maybe.add(index)
            self._fail(index)
        self._pending = []

    def _fail(self, index: int) -> None:
        prepared, failure = self.prepared[index], self._last[index]
        notes = []
        if self._budget.retries:
            notes.append(f"It was tried {self._budget.retries + 1} times.")
        if index in self._maybe:
            notes.append("The queue may have the task nevertheless.")
        call = prepared.call
        error = sdk.explain(failure.error, call.label, prepared.queue, call.options.name, notes=" ".join(notes))
        error.maybe_enqueued = index in self._maybe
        self.errors[index] = error
        discard_payload(prepared, error)


def add(prepared: PreparedCall, timing: Timing = REAL_TIMING) -> None:
    """Add one task. It is enqueued when this returns. Raises :class:`EnqueueError`."""
    if prepared.transactional:
        _add_in_transaction(prepared)
        return
    single = Add((prepared,), timing)
    single.run(timing.sleep)
    if single.errors:
        error = single.errors[0]
        raise error from error.__cause__


def _add_in_transaction(prepared: PreparedCall) -> None:
    """Add a task to the current transaction, in a single attempt. It is enqueued if the transaction commits."""
    call, queue = prepared.call, prepared.queue
    try:
        if prepared.engine.has_outbox:
            from deferred_middleware.enqueue import sweep_task  # few adds are transactional

            sweep_task.UPCOMING.ensure()
        with transactions.explained(call, queue):
            if prepared.overflowed is not None:
                prepared.overflowed.store()
            prepared.engine.add_in_transaction(prepared.message)
    except sdk.EnqueueError as error:
        discard_payload(prepared, error)
        raise
    except Exception as error:
        # The SDK also raises other types than its own for some answers, such as TypeError.
        failure = sdk.explain(error, call.label, queue, None)
        failure.maybe_enqueued = answers.for_exception(error).maybe_enqueued
        discard_payload(prepared, failure)
        raise failure from error
    report_enqueued([prepared])


def report_enqueued(several: Sequence[PreparedCall]) -> None:
    """Mark calls as enqueued, and call the ``on_enqueue`` hooks. Every way to enqueue ends here."""
    for prepared in several:
        prepared.was_enqueued = True
    for prepared in several:
        if prepared.hooks.is_empty or not prepared.hooks.listens("on_enqueue"):
            continue
        fact = Enqueued(
            call=prepared.call, queue=prepared.queue, task=prepared.task, transactional=prepared.transactional
        )
        prepared.hooks.fire("on_enqueue", fact)


def discard_payload(prepared: PreparedCall, error: EnqueueError) -> None:
    """Remove the stored payload of a call that is not enqueued.

    If ``error.maybe_enqueued`` is true, the payload is kept, because the task may still run.
    """
    if prepared.overflowed is not None and not error.maybe_enqueued:
        prepared.overflowed.remove()


@dataclasses.dataclass(slots=True)
class AddGroup(Generic[T]):
    """Calls of one queue for one RPC. ``tags`` identify the calls for the caller."""

    prepared: list[PreparedCall] = dataclasses.field(default_factory=list)
    tags: list[T] = dataclasses.field(default_factory=list)
    names: set[str] = dataclasses.field(default_factory=set)
    size_bytes: int = 0


class AddGroups(Generic[T]):
    """Groups calls by queue, for one RPC each, and limits the number of calls and bytes in a group."""

    def __init__(self) -> None:
        self._groups: dict[str, AddGroup[T]] = {}
        self._waiting = 0
        self._waiting_bytes = 0

    def add(self, prepared: PreparedCall, tag: T) -> Sequence[AddGroup[T]]:
        """Add a call to its group, and return the groups that must be sent now."""
        queue, name, size_bytes = prepared.queue, prepared.call.options.name, prepared.size_bytes
        group = self._groups.get(queue)
        full: Sequence[AddGroup[T]] = ()
        # One add must not contain a name twice. A group that has reached the maximum number of calls was sent already.
        if group is not None and (group.size_bytes + size_bytes > protocol.MAX_ADD_BYTES or name in group.names):
            full = [self._take(queue)]
            group = None
        if group is None:
            group = self._groups[queue] = AddGroup()
        group.prepared.append(prepared)
        group.tags.append(tag)
        group.size_bytes += size_bytes
        if name is not None:
            group.names.add(name)
        self._waiting += 1
        self._waiting_bytes += size_bytes
        if len(group.prepared) == protocol.MAX_TASKS_PER_ADD:
            return [*full, self._take(queue)]
        if self._waiting > _MAX_WAITING_CALLS or self._waiting_bytes > _MAX_WAITING_BYTES:
            return [*full, self._take(max(self._groups, key=lambda name: self._groups[name].size_bytes))]
        return full

    def rest(self) -> Iterator[AddGroup[T]]:
        """Yield the groups that were not sent yet."""
        while self._groups:
            yield self._take(next(iter(self._groups)))

    def _take(self, queue: str) -> AddGroup[T]:
        group = self._groups.pop(queue)
        self._waiting -= len(group.prepared)
        self._waiting_bytes -= group.size_bytes
        return group
