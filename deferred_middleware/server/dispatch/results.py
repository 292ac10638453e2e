"""What becomes of a task after an attempt: done, tried again, or given up.

Results of attempts, on their way to the store.

Many come while earlier ones are being written. They are gathered, and written together as soon as it is their turn:

    results = Results(store, written=…, failed=…)
    results.hand_in(completion)     # returns at once
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future

from deferred_middleware.errors import ServerError
from deferred_middleware.server.delivery.http_attempt import AttemptResult
from deferred_middleware.server.store.records import AttemptRecord, ClaimedTask, Completion, RetryPolicy
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.wire import protocol

# A task may ask for any back-off, but the store's integers end somewhere.
_MAX_BACKOFF_SECONDS = 100 * 366 * 24 * 3600.0


def settle(
    task: ClaimedTask,
    result: AttemptResult,
    policy: RetryPolicy,
    *,
    started_usec: int,
    finished_usec: int,
    service: str,
    quarantined: bool = False,
) -> Completion:
    """Return what becomes of a task after an attempt.

    Any status but 2xx is tried again as long as ``policy`` allows, unless the task is ``quarantined``; a 2xx that says
    it is a permanent failure is not.
    """
    attempts = task.retry_count + 1
    first_attempt_usec = started_usec if task.first_attempt_usec is None else task.first_attempt_usec
    reason = result.reason
    eta_usec = task.eta_usec
    state: str
    if result.status is not None and 200 <= result.status < 300:
        permanent = result.outcome in protocol.DEAD_LETTERS
        state = "failed" if permanent else "succeeded"
        reason = "permanent failure" if permanent else reason
    else:
        if result.status is not None:
            reason = reason or f"status {result.status}"
        # The retry that would follow attempt n is retry n.
        if not quarantined and policy.allows(attempts, (finished_usec - first_attempt_usec) / 1e6):
            state = "ready"
            eta_usec = finished_usec + int(min(_MAX_BACKOFF_SECONDS, policy.backoff_seconds(attempts)) * 1e6)
        else:
            state = "failed"
    return Completion(
        task_id=task.id,
        claim_token=task.claim_token,
        state=state,  # type: ignore[arg-type] # one of the three
        eta_usec=eta_usec,
        first_attempt_usec=first_attempt_usec,
        finished_usec=None if state == "ready" else finished_usec,
        retry_count=attempts,
        execution_count=task.execution_count + (1 if result.http_response else 0),
        previous_response=result.status or 0,
        retry_reason="App Error" if result.http_response else "Instance Unavailable",
        attempt=AttemptRecord(
            number=attempts,
            started_usec=started_usec,
            duration_usec=result.duration_usec,
            status=result.status,
            reason=reason,
            service=service,
            excerpt=result.excerpt,
        ),
    )


class Results:
    """Hands results in to ``store``.

    Of each either ``written`` is called, with whether its claim still stood, or ``failed`` with the reason, by any
    thread.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        written: Callable[[Completion, bool], None],
        failed: Callable[[Completion, BaseException], None],
    ) -> None:
        self._store = store
        self._written = written
        self._failed = failed
        self._lock = threading.Lock()
        # What the store has been told of, and has not taken yet.
        self._gathered: list[Completion] = []

    def hand_in(self, completion: Completion) -> None:
        """Have a result written, together with others."""
        with self._lock:
            batch = self._gathered
            batch.append(completion)
            is_first = len(batch) == 1
        if is_first:
            self._submit(batch)

    def hand_in_alone(self, completion: Completion) -> None:
        """Have a result written that shares nothing with others, not even that they fail."""
        self._submit([completion])

    def _submit(self, batch: list[Completion]) -> None:
        try:
            future = self._store.complete_later(functools.partial(self._take, batch))
        except ServerError as error:
            self._fail(batch, error)
        else:
            future.add_done_callback(functools.partial(self._done, batch))

    def _take(self, batch: list[Completion]) -> list[Completion]:
        """Return a batch, to which nothing is added from now on."""
        with self._lock:
            if self._gathered is batch:
                self._gathered = []
        return batch

    def _done(self, batch: list[Completion], future: Future[list[bool]]) -> None:
        error = future.exception()
        if error is not None:
            self._fail(batch, error)
            return
        for completion, stood in zip(batch, future.result(), strict=True):
            self._written(completion, stood)

    def _fail(self, batch: list[Completion], error: BaseException) -> None:
        for completion in self._take(batch):
            self._failed(completion, error)
