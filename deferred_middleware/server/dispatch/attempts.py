"""One attempt to run a task: begin it, wait for its result, have the result decided and written.

What a result means is decided by :mod:`~deferred_middleware.server.dispatch.results`. Here is what has to be waited
for: the response, the end of an app process, and the end of a handler that outlasts its dispatch deadline.
"""

from __future__ import annotations

import http
import math
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.server.admin.task_lines import AttemptReports
from deferred_middleware.server.apps.process_ends import ProcessEnds
from deferred_middleware.server.config.services import Service, UnknownServiceError
from deferred_middleware.server.delivery.http_attempt import AttemptResult, Deliverer, HttpAttempt
from deferred_middleware.server.delivery.url_attempt import UrlDeliverer
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.planning import Destinations
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.queue_limits import QueueLimits
from deferred_middleware.server.dispatch.result_writer import ResultWriter
from deferred_middleware.server.dispatch.results import ResultRules
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.records import ClaimedTask, Completion
from deferred_middleware.server.store.store import TaskStore

if TYPE_CHECKING:
    from deferred_middleware.server.dispatch.worker import ServiceWorker

logger: Final = get_logger(__name__)


class AttemptRunner:
    """Makes attempts for all workers, and has their results written. Any thread may call any method.

    Tasks are sent by ``deliverer`` to their ``destinations``, or by ``url_deliverer`` to their own URLs. ``rules``
    decide what a result means, and ``results`` writes it to ``store``. ``reports`` is told of it; ``quarantine`` and
    ``limits`` follow each attempt. ``process_ends`` knows which app processes have ended. The scheduler is woken by
    ``wake_up`` when a queue may begin another attempt.
    """

    def __init__(
        self,
        *,
        store: TaskStore,
        deliverer: Deliverer,
        url_deliverer: UrlDeliverer,
        destinations: Destinations,
        rules: ResultRules,
        results: ResultWriter,
        reports: AttemptReports,
        quarantine: Quarantine,
        limits: QueueLimits,
        process_ends: ProcessEnds,
        clock: WatchedClock,
        wake_up: WakeUp,
    ) -> None:
        self.clock = clock
        self._store = store
        self._deliverer = deliverer
        self._url_deliverer = url_deliverer
        self._destinations = destinations
        self._rules = rules
        self._results = results
        self._reports = reports
        self._quarantine = quarantine
        self._limits = limits
        self._process_ends = process_ends
        self._wake_up = wake_up
        # Guards the other two; _abandoned is also read without it.
        self._lock = threading.Lock()
        self._abandoned = False
        # By task: results of attempts that were cut off and whose handlers still run.
        self._late: dict[int, Completion] = {}

    def begin(self, task: ClaimedTask, worker: ServiceWorker) -> TaskAttempt:
        """Return a new attempt of ``task`` for ``worker``; nothing has been sent yet."""
        if self._limits.began(task.queue):
            self._wake_up.wake()
        return TaskAttempt(self, worker, task)

    def start(self, task: ClaimedTask, service: Service) -> HttpAttempt:
        """Return the request that delivers a task; nothing has been sent yet."""
        self._quarantine.attempt_begins(task, service.id)
        return self._deliverer.begin(task, service, host=self._destinations.host_of(task))

    def deliver_to_url(self, task: ClaimedTask) -> AttemptResult:
        """Make an attempt of a task that has a complete URL, and wait for its end."""
        return self._url_deliverer.deliver(task)

    def conclude(self, attempt: TaskAttempt, result: AttemptResult) -> None:
        """Decide what the result of an attempt means, and have it written.

        This blocks if the connection broke off, until the end of the app process is known, and if the handler outlasts
        its dispatch deadline, until the handler has ended.
        """
        task, service = attempt.task, attempt.service
        try:
            if not self._abandoned:
                self._conclude(attempt, result)
        finally:
            status = result.status
            if task.is_http and status == http.HTTPStatus.TOO_MANY_REQUESTS:
                # For these targets only, it throttles the queue as a 503 does
                # (https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#httprequest).
                status = http.HTTPStatus.SERVICE_UNAVAILABLE
            effect = self._limits.ended(task.queue, status, attempt.began)
            if effect.slowed_down:
                logger.warning(
                    "Service %s responded with %s: queue %s is slowed down.", service.id, result.status, task.queue
                )
                self._wake_up.withdraw([task.queue])
            elif effect.may_begin:
                self._wake_up.wake()

    def fail(self, task: ClaimedTask, error: UnknownServiceError) -> None:
        """Write the result of an attempt that could not be made, because the task's service isn't served here."""
        now_usec = self.clock.now_usec()
        self._submit(task, self._rules.undeliverable(task, str(error), target=error.target, now_usec=now_usec))
        self._limits.began(task.queue)
        self._limits.ended(task.queue, None, self.clock.monotonic())

    def abandon(self, running: Iterable[ClaimedTask]) -> list[ClaimedTask]:
        """Ignore the results of attempts in flight from now on; return the tasks among ``running`` to release.

        Results that are known already are written: those that could not be written before, and those of attempts that
        were cut off.
        """
        with self._lock:
            self._abandoned = True
            late, self._late = self._late, {}
        known = [*self._results.take_unwritten(), *late.values()]
        if known:
            self._store.complete(known)
        return [task for task in running if task.id not in late]

    def _conclude(self, attempt: TaskAttempt, result: AttemptResult) -> None:
        task, service = attempt.task, attempt.service
        died, end = False, None
        if result.broken_off:
            end = self._process_ends.wait_for(service.id, since=attempt.began)
            died = end is not None or not self._process_ends.watches(service.id)
        # If the clock was set back during the attempt, the back-off counts from its new time.
        finished_usec = self.clock.now_usec()
        times = {"started_usec": min(attempt.started_usec, finished_usec), "finished_usec": finished_usec}
        if not died:
            completion = self._rules.after_attempt(task, service, result, **times)
        else:
            earlier = self._store.queries.attempts(task.id)
            decided = self._rules.after_death(task, service, result, end, earlier, **times)
            if decided is None:
                self._store.release([task])
                self._wake_up.wake()
                return
            completion = decided
        if result.late is not None and not self._wait_for_handler(task, completion, result):
            return
        self._submit(task, completion, result.outcome)

    def _wait_for_handler(self, task: ClaimedTask, completion: Completion, result: AttemptResult) -> bool:
        """Wait for the end of a handler that was cut off; return whether its result is still to be written.

        A retry before that end would overlap with the handler. The attempt keeps its slot during the wait, because the
        handler keeps a thread of the app.
        """
        assert result.late is not None
        with self._lock:
            if self._abandoned:
                return False
            self._late[task.id] = completion
        logger.warning(
            "Task %s of queue %s (%s) was cut off at its dispatch deadline. Its handler still runs; the task is not "
            "retried before the handler has ended.",
            task.name,
            task.queue,
            task.url,
        )
        result.late.wait()
        with self._lock:
            return self._late.pop(task.id, None) is not None

    def _submit(self, task: ClaimedTask, completion: Completion, outcome: str | None = None) -> None:
        self._results.submit(completion)
        self._reports.attempt_ended(task, completion, outcome)


