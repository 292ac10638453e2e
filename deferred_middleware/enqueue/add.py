"""How often and how long an enqueue is tried: arithmetic of deadlines and back-off, with clock and chance given.

Put prepared calls together that can be added in one RPC: the same queue, not too many, and not too large.

Add prepared calls to their queue: attempts, their answers, and what became of each call.

An attempt that failed for now, or of which nobody knows how it ended, is repeated under the same name. That the name is
taken is then success for a name of our own, because nobody else can have it; a name of the caller's keeps its meaning.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from google.appengine.api.taskqueue import TombstonedTaskError

from deferred_middleware.config.hooks import Enqueued
from deferred_middleware.config.process import current_hooks
from deferred_middleware.engines import answers, sending, transactions
from deferred_middleware.errors import sdk
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.engines.sending import Refusal
    from deferred_middleware.enqueue.prepare import Prepared
    from deferred_middleware.errors.sdk import EnqueueError

LONGEST_RPC_SECONDS: Final = 10.0
"""How long one attempt may wait for the queue's answer; the platform's own is typically 5 s (SDK: create_rpc)."""
FEWEST_ATTEMPTS: Final = 3
"""One attempt that hangs takes only this part of the time, so that others can follow."""
FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Where time and chance come from. ``clock`` and ``sleep`` count seconds, ``chance`` is in [0, 1)."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = random.random


REAL: Final = Timing()


class Attempts:
    """The attempts at one add, in at most ``seconds``; 0 means a single one."""

    __slots__ = ("_ends", "_seconds", "_timing", "failed")

    def __init__(self, seconds: float, timing: Timing = REAL) -> None:
        self._seconds = seconds
        self._timing = timing
        self._ends = timing.clock() + seconds
        self.failed = 0
        """How many attempts have failed."""

    def rpc_seconds(self) -> float | None:
        """Return how long the next attempt may wait for its answer; None leaves it to the SDK."""
        if not self._seconds:
            return None
        shortest = self._seconds / 10
        left = max(self._ends - self._timing.clock(), shortest)
        return min(LONGEST_RPC_SECONDS, self._seconds / FEWEST_ATTEMPTS, left)

    def delay(self) -> float | None:
        """Count a failed attempt; return how many seconds to wait before the next, or None if there is none.

        The bound doubles with each failure, and chance takes up to half of it away, so that clients that failed
        together don't come back together.
        """
        self.failed += 1
        bound = min(FIRST_DELAY_SECONDS * 2.0 ** min(self.failed - 1, 16), LONGEST_DELAY_SECONDS)
        delay = bound * (1 - self._timing.chance() / 2)
        return delay if self._timing.clock() + delay < self._ends else None


T = TypeVar("T")

_MAX_WAITING: Final = 1000
"""How many calls may wait for others of their queue."""
_MAX_WAITING_BYTES: Final = 4 * protocol.MAX_ADD_BYTES


@dataclasses.dataclass(slots=True)
class Group(Generic[T]):
    """Calls of one queue for one RPC; ``tags`` tell the caller which they are."""

    prepared: list[Prepared] = dataclasses.field(default_factory=list)
    tags: list[T] = dataclasses.field(default_factory=list)
    names: set[str] = dataclasses.field(default_factory=set)
    size_bytes: int = 0


class Groups(Generic[T]):
    """Groups that are being filled, one for each queue."""

    def __init__(self) -> None:
        self._groups: dict[str, Group[T]] = {}
        self._waiting = 0
        self._waiting_bytes = 0

    def add(self, prepared: Prepared, tag: T) -> Sequence[Group[T]]:
        """Add a call, and return the groups that are to be sent because of it."""
        queue, name, size_bytes = prepared.queue, prepared.call.options.name, prepared.size_bytes
        group = self._groups.get(queue)
        full: Sequence[Group[T]] = ()
        # A name must not be in an add twice. A group that has as many calls as may be has left already.
        if group is not None and (group.size_bytes + size_bytes > protocol.MAX_ADD_BYTES or name in group.names):
            full = [self._take(queue)]
            group = None
        if group is None:
            group = self._groups[queue] = Group()
        group.prepared.append(prepared)
        group.tags.append(tag)
        group.size_bytes += size_bytes
        if name is not None:
            group.names.add(name)
        self._waiting += 1
        self._waiting_bytes += size_bytes
        if len(group.prepared) == protocol.MAX_TASKS_PER_ADD:
            return [*full, self._take(queue)]
        if self._waiting > _MAX_WAITING or self._waiting_bytes > _MAX_WAITING_BYTES:
            return [*full, self._take(max(self._groups, key=lambda name: self._groups[name].size_bytes))]
        return full

    def rest(self) -> Iterator[Group[T]]:
        """Give what is left."""
        while self._groups:
            yield self._take(next(iter(self._groups)))

    def _take(self, queue: str) -> Group[T]:
        group = self._groups.pop(queue)
        self._waiting -= len(group.prepared)
        self._waiting_bytes -= group.size_bytes
        return group


class Add:
    """An add of up to 100 calls to one queue, from its first attempt to its end; not for calls of a transaction.

    :meth:`start` and :meth:`finish` take turns; whoever calls them waits in between.
    """

    __slots__ = ("_attempts", "_isolating", "_last", "_maybe", "_pending", "_sent", "errors", "prepared")

    def __init__(self, prepared: Sequence[Prepared], timing: Timing = REAL) -> None:
        self.prepared = prepared
        self.errors: dict[int, EnqueueError] = {}
        """What went wrong, by the call's place; the other calls are enqueued when all is done."""
        self._attempts = Attempts(prepared[0].tried_seconds, timing)
        self._pending = list(range(len(prepared)))
        self._sent: list[int] = []
        self._isolating = False
        """Whether tasks go one at a time, because it is not known which of them failed the add."""
        self._maybe: set[int] = set()
        """Tasks that an earlier attempt may have added."""
        self._last: dict[int, Refusal] = {}

    def start(self) -> Any:
        """Send what is still to be added, and return the SDK's RPC object; what raises here comes from finish."""
        self._sent = self._pending[:1] if self._isolating else list(self._pending)
        for index in list(self._sent):
            if self.prepared[index].overflowed is not None:
                self._store(index)
        drafts = [self.prepared[index].draft for index in self._sent]
        if not drafts:
            return None
        return sending.start(self.prepared[0].queue, drafts, self._attempts.rpc_seconds())

    def _store(self, index: int) -> None:
        """Put a payload that is too large for its task where the task finds it; without it the task isn't sent."""
        overflowed = self.prepared[index].overflowed
        try:
            if overflowed is not None:
                overflowed.store()
        except Exception as error:  # noqa: BLE001 - whatever the datastore raises is why this call is not enqueued
            self._sent.remove(index)
            self._pending.remove(index)
            self._last[index] = sending.Refusal(error, answers.NOT_SENT, True)
            self._fail(index)

    def finish(self, rpc: Any) -> float | None:
        """Read the answer, waiting for it; return the seconds until the next start, or None when all is done."""
        if rpc is None:
            return 0.0 if self._pending else None
        drafts = [self.prepared[index].draft for index in self._sent]
        refusals = sending.read(rpc, self.prepared[0].queue, drafts)
        if not any(refusals):
            enqueued_all([self.prepared[index] for index in self._sent])
            self._pending = self._pending[len(self._sent) :]
            return 0.0 if self._pending else None
        again: list[int] = []
        decided = isolate = False
        for index, refusal in zip(self._sent, refusals, strict=True):
            if refusal is None or (refusal.answer.exists and self.prepared[index].named_by_us):
                decided = True
                enqueued_all([self.prepared[index]])
                continue
            self._last[index] = refusal
            if refusal.answer.maybe_enqueued:
                self._maybe.add(index)
            if refusal.answer.retried and self.prepared[index].tried_seconds:
                again.append(index)
            elif refusal.of_whole_add and len(drafts) > 1 and not (refusal.answer.of_queue or refusal.answer.exists):
                isolate = True
                again.append(index)
            else:
                decided = True
                self._fail(index)
        self._pending = self._pending[len(self._sent) :] + again
        self._isolating = self._isolating or isolate
        if not self._pending:
            return None
        if decided or isolate:
            return 0.0  # what is left failed with the others, not by itself
        delay = self._attempts.delay()
        if delay is None:
            for index in self._pending:
                self._fail(index)
            self._pending = []
        return delay

    def exists(self, index: int) -> bool:
        """Tell whether the call at ``index`` failed because a task of its name is, or was, in the queue."""
        return index in self.errors and self._last[index].answer.exists

    def tombstoned(self, index: int) -> bool:
        """Tell whether that task was there before, and isn't any more."""
        return isinstance(self._last[index].error, TombstonedTaskError)

    def fail_all(self, error: Exception) -> None:
        """Give up what is not decided, because of ``error``."""
        for index in self._pending:
            self._last[index] = sending.Refusal(error, answers.UNKNOWN, True)
            self._maybe.add(index)
            self._fail(index)
        self._pending = []

    def _fail(self, index: int) -> None:
        prepared, refusal = self.prepared[index], self._last[index]
        notes = []
        if self._attempts.failed:
            notes.append(f"It was tried {self._attempts.failed + 1} times.")
        if index in self._maybe:
            notes.append("The queue may have the task nevertheless.")
        call = prepared.call
        error = sdk.explain(refusal.error, call.label, prepared.queue, call.options.name, notes=" ".join(notes))
        error.maybe_enqueued = index in self._maybe
        self.errors[index] = error
        not_enqueued(prepared, error)


