"""What decides which tasks are claimed, and when the scheduler has to look again.

This is the core of dispatch. It has no thread, no socket and no clock of its own: the scheduler's thread calls
:meth:`DispatchCore.run_round` when it is woken, and the workers tell what becomes of the attempts. So a simulation can
drive the same code (``tests/simulation``).
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import HTTP_TARGETS, Service, ServiceDirectory, UnknownServiceError
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.planning import ClaimPlanner, Destinations, Round
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.queue_limits import QueueLimits
from deferred_middleware.server.dispatch.result_writer import ResultWriter
from deferred_middleware.server.dispatch.results import ResultRules
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.records import ClaimedTask, Lane
from deferred_middleware.server.store.store import TaskStore

logger: Final = logging.getLogger(__name__)

# Somebody may set the wall clock forward while nothing is due, so it is read this often.
MAX_WAIT_SECONDS = 30.0
_UNDELIVERABLE_BATCH = 100
_FORCED_BATCH = 10


class Assignee(Protocol):
    """Who makes the attempts of a service, such as ``ServiceWorker``."""

    def assign(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        """Take over claimed tasks; see :meth:`ServiceSlots.assign`."""

    def wake(self) -> object:
        """Look for attempts that may begin."""


class DispatchCore:
    """Claims the tasks of ``store`` for the services of ``directory``, as ``queues`` allow.

    ``clock`` returns the wall clock's seconds since the epoch, and ``monotonic`` seconds that never go back. After a
    change that may let more tasks begin, the caller is woken by ``wake_up``. Only one thread at a time may call
    :meth:`run_round`; the parts may be used by any thread.

    Attributes:
        slots: The slots of each service.
        clock: The clock that notices when somebody sets it.
        limits: What the queues allow.
        destinations: Where tasks go.
        quarantine: Which tasks are suspected of ending their process.
        results: Has results written.
        rules: Decides what results mean.
    """

    def __init__(
        self,
        store: TaskStore,
        directory: ServiceDirectory,
        wake_up: WakeUp,
        *,
        queues: QueueRegistry,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._wake_up = wake_up
        self._queues = queues
        self.clock: WatchedClock = WatchedClock(store.shift_etas, wall=clock, monotonic=monotonic)
        self.clock.check_against(store.queries.latest_known_usec())
        self.limits: QueueLimits = QueueLimits(queues, clock=monotonic)
        self.destinations: Destinations = Destinations(queues, directory)
        self._planner = ClaimPlanner(self.destinations, self.limits)
        self.results: ResultWriter = ResultWriter(store, wake_up, self.clock, self._results_stored)
        self.quarantine: Quarantine = Quarantine(clock=monotonic)
        self.rules: ResultRules = ResultRules(queues, self.quarantine)
        self.slots: dict[Service, ServiceSlots] = {
            service: ServiceSlots(
                service.concurrency, self.quarantine, functools.partial(self.results.room, service.id)
            )
            for service in (*directory, HTTP_TARGETS)
        }
        self._workers: Mapping[Service, Assignee] = {}
        self._fail: Callable[[ClaimedTask, UnknownServiceError], object] = lambda *_: None
        # The queues that people have paused, as of the last round, and the lanes that were found to be undeliverable.
        self._paused: frozenset[str] = frozenset()
        self._undeliverable: set[Lane] = set()

    def connect(
        self,
        workers: Mapping[Service, Assignee],
        fail: Callable[[ClaimedTask, UnknownServiceError], object],
    ) -> None:
        """Assign claimed tasks to ``workers``, and call ``fail`` for those that can't be sent. Call this once."""
        self._workers = workers
        self._fail = fail
        self._queues.on_change(self._queues_changed)
        self._queues_changed()

    def run_round(self) -> float:
        """Claim due tasks and assign them to the workers; return for how many seconds there is nothing more to do."""
        wait_seconds = min(MAX_WAIT_SECONDS, self.results.retry_unwritten())
        self._withdraw_changed()
        if self._store.forced_waiting:
            self._claim_forced()
        now_usec = self.clock.now_usec()
        found = self._planner.survey(self._store.queries.lanes(), now_usec, self._paused)
        wait_seconds = min(wait_seconds, found.wait_seconds)
        for lane, error in found.undeliverable:
            self._fail_undeliverable(lane, error, found, now_usec)
            wait_seconds = 0.0
        for service in self.slots:
            if self._claim_for(service, found.due.get(service, {}), found, now_usec):
                wait_seconds = 0.0
        return wait_seconds

    def _claim_for(self, service: Service, due: dict[str, list[Lane]], found: Round, now_usec: int) -> bool:
        """Claim due tasks for one service, and assign them; return whether to look again at once."""
        slots = self.slots[service]
        slots.more_is_due(bool(due))
        claims = self._planner.claims(due, slots, found.allowed, ahead=not self.results.is_slow()) if due else {}
        if not claims:
            return False
        tasks = self._store.claim(claims, now_usec)
        self._count_claimed(tasks)
        self._workers[service].assign(tasks)
        # Even if there were none: what was due may have been deleted meanwhile, and it hid the lane's next ETA.
        return True

    def _claim_forced(self) -> None:
        """Claim tasks that people want to run now."""
        tasks = self._store.claim_forced(_FORCED_BATCH)
        self._count_claimed(tasks, forced=True)
        for task in tasks:
            try:
                self._workers[self.destinations.service_of(task)].assign([task], forced=True)
            except UnknownServiceError as error:
                self._fail(task, error)
        if tasks:
            self._wake_up.wake()

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
            self._fail(task, error)

    def _count_claimed(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        for queue, number in Counter(task.queue for task in tasks).items():
            self.limits.claimed(queue, number, forced=forced)

    def _withdraw_changed(self) -> None:
        """Release the tasks that are claimed and not begun of queues whose limits have changed."""
        paused = self._store.operations.paused()
        changed = self._wake_up.take_queues_to_withdraw() | (paused - self._paused)
        self._paused = paused
        if not changed:
            return
        withdrawn = [task for slots in self.slots.values() for task in slots.withdraw(changed)]
        if not withdrawn:
            return
        self._store.release(withdrawn)
        for task in withdrawn:
            self.limits.released(task.queue, 1)

    def _results_stored(self) -> None:
        """Wake the workers that have waited until results were stored."""
        for service, worker in self._workers.items():
            if self.slots[service].is_held_back():
                worker.wake()

    def _queues_changed(self) -> None:
        for service, queues in self.destinations.expected_queues().items():
            self.slots[service].expect(queues)
        self._wake_up.withdraw([*self._queues, *self._queues.removed])
