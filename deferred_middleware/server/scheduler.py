"""What is due, and may run.

One thread waits for the next ETA or for being woken, claims what is due, no more than the services can take, and hands
it to the workers of the service. A worker makes the attempt, hands in the result, and takes the next task while the
result is being written.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from deferred_middleware import protocol
from deferred_middleware.errors import ServerError
from deferred_middleware.server.delivery import AttemptResult, Deliverer
from deferred_middleware.server.queueregistry import QueueRegistry
from deferred_middleware.server.records import AttemptRecord, ClaimedTask, Completion, Lane
from deferred_middleware.server.retry import RetryPolicy
from deferred_middleware.server.services import Service, ServiceDirectory, UnknownServiceError
from deferred_middleware.server.store import TaskStore
from deferred_middleware.server.workers import ServiceWorkers

_log = logging.getLogger(__name__)

# The wall clock may be set forward while nothing is due; it is looked at this often.
_MAX_WAIT_SECONDS = 30.0
_STORE_AGAIN_SECONDS = 1.0
_FIRST_ERROR_PAUSE_SECONDS = 0.1
_MAX_ERROR_PAUSE_SECONDS = 10.0
_UNKNOWN_SERVICE_BATCH = 100
# A task may ask for any back-off, but the store's integers end somewhere.
_MAX_BACKOFF_SECONDS = 100 * 366 * 24 * 3600.0
# How long the workers may take to notice that their attempts were cut off.
_CUT_OFF_SECONDS = 2.0


class Scheduler:
    """Runs the tasks of ``store`` in the services of ``directory``.

    ``clock`` returns the wall clock's seconds since the epoch, which ETAs are compared with.
    """

    def __init__(
        self,
        store: TaskStore,
        directory: ServiceDirectory,
        deliverer: Deliverer,
        *,
        queues: QueueRegistry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._directory = directory
        self._deliverer = deliverer
        self._queues = QueueRegistry() if queues is None else queues
        self._clock = clock
        self._condition = threading.Condition()
        self._woken = False
        self._stopping = False
        self._abandoned = False
        self._thread: threading.Thread | None = None
        self._workers = {service: ServiceWorkers(service, self._run_task, self.wake) for service in directory}
        # When a lane was last given a turn; the one that waits longest goes first.
        self._turns: dict[Lane, int] = {}
        self._turn = 0
        self._unstored_lock = threading.Lock()
        self._unstored: list[Completion] = []
        self._store_again_at = 0.0

    def start(self) -> None:
        """Begin to run tasks."""
        for workers in self._workers.values():
            workers.start()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look now for what is due: something was added, or a service can take more."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def stop(self, grace_seconds: float) -> int:
        """Stop running tasks; return how many could not finish and are due again.

        Attempts in flight have ``grace_seconds`` to end and are cut off then. No task is claimed after the call.
        """
        with self._condition:
            self._stopping = True
            self._condition.notify()
        until = time.monotonic() + grace_seconds
        if self._thread is not None:
            self._thread.join()
        unstarted = [task for workers in self._workers.values() for task in workers.stop()]
        for workers in self._workers.values():
            workers.join(until)
        # From here on results are dropped: the tasks are given back, and only then are their attempts cut off, because
        # that is no failure of theirs.
        self._abandoned = True
        left = unstarted + [task for workers in self._workers.values() for task in workers.running()]
        with self._unstored_lock:
            unstored, self._unstored = self._unstored, []
        if unstored:
            self._store.complete(unstored)
        released = self._store.release(left) if left else 0
        self._deliverer.close()
        until = time.monotonic() + _CUT_OFF_SECONDS
        for workers in self._workers.values():
            workers.join(until)
        return released

    def _run(self) -> None:
        wait_seconds = 0.0
        pause_seconds = _FIRST_ERROR_PAUSE_SECONDS
        while True:
            with self._condition:
                if not self._woken and not self._stopping and wait_seconds > 0:
                    self._condition.wait(wait_seconds)
                if self._stopping:
                    return
                self._woken = False
            try:
                wait_seconds = self._round()
                pause_seconds = _FIRST_ERROR_PAUSE_SECONDS
            except Exception:  # noqa: BLE001 - whatever it is (a full disk, say), the tasks are safe, so go on
                _log.exception("The scheduler failed; it goes on in %g s.", pause_seconds)
                with self._condition:
                    self._condition.wait_for(lambda: self._stopping, pause_seconds)
                wait_seconds = 0.0
                pause_seconds = min(_MAX_ERROR_PAUSE_SECONDS, 2 * pause_seconds)

    def _round(self) -> float:
        """Claim what is due and hand it out; return for how many seconds there is nothing to do."""
        wait_seconds = min(_MAX_WAIT_SECONDS, self._store_again())
        now_usec = int(self._clock() * 1e6)
        due: dict[Service, list[Lane]] = {}
        for lane, eta_usec in self._store.lanes():
            # Here a queue's rate, its concurrency and its being paused would be asked.
            if eta_usec > now_usec:
                wait_seconds = min(wait_seconds, (eta_usec - now_usec) / 1e6)
                continue
            try:
                due.setdefault(self._directory.by_target(lane.target), []).append(lane)
            except UnknownServiceError as error:
                self._fail_unknown(lane, error, now_usec)
                wait_seconds = 0.0
        limits: dict[Lane, int] = {}
        for service, workers in self._workers.items():
            lanes = due.get(service, [])
            self._share(lanes, workers.free(hungry=bool(lanes)), limits)
        if limits:
            for task in self._store.claim(limits, now_usec):
                self._workers[self._directory.by_target(task.target)].put(task)
                wait_seconds = 0.0
        return wait_seconds

    def _share(self, lanes: list[Lane], free: int, limits: dict[Lane, int]) -> None:
        """Divide what a service can take among the lanes, so that a long one doesn't hold up the others."""
        lanes.sort(key=lambda lane: self._turns.get(lane, 0))
        for position, lane in enumerate(lanes):
            share = math.ceil(free / (len(lanes) - position))
            if share:
                limits[lane] = share
                free -= share
                self._turn += 1
                self._turns[lane] = self._turn

    def _fail_unknown(self, lane: Lane, error: UnknownServiceError, now_usec: int) -> None:
        tasks = self._store.claim({lane: _UNKNOWN_SERVICE_BATCH}, now_usec)
        _log.warning("%d tasks of queue %s can't be delivered: %s", len(tasks), lane.queue, error)
        for task in tasks:
            result = AttemptResult(status=None, duration_usec=0, reason=str(error))
            self._finish(task, result, started_usec=now_usec, service=lane.target)

    def _run_task(self, task: ClaimedTask, service: Service) -> None:
        """Make one attempt and hand in its result; called by the service's workers."""
        started_usec = int(self._clock() * 1e6)
        try:
            result = self._deliverer.deliver(task, service, host=self._directory.host(task.target))
        except Exception as error:  # noqa: BLE001 - a defect here must not keep the task from being tried again
            _log.exception("Task %s of queue %s could not be delivered.", task.name, task.queue)
            result = AttemptResult(status=None, duration_usec=0, reason=f"{type(error).__name__}: {error}")
        if not self._abandoned:
            self._finish(task, result, started_usec=started_usec, service=service.name)

    def _finish(self, task: ClaimedTask, result: AttemptResult, *, started_usec: int, service: str) -> None:
        policy = task.retry or self._queues.config_of(task.queue).retry
        completion = settle(
            task,
            result,
            policy,
            started_usec=started_usec,
            finished_usec=max(started_usec, int(self._clock() * 1e6)),
            service=service,
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
        self._hand_in(completion)

    def _hand_in(self, completion: Completion) -> None:
        def written(future: Future[list[bool]]) -> None:
            error = future.exception()
            if error is not None:
                self._keep_unstored(completion, error)
            elif future.result() == [False]:
                _log.info("A task was deleted or released while it ran; its result is dropped.")
            elif completion.state == "ready":
                self.wake()

        try:
            self._store.complete_later([completion]).add_done_callback(written)
        except ServerError as error:
            self._keep_unstored(completion, error)

    def _keep_unstored(self, completion: Completion, error: BaseException) -> None:
        # Its task would not be claimed again before the next start, so go on trying to write the result.
        _log.error("A task's result could not be written, which will be tried again: %s", error)
        with self._unstored_lock:
            self._unstored.append(completion)
        self.wake()

    def _store_again(self) -> float:
        """Try again to write results that could not be written; return in how many seconds to do so again."""
        with self._unstored_lock:
            if not self._unstored:
                return _MAX_WAIT_SECONDS
            remaining = self._store_again_at - time.monotonic()
            if remaining > 0:
                return remaining
            self._store_again_at = time.monotonic() + _STORE_AGAIN_SECONDS
            unstored, self._unstored = self._unstored, []
        for completion in unstored:
            self._hand_in(completion)
        return _STORE_AGAIN_SECONDS


def settle(
    task: ClaimedTask,
    result: AttemptResult,
    policy: RetryPolicy,
    *,
    started_usec: int,
    finished_usec: int,
    service: str,
) -> Completion:
    """Return what becomes of a task after an attempt: done, tried again, or given up.

    Any status but 2xx is tried again as long as ``policy`` allows; a 2xx that says it is a permanent failure is not.
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
        if policy.allows(attempts, (finished_usec - first_attempt_usec) / 1e6):
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
