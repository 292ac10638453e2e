"""From a claimed task to the result that is written: one attempt, and what is to be known about it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable

from deferred_middleware.server.apps.process_ends import ProcessEnds
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.delivery.http_attempt import AttemptResult, Deliverer, Delivery
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.queue_limits import QueueGates
from deferred_middleware.server.dispatch.results import Results, settle
from deferred_middleware.server.store.records import ClaimedTask, Completion
from deferred_middleware.server.store.store import TaskStore

_log = logging.getLogger(__name__)

_STORE_AGAIN_SECONDS = 1.0
_NOTHING_TO_STORE_SECONDS = 3600.0


class Attempts:
    """Makes attempts by ``deliverer`` and writes their results to ``store``; used by all workers at once.

    ``wake`` is called when a task waits for its next attempt, ``withdraw`` with the queues that were slowed down.
    """

    def __init__(
        self,
        store: TaskStore,
        deliverer: Deliverer,
        directory: ServiceDirectory,
        *,
        queues: QueueRegistry,
        gates: QueueGates,
        clock: WatchedClock,
        process_ends: ProcessEnds,
        wake: Callable[[], None],
        withdraw: Callable[[Collection[str]], None],
    ) -> None:
        self._store = store
        self._deliverer = deliverer
        self._directory = directory
        self._queues = queues
        self._gates = gates
        self._clock = clock
        self._process_ends = process_ends
        self._wake = wake
        self._withdraw = withdraw
        self.quarantine = Quarantine(store.queries.attempts)
        self._lock = threading.Lock()
        self._abandoned = False
        self._results = Results(store, written=self._written, failed=self._keep_unstored)
        self._unstored: list[Completion] = []
        self._store_again_at = 0.0
        # Results of attempts that were cut off, while their handlers go on.
        self._late: dict[int, Completion] = {}

    def target(self, queue: str, target: str) -> str:
        """Return where a task of a queue goes: the queue's target wins over its own."""
        return self._queues.config_of(queue).target or target

    def begin(self, task: ClaimedTask, service: Service, ended: Callable[[], None]) -> Attempt:
        """Return an attempt that is to be made; ``ended`` is called at its end, maybe by another thread."""
        return Attempt(self, task, service, ended)

    def start(self, task: ClaimedTask, service: Service) -> Delivery:
        """Return the delivery of a task, which has not been sent yet."""
        self.quarantine.begins(task, service.id)
        host = self._directory.host(self.target(task.queue, task.target))
        return self._deliverer.begin(task, service, host=host)

    def conclude(
        self, task: ClaimedTask, service: Service, result: AttemptResult, *, started_usec: int, began: float
    ) -> None:
        """Hand in how an attempt ended."""
        try:
            self._conclude(task, service, result, started_usec=started_usec, began=began)
        finally:
            may_begin, slowed = self._gates.ended(task.queue, result.status, began)
            if slowed:
                _log.warning("Service %s answered 503: queue %s is slowed down.", service.id, task.queue)
                self._withdraw([task.queue])
            elif may_begin:
                self._wake()

    def now_usec(self) -> int:
        """Return the wall clock's time."""
        return self._clock.now_usec()

    def fail(self, task: ClaimedTask, reason: str, *, service: str) -> None:
        """Hand in an attempt that could not be made."""
        result = AttemptResult(status=None, duration_usec=0, reason=reason)
        self._results.hand_in(self._settle(task, result, self._clock.now_usec(), service))
        self._gates.ended(task.queue, None, time.monotonic())

    def abandon(self, running: Iterable[ClaimedTask]) -> list[ClaimedTask]:
        """Drop the results of attempts that are under way; return their tasks, which have to be released.

        What is known already is written: a result that could not be, and an attempt that was cut off.
        """
        with self._lock:
            self._abandoned = True
            unstored, self._unstored = self._unstored, []
            late, self._late = self._late, {}
        known = [*unstored, *late.values()]
        if known:
            self._store.complete(known)
        return [task for task in running if task.id not in late]

    def store_again(self) -> float:
        """Try again to write results that could not be written; return in how many seconds to do so again."""
        with self._lock:
            if not self._unstored:
                return _NOTHING_TO_STORE_SECONDS
            remaining = self._store_again_at - time.monotonic()
            if remaining > 0:
                return remaining
            self._store_again_at = time.monotonic() + _STORE_AGAIN_SECONDS
            unstored, self._unstored = self._unstored, []
        for completion in unstored:
            # By itself, lest one that can never be written keeps the others from being.
            self._results.hand_in_alone(completion)
        return _STORE_AGAIN_SECONDS

    def _conclude(
        self, task: ClaimedTask, service: Service, result: AttemptResult, *, started_usec: int, began: float
    ) -> None:
        if self._abandoned:
            return
        quarantined = False
        if result.broken_off:
            end = self._process_ends.wait_for(service.id, since=began)
            if end is not None and end.intended:
                # No failure of the task, and no attempt: nobody knows how it would have ended.
                self.quarantine.survived(task, service.id)
                self._store.release([task])
                self._wake()
                return
            if end is not None or not self._process_ends.watches(service.id):
                reason, quarantined = self.quarantine.died(task, service.id, end)
                result = result.because(reason)
            else:
                self.quarantine.survived(task, service.id)
        else:
            self.quarantine.survived(task, service.id)
        completion = self._settle(task, result, started_usec, service.id, quarantined=quarantined)
        if result.late is not None and not self._outlast(task, completion, result):
            return
        self._results.hand_in(completion)

    def _outlast(self, task: ClaimedTask, completion: Completion, result: AttemptResult) -> bool:
        """Wait for the end of a handler that was cut off; return whether the result is still to be handed in.

        Another attempt before that end would overlap with it. Its thread is taken as long, so this one may wait.
        """
        assert result.late is not None
        with self._lock:
            if self._abandoned:
                return False
            self._late[task.id] = completion
        _log.warning(
            "Task %s of queue %s (%s) was cut off at its dispatch deadline. Its handler goes on; the task is not tried "
            "again before it has ended.",
            task.name,
            task.queue,
            task.url,
        )
        result.late.wait()
        with self._lock:
            return self._late.pop(task.id, None) is not None

    def _settle(
        self, task: ClaimedTask, result: AttemptResult, started_usec: int, service: str, *, quarantined: bool = False
    ) -> Completion:
        completion = settle(
            task,
            result,
            task.retry or self._queues.config_of(task.queue).retry,
            started_usec=started_usec,
            finished_usec=max(started_usec, self._clock.now_usec()),
            service=service,
            quarantined=quarantined,
        )
        if completion.state == "failed":
            _log.error(
                "Task %s of queue %s (%s) has failed for good after %d attempts: %s",
                task.name,
                task.queue,
                task.url,
                completion.retry_count,
                completion.attempt.reason,
            )
        return completion

    def _written(self, completion: Completion, stood: bool) -> None:
        if not stood:
            _log.info("A task was deleted or released while it ran; its result is dropped.")
        elif completion.state == "ready":
            self._wake()

    def _keep_unstored(self, completion: Completion, error: BaseException) -> None:
        # Its task would not be claimed again before the next start, so go on trying to write the result.
        _log.error("A task's result could not be written, which will be tried again: %s", error)
        with self._lock:
            self._unstored.append(completion)
        self._wake()


