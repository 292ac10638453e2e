"""The attempts of all services: what is told when they begin, and what is written when they end.

What a result means is decided by :mod:`~deferred_middleware.server.dispatch.results`. Here is what connects the events
of deliveries with the limits, the quarantine, the store and the people who are told.
"""

from __future__ import annotations

import http
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.server.admin.task_lines import AttemptReports
from deferred_middleware.server.config.services import Service, UnknownServiceError
from deferred_middleware.server.delivery.attempt_result import AttemptEvent, AttemptResult, ProcessEnd
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.queue_limits import QueueLimits
from deferred_middleware.server.dispatch.result_writer import ResultWriter
from deferred_middleware.server.dispatch.results import ResultRules
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.records import ClaimedTask, Completion
from deferred_middleware.server.store.store import TaskStore

logger: Final = get_logger(__name__)


class AttemptRunner:
    """Follows the attempts of all workers, and has their results written. Any thread may call any method.

    ``rules`` decide what a result means, and ``results`` writes it to ``store``. ``reports`` is told of it;
    ``quarantine`` and ``limits`` follow each attempt. The scheduler is woken by ``wake_up`` when a queue may begin
    another attempt.
    """

    def __init__(
        self,
        *,
        store: TaskStore,
        rules: ResultRules,
        results: ResultWriter,
        reports: AttemptReports,
        quarantine: Quarantine,
        limits: QueueLimits,
        clock: WatchedClock,
        wake_up: WakeUp,
    ) -> None:
        self.clock = clock
        self._store = store
        self._rules = rules
        self._results = results
        self._reports = reports
        self._quarantine = quarantine
        self._limits = limits
        self._wake_up = wake_up
        # Guards the other two; _abandoned is also read without it.
        self._lock = threading.Lock()
        self._abandoned = False
        # By task: results of attempts that were cut off and whose handlers still run.
        self._late: dict[int, Completion] = {}

    def begin(self, task: ClaimedTask, service: Service) -> None:
        """Take note that a task is being delivered."""
        if self._limits.began(task.queue):
            self._wake_up.wake()
        self._quarantine.attempt_begins(task, service.id)

    def conclude(self, service: Service, events: Sequence[AttemptEvent], end: ProcessEnd | None = None) -> None:
        """Decide what events of a service's attempts mean, and have the results written.

        ``end`` is the end of the app process, if there was one that ended.
        """
        for event in events:
            try:
                self._conclude(service, event, end)
            except Exception:  # the other tasks' results have to be written
                logger.exception("The end of task %s of queue %s is lost.", event.task.name, event.task.queue)

    def fail(self, task: ClaimedTask, error: UnknownServiceError) -> None:
        """Write the result of an attempt that could not be made, because the task's service isn't served here."""
        now_usec = self.clock.now_usec()
        self._submit(task, self._rules.undeliverable(task, str(error), target=error.target, now_usec=now_usec))
        self._limits.began(task.queue)
        self._limits.ended(task.queue, None, self.clock.monotonic())

    def release(self, tasks: Sequence[ClaimedTask]) -> None:
        """Release tasks that were handed back when no more attempts begin."""
        if tasks and not self._abandoned:
            self._store.release(tasks)

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

    def _conclude(self, service: Service, event: AttemptEvent, end: ProcessEnd | None) -> None:
        task, result = event.task, event.result
        if result is None:  # it was handed back
            self._quarantine.attempt_not_begun(task, service.id)
            self._limits.handed_back(task.queue)
            return
        if event.kind == "cut off":
            self._cut_off(task, service, result)
            return
        try:
            self._write_result(service, event, result, end)
        finally:
            self._end(task, service, result)

    def _write_result(
        self, service: Service, event: AttemptEvent, result: AttemptResult, end: ProcessEnd | None
    ) -> None:
        task = event.task
        with self._lock:
            if self._abandoned:
                return
            late = self._late.pop(task.id, None)
        if late is not None:
            # Its result was decided at its deadline.
            self._submit(task, late)
            return
        if result.reason is not None and result.status is not None and not task.is_http:
            self._log_redirect(task, result)
        finished_usec = self.clock.now_usec()
        times = {"started_usec": finished_usec - result.duration_usec, "finished_usec": finished_usec}
        if event.kind == "answered":
            self._submit(task, self._rules.after_attempt(task, service, result, **times), result.outcome)
            return
        earlier = self._store.queries.attempts(task.id)
        decided = self._rules.after_death(task, service, result, end, earlier, **times)
        if decided is None:
            self._store.release([task])
            self._wake_up.wake()
        else:
            self._submit(task, decided, result.outcome)

    def _log_redirect(self, task: ClaimedTask, result: AttemptResult) -> None:
        """Log that a layer of the app has answered in the task's place, unless it is the same as before.

        If the layer is outside of the middleware, the app logs nothing.
        """
        if task.previous_response != result.status:
            logger.error("Task %s of queue %s (%s) did not run: %s.", task.name, task.queue, task.url, result.reason)

    def _end(self, task: ClaimedTask, service: Service, result: AttemptResult) -> None:
        status = result.status
        if task.is_http and status == http.HTTPStatus.TOO_MANY_REQUESTS:
            # For these targets only, it throttles the queue as a 503 does
            # (https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#httprequest).
            status = http.HTTPStatus.SERVICE_UNAVAILABLE
        effect = self._limits.ended(task.queue, status, self.clock.monotonic() - result.duration_usec / 1e6)
        if effect.slowed_down:
            logger.warning(
                "Service %s responded with %s: queue %s is slowed down.", service.id, result.status, task.queue
            )
            self._wake_up.withdraw([task.queue])
        elif effect.may_begin:
            self._wake_up.wake()

    def _cut_off(self, task: ClaimedTask, service: Service, result: AttemptResult) -> None:
        """Decide the result of an attempt whose handler outlasts its dispatch deadline.

        It is written when the handler has ended, because a retry before that would overlap with it. The attempt keeps
        its slot until then, because the handler keeps a thread of the app.
        """
        finished_usec = self.clock.now_usec()
        times = {"started_usec": finished_usec - result.duration_usec, "finished_usec": finished_usec}
        completion = self._rules.after_attempt(task, service, result, **times)
        with self._lock:
            if self._abandoned:
                return
            self._late[task.id] = completion
        logger.warning(
            "Task %s of queue %s (%s) was cut off at its dispatch deadline. Its handler still runs; the task is not "
            "retried before the handler has ended.",
            task.name,
            task.queue,
            task.url,
        )

    def _submit(self, task: ClaimedTask, completion: Completion, outcome: str | None = None) -> None:
        self._results.submit(completion)
        self._reports.attempt_ended(task, completion, outcome)