def add(prepared: Prepared, timing: Timing = REAL) -> taskqueue.Task:
    """Add one task; when this returns, it is enqueued. Raises :class:`EnqueueError`."""
    if prepared.transaction is not None:
        return _add_in_transaction(prepared)
    one = Add((prepared,), timing)
    while (delay := one.finish(one.start())) is not None:
        timing.sleep(delay)
    if one.errors:
        error = one.errors[0]
        raise error from error.__cause__
    return prepared.task


def _add_in_transaction(prepared: Prepared) -> taskqueue.Task:
    """Add a task to its transaction, which decides whether it is enqueued; there is one attempt."""
    call, queue, task = prepared.call, prepared.queue, prepared.task
    try:
        with transactions.joined(prepared.transaction, call, queue):
            if prepared.overflowed is not None:
                prepared.overflowed.store()
            task.add(queue, transactional=True)
    except sdk.EnqueueError as error:
        not_enqueued(prepared, error)
        raise
    except Exception as error:
        # Not the SDK's own errors alone: it stumbles over some answers with a TypeError and the like.
        failure = sdk.explain(error, call.label, queue, None)
        failure.maybe_enqueued = answers.for_exception(error).maybe_enqueued
        not_enqueued(prepared, failure)
        raise failure from error
    enqueued_all([prepared])
    return task


def enqueued_all(several: Sequence[Prepared]) -> None:
    """Tell whoever wants to know that calls are enqueued; whatever way they took, they come by here."""
    hooks = current_hooks()
    if not hooks.listens("on_enqueue"):
        return
    for one in several:
        told = Enqueued(call=one.call, queue=one.queue, task=one.task, transactional=one.transactional)
        hooks.fire("on_enqueue", told)


def not_enqueued(prepared: Prepared, error: EnqueueError) -> None:
    """Undo what was done for a call that is not enqueued; whatever way it took, it comes by here.

    Where ``error.maybe_enqueued`` is true, the task may come to run, so that its payload has to stay in the datastore.
    """
    if prepared.overflowed is not None and not error.maybe_enqueued:
        prepared.overflowed.remove()