class TaskAttempt:
    """One attempt of ``task`` for ``worker``, which calls :meth:`proceed` until that returns true.

    Only one thread at a time uses it: the worker's, and then the one that concludes it.
    """

    def __init__(self, runner: AttemptRunner, worker: ServiceWorker, task: ClaimedTask) -> None:
        self.task = task
        self.service: Service = worker.service
        self.began: float = runner.clock.monotonic()
        self.started_usec: int = runner.clock.now_usec()
        self._runner = runner
        self._worker = worker
        self._request: HttpAttempt | None = None

    def fileno(self) -> int:
        """Return the descriptor that it waits for, -1 if it waits for none."""
        return -1 if self._request is None else self._request.fileno()

    @property
    def awaited(self) -> int:
        """The events that its descriptor waits for, as :mod:`select` defines them."""
        return 0 if self._request is None else self._request.awaited

    @property
    def deadline(self) -> float:
        """When to call :meth:`proceed` in any case, by the monotonic clock."""
        return math.inf if self._request is None else self._request.deadline

    def proceed(self) -> bool:
        """Do what can be done without waiting, at first send the task; return whether the worker is done with it."""
        task = self.task
        if task.is_http:
            # The attempt waits in a thread of its own: for the name to be resolved, and for the response.
            threading.Thread(target=self._deliver_to_url, name="deliver-url", daemon=True).start()
            return True
        try:
            if self._request is None:
                self._request = self._runner.start(task, self.service)
            result = self._request.proceed()
            if result is None:
                return False
        except Exception as error:  # a defect here must not keep the task from being retried
            logger.exception("Task %s of queue %s could not be delivered.", task.name, task.queue)
            result = AttemptResult(status=None, duration_usec=0, reason=f"{type(error).__name__}: {error}")
        if result.broken_off or result.late is not None:
            # The conclusion waits for the end of the process or of the handler; the worker's thread must not.
            try:
                threading.Thread(target=self._conclude, args=(result,), name="conclude", daemon=True).start()
                return True
            except RuntimeError as error:
                logger.error("%s. The service's other tasks wait for the end of task %s.", error, task.name)
        self._conclude(result)
        return True

    def _deliver_to_url(self) -> None:
        try:
            result = self._runner.deliver_to_url(self.task)
        except Exception as error:  # a defect here must not keep the task from being retried
            logger.exception("Task %s of queue %s could not be delivered.", self.task.name, self.task.queue)
            result = AttemptResult(status=None, duration_usec=0, reason=f"{type(error).__name__}: {error}")
        self._conclude(result)

    def _conclude(self, result: AttemptResult) -> None:
        try:
            self._runner.conclude(self, result)
        except Exception:  # the thread has to survive for the other tasks
            logger.exception("Task %s of queue %s could not be run.", self.task.name, self.task.queue)
        finally:
            self._worker.attempt_ended(self.task, self._runner.clock.monotonic() - self.began)