class Attempt:
    """One attempt under way. Whoever made it calls :meth:`proceed` until that says that it is over."""

    def __init__(self, attempts: Attempts, task: ClaimedTask, service: Service, ended: Callable[[], None]) -> None:
        self._attempts = attempts
        self._task = task
        self._service = service
        self._ended = ended
        self._began = time.monotonic()
        self._started_usec = attempts.now_usec()
        self._delivery: Delivery | None = None

    def fileno(self) -> int:
        """Return the descriptor that it waits for, -1 if it waits for none."""
        return -1 if self._delivery is None else self._delivery.fileno()

    @property
    def awaited(self) -> int:
        """What it waits for, as :mod:`select` has it."""
        return 0 if self._delivery is None else self._delivery.awaited

    @property
    def deadline(self) -> float:
        """When it is to go on in any case, by the monotonic clock."""
        return math.inf if self._delivery is None else self._delivery.deadline

    def proceed(self) -> bool:
        """Go on, the first time by sending the task; return whether nothing is left to be waited for."""
        try:
            if self._delivery is None:
                self._delivery = self._attempts.start(self._task, self._service)
            result = self._delivery.proceed()
            if result is None:
                return False
        except Exception as error:  # noqa: BLE001 - a defect here must not keep the task from being tried again
            _log.exception("Task %s of queue %s could not be delivered.", self._task.name, self._task.queue)
            result = AttemptResult(status=None, duration_usec=0, reason=f"{type(error).__name__}: {error}")
        if result.broken_off or result.late is not None:
            # Something is to be waited for now: what became of the process, or the handler's end.
            try:
                threading.Thread(target=self._conclude, args=(result,), name="conclude", daemon=True).start()
                return True
            except RuntimeError as error:
                _log.error("%s, so that everything waits for the end of task %s.", error, self._task.name)
        self._conclude(result)
        return True

    def _conclude(self, result: AttemptResult) -> None:
        try:
            self._attempts.conclude(
                self._task, self._service, result, started_usec=self._started_usec, began=self._began
            )
        except Exception:  # noqa: BLE001 - the thread has to stay for the other tasks
            _log.exception("Task %s of queue %s could not be run.", self._task.name, self._task.queue)
        finally:
            self._ended()
