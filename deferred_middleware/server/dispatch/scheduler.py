"""The thread that claims due tasks and assigns them to the workers of their services.

It waits for the next ETA or to be woken. Then it claims due tasks, no more than the limits of their queues and the
slots of their services allow, and assigns them to the workers. These make the attempts, have the results written, and
begin the next attempts in the meantime.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from deferred_middleware.server.admin.reading.standing import QueueStanding
from deferred_middleware.server.admin.task_lines import AttemptReports, DeadLetterLog
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import HTTP_TARGETS, ServiceDirectory, UnknownServiceError
from deferred_middleware.server.delivery.http_attempt import Deliverer
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.delivery.url_attempt import UrlDeliverer
from deferred_middleware.server.dispatch.attempts import AttemptRunner
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.planning import ClaimPlanner, Destinations, Round
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.queue_limits import QueueLimits
from deferred_middleware.server.dispatch.result_writer import ResultWriter
from deferred_middleware.server.dispatch.results import ResultRules
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.dispatch.worker import Links, ServiceWorker
from deferred_middleware.server.store.records import ClaimedTask, Lane, TaskSummary
from deferred_middleware.server.store.store import TaskStore

logger: Final = logging.getLogger(__name__)

# Somebody may set the wall clock forward while nothing is due, so it is read this often.
_MAX_WAIT_SECONDS = 30.0
_FIRST_ERROR_PAUSE_SECONDS = 0.1
_MAX_ERROR_PAUSE_SECONDS = 10.0
_UNDELIVERABLE_BATCH = 100
_FORCED_BATCH = 10
# How long the workers may take to notice that their connections were closed.
_CUT_OFF_SECONDS = 2.0


class Scheduler:
    """Runs the tasks of ``store`` in the services of ``directory``, as ``queues`` allow.

    ``clock`` returns the wall clock's seconds since the epoch, which ETAs are compared with, and ``monotonic`` seconds
    that never go back. ``requests`` makes the requests of tasks; ``url_deliverer`` sends those that have complete URLs.
    ``reports`` is told of each attempt's end; by default, dead letters are logged. ``real_seconds`` returns how long to
    wait until so many seconds of the clock have passed. Call :meth:`wake` when tasks were added, and when a queue was
    paused or resumed in the store; the scheduler itself notices a change of ``queues``.
    """

    def __init__(
        self,
        store: TaskStore,
        directory: ServiceDirectory,
        requests: TaskRequests,
        *,
        queues: QueueRegistry | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        reports: AttemptReports | None = None,
        url_deliverer: UrlDeliverer | None = None,
        real_seconds: Callable[[float], float] = lambda seconds: seconds,
    ) -> None:
        queues = QueueRegistry() if queues is None else queues
        self._store = store
        self._directory = directory
        self._real_seconds = real_seconds
        self._clock = WatchedClock(store.shift_etas, wall=clock, monotonic=monotonic)
        self._clock.check_against(store.queries.newest_created_usec())
        self._wake_up = WakeUp()
        self._limits = QueueLimits(queues, clock=monotonic)
        self._destinations = Destinations(queues, directory)
        self._planner = ClaimPlanner(self._destinations, self._limits)
        self._results = ResultWriter(store, self._wake_up, self._clock)
        quarantine = Quarantine(clock=monotonic)
        self._links = Links(
            requests=requests,
            destinations=self._destinations,
            deliverer=Deliverer(requests),
            url_deliverer=url_deliverer or UrlDeliverer(),
        )
        self._runner = AttemptRunner(
            store=store,
            rules=ResultRules(queues, quarantine),
            results=self._results,
            reports=reports or DeadLetterLog(),
            quarantine=quarantine,
            limits=self._limits,
            clock=self._clock,
            wake_up=self._wake_up,
        )
        self._workers = {
            service: ServiceWorker(
                service, ServiceSlots(service.concurrency, quarantine), self._runner, self._wake_up, self._links
            )
            for service in (*directory, HTTP_TARGETS)
        }
        self._thread: threading.Thread | None = None
        # The queues that people have paused, as of the last round, and the lanes that were found to be undeliverable.
        # Only the scheduler's thread uses them.
        self._paused: frozenset[str] = frozenset()
        self._undeliverable: set[Lane] = set()
        self._queues = queues
        queues.on_change(self._queues_changed)
        self._queues_changed()

    def start(self) -> None:
        """Begin to run tasks."""
        for worker in self._workers.values():
            worker.start()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look for due tasks now."""
        self._wake_up.wake()

    def worker_of(self, service: str) -> ServiceWorker:
        """Return the worker of a service, which has to know the service's processes if they run here."""
        return self._workers[self._directory.by_id(service)]

    def queue_standing(self, queue: str) -> QueueStanding:
        """Return what limits a queue at this moment."""
        return self._limits.standing(queue)

    def service_of(self, task: TaskSummary) -> str:
        """Return the ID of a task's service. Raises :class:`UnknownServiceError` if it isn't served here."""
        return self._destinations.service_of(task).id

    def running_in(self, service: str) -> int:
        """Return how many attempts are in flight in a service."""
        return self.worker_of(service).slots.occupied

    def suspend_service(self, service: str) -> None:
        """Begin no attempt in a service, because its process is about to end; its due tasks wait."""
        self.worker_of(service).suspend(True)

    def resume_service(self, service: str) -> None:
        """Begin attempts in a service again."""
        self.worker_of(service).suspend(False)
        self.wake()

    def stop(self, grace_seconds: float) -> int:
        """Stop running tasks; return how many did not finish and are due again.

        Attempts in flight have ``grace_seconds`` to end and are then cut off. No task is claimed after the call.
        """
        self._wake_up.stop()
        until = time.monotonic() + grace_seconds
        if self._thread is not None:
            self._thread.join()
        not_begun = [task for worker in self._workers.values() for task in worker.stop()]
        self._join_workers(until)
        # The tasks are released before their attempts are cut off, because the cut is no failure of the tasks.
        running = [task for worker in self._workers.values() for task in worker.slots.running()]
        left = [*not_begun, *self._runner.abandon(running)]
        released = self._store.release(left) if left else 0
        self._links.close()
        for worker in self._workers.values():
            worker.cut_off()
        self._join_workers(time.monotonic() + _CUT_OFF_SECONDS)
        return released

    def run_round(self) -> float:
        """Claim due tasks and assign them to the workers; return for how many seconds there is nothing more to do."""
        wait_seconds = min(_MAX_WAIT_SECONDS, self._results.retry_unwritten())
        self._withdraw_changed()
        if self._store.forced_waiting:
            self._claim_forced()
        now_usec = self._clock.now_usec()
        found = self._planner.survey(self._store.queries.lanes(), now_usec, self._paused)
        wait_seconds = min(wait_seconds, found.wait_seconds)
        for lane, error in found.undeliverable:
            self._fail_undeliverable(lane, error, found, now_usec)
            wait_seconds = 0.0
        for service, worker in self._workers.items():
            if self._claim_for(worker, found.due.get(service, {}), found, now_usec):
                wait_seconds = 0.0
        return wait_seconds

    def _run(self) -> None:
        wait_seconds = 0.0
        pause_seconds = _FIRST_ERROR_PAUSE_SECONDS
        while self._wake_up.wait(min(_MAX_WAIT_SECONDS, self._real_seconds(wait_seconds))):
            try:
                wait_seconds = self.run_round()
                pause_seconds = _FIRST_ERROR_PAUSE_SECONDS
            except Exception:  # whatever it is (a full disk, say), the tasks are safe, so it tries again
                logger.exception("The scheduler failed; it tries again in %g s.", pause_seconds)
                self._wake_up.pause(pause_seconds)
                wait_seconds = 0.0
                pause_seconds = min(_MAX_ERROR_PAUSE_SECONDS, 2 * pause_seconds)

    def _claim_for(self, worker: ServiceWorker, due: dict[str, list[Lane]], found: Round, now_usec: int) -> bool:
        """Claim due tasks for one service, and assign them; return whether to look again at once."""
        worker.slots.more_is_due(bool(due))
        claims = self._planner.claims(due, worker.slots, found.allowed) if due else {}
        if not claims:
            return False
        tasks = self._store.claim(claims, now_usec)
        self._count_claimed(tasks)
        worker.assign(tasks)
        # Even if there were none: what was due may have been deleted meanwhile, and it hid the lane's next ETA.
        return True

    def _claim_forced(self) -> None:
        """Claim tasks that people want to run now."""
        tasks = self._store.claim_forced(_FORCED_BATCH)
        self._count_claimed(tasks, forced=True)
        for task in tasks:
            try:
                self._workers[self._destinations.service_of(task)].assign([task], forced=True)
            except UnknownServiceError as error:
                self._runner.fail(task, error)
        if tasks:
            self.wake()

    def _fail_undeliverable(self, lane: Lane, error: UnknownServiceError, found: Round, now_usec: int) -> None:
        """Let an attempt of each due task of a lane fail, because its service isn't served here."""
        number = min(found.allowed[lane.queue], _UNDELIVERABLE_BATCH)
        if not number:
            return
        tasks = self._store.claim({lane: number}, now_usec)
        self._count_claimed(tasks)
        found.allowed[lane.queue] -= len(tasks)
        # Once for each lane, because the attempts are reported too.
        if lane not in self._undeliverable:
            self._undeliverable.add(lane)
            logger.warning("Undeliverable tasks of queue %s: %d. %s", lane.queue, len(tasks), error)
        for task in tasks:
            self._runner.fail(task, error)

    def _count_claimed(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        for queue, number in Counter(task.queue for task in tasks).items():
            self._limits.claimed(queue, number, forced=forced)

    def _withdraw_changed(self) -> None:
        """Release the tasks that are claimed and not begun of queues whose limits have changed."""
        paused = self._store.operations.paused()
        changed = self._wake_up.take_queues_to_withdraw() | (paused - self._paused)
        self._paused = paused
        if not changed:
            return
        withdrawn = [task for worker in self._workers.values() for task in worker.slots.withdraw(changed)]
        if not withdrawn:
            return
        try:
            self._store.release(withdrawn)
        except Exception:
            # They are still claimed, so no other round would claim them.
            for task in withdrawn:
                self._workers[self._destinations.service_of(task)].assign([task])
            raise
        for task in withdrawn:
            self._limits.released(task.queue, 1)

    def _queues_changed(self) -> None:
        for service, queues in self._destinations.expected_queues().items():
            self._workers[service].slots.expect(queues)
        self._wake_up.withdraw([*self._queues, *self._queues.removed])

    def _join_workers(self, until: float) -> None:
        for worker in self._workers.values():
            worker.join(until)
