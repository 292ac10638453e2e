"""Add prepared calls to their queue: attempts, their answers, and what became of each call.

An attempt that failed for now, or of which nobody knows how it ended, is repeated under the same name. That the name is
taken is then success for a name of our own, because nobody else can have it; a name of the caller's keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from google.appengine.api.taskqueue import TombstonedTaskError

from deferred_middleware.config.hooks import current_hooks
from deferred_middleware.engines import answers, sending, transactions
from deferred_middleware.enqueue.attempts import REAL, Attempts, Timing
from deferred_middleware.errors import sdk
from deferred_middleware.execution.outcomes import Enqueued

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.engines.sending import Refusal
    from deferred_middleware.enqueue.prepare import Prepared
    from deferred_middleware.errors.sdk import EnqueueError


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
