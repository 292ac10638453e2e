"""What is due, and may run.

One thread waits for the next ETA or for being woken, claims what is due, no more than the queues and the services can
take, and hands it to the workers of the service. They make the attempts, hand in the results, and take the next tasks
while the results are being written.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable

from deferred_middleware.server.apps.process_ends import ProcessEnds
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory, UnknownServiceError
from deferred_middleware.server.delivery.http_attempt import Deliverer
from deferred_middleware.server.dispatch.attempts import Attempts
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.queue_limits import QueueGates
from deferred_middleware.server.dispatch.workers import ServiceWorkers
from deferred_middleware.server.store.records import ClaimedTask, Lane
from deferred_middleware.server.store.store import TaskStore

_log = logging.getLogger(__name__)

# The wall clock may be set forward while nothing is due; it is looked at this often.
_MAX_WAIT_SECONDS = 30.0
_FIRST_ERROR_PAUSE_SECONDS = 0.1
_MAX_ERROR_PAUSE_SECONDS = 10.0
_UNKNOWN_SERVICE_BATCH = 100
_FORCED_BATCH = 10
# How long the workers may take to notice that their attempts were cut off.
_CUT_OFF_SECONDS = 2.0


class Scheduler:
    """Runs the tasks of ``store`` in the services of ``directory``, as ``queues`` allow.

    ``clock`` returns the wall clock's seconds since the epoch, which ETAs are compared with. ``process_ends`` knows
    which app processes have ended. :meth:`wake` has to be called when tasks were added, and when a queue was paused or
    resumed in the store; of a change of ``queues`` it hears by itself.
    """

    def __init__(
        self,
        store: TaskStore,
        directory: ServiceDirectory,
        deliverer: Deliverer,
        *,
        queues: QueueRegistry | None = None,
        clock: Callable[[], float] = time.time,
        process_ends: ProcessEnds | None = None,
    ) -> None:
        self._store = store
        self._directory = directory
        self._deliverer = deliverer
        self._queues = QueueRegistry() if queues is None else queues
        self._clock = WatchedClock(store.shift_etas, wall=clock)
        self._catch_up_with_clock()
        self._gates = QueueGates(self._queues, store.operations.paused)
        self._attempts = Attempts(
            store,
            deliverer,
            directory,
            queues=self._queues,
            gates=self._gates,
            clock=self._clock,
            process_ends=process_ends or ProcessEnds(),
            wake=self.wake,
            withdraw=self._withdraw_soon,
        )
        self._condition = threading.Condition()
        self._woken = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._workers = {
            service: ServiceWorkers(
                service, self._attempts.begin, self.wake, is_alone=self._attempts.quarantine.is_suspect
            )
            for service in directory
        }
        # When a queue and a lane were last given a turn; the one that waits longest goes first.
        self._turns: dict[Lane | str, int] = {}
        self._turn = 0
        # The queues whose unbegun tasks are to be given back, because something about them has changed.
        self._changed: set[str] = set()
        self._paused: frozenset[str] = frozenset()
        self._queues.on_change(self._queues_changed)
        self._queues_changed()

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

    def hold(self, service: str) -> None:
        """Begin no attempt in a service, because its process is about to end; what is due waits."""
        self._hold(service, True)

    def resume(self, service: str) -> None:
        """Begin attempts in a service again."""
        self._hold(service, False)
        self.wake()

    def _hold(self, service: str, held: bool) -> None:
        self._workers[self._directory.by_id(service)].hold(held)

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
        unbegun = [task for workers in self._workers.values() for task in workers.stop()]
        for workers in self._workers.values():
            workers.join(until)
        # The tasks are given back, and only then are their attempts cut off, because that is no failure of theirs.
        running = [task for workers in self._workers.values() for task in workers.running()]
        left = [*unbegun, *self._attempts.abandon(running)]
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
        wait_seconds = min(_MAX_WAIT_SECONDS, self._attempts.store_again())
        self._give_back_changed()
        if self._store.forced_waiting:
            self._run_forced()
        now_usec = self._clock.now_usec()
        due: dict[Service, dict[str, list[Lane]]] = {}
        limits: dict[str, int] = {}
        for lane, eta_usec in self._store.queries.lanes():
            if eta_usec > now_usec:
                wait_seconds = min(wait_seconds, (eta_usec - now_usec) / 1e6)
                continue
            if lane.queue not in limits:
                allowance = self._gates.allowance(lane.queue)
                limits[lane.queue] = allowance.number
                wait_seconds = min(wait_seconds, allowance.wait_seconds)
            if not limits[lane.queue]:
                continue
            target = self._attempts.target(lane.queue, lane.target)
            try:
                service = self._directory.by_target(target)
            except UnknownServiceError as error:
                number = min(limits[lane.queue], _UNKNOWN_SERVICE_BATCH)
                limits[lane.queue] -= self._fail_unknown(lane, number, target, error, now_usec)
                wait_seconds = 0.0
            else:
                due.setdefault(service, {}).setdefault(lane.queue, []).append(lane)
        for service, workers in self._workers.items():
            found = due.get(service, {})
            workers.hunger(bool(found))
            if found and self._claim(workers, found, limits, now_usec):
                wait_seconds = 0.0
        return wait_seconds

    def _claim(
        self, workers: ServiceWorkers, due: dict[str, list[Lane]], limits: dict[str, int], now_usec: int
    ) -> bool:
        """Claim for one service what its workers and ``limits`` have room for; return whether there was anything."""
        planned: dict[str, int] = {}
        claims: dict[Lane, int] = {}
        for queue in sorted(due, key=self._last_turn):
            room = workers.room(queue, due, planned, ahead=not self._gates.is_rated(queue))
            number = min(limits[queue], room)
            if number:
                planned[queue] = number
                limits[queue] -= number
                self._take_turn(queue)
                self._share(due[queue], number, claims)
        if not claims:
            return False
        tasks = self._store.claim(claims, now_usec)
        self._note_claims(tasks)
        workers.put(tasks)
        return bool(tasks)

    def _share(self, lanes: list[Lane], number: int, claims: dict[Lane, int]) -> None:
        """Divide what a queue may claim among its lanes, so that a long one doesn't hold up the others."""
        lanes.sort(key=self._last_turn)
        for position, lane in enumerate(lanes):
            share = math.ceil(number / (len(lanes) - position))
            if share:
                claims[lane] = share
                number -= share
                self._take_turn(lane)

    def _last_turn(self, whose: Lane | str) -> int:
        return self._turns.get(whose, 0)

    def _take_turn(self, whose: Lane | str) -> None:
        self._turn += 1
        self._turns[whose] = self._turn

    def _note_claims(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        numbers: dict[str, int] = {}
        for task in tasks:
            numbers[task.queue] = numbers.get(task.queue, 0) + 1
        for queue, number in numbers.items():
            self._gates.claimed(queue, number, forced=forced)

    def _run_forced(self) -> None:
        """Hand out what a person wants run now."""
        tasks = self._store.claim_forced(_FORCED_BATCH)
        self._note_claims(tasks, forced=True)
        for task in tasks:
            target = self._attempts.target(task.queue, task.target)
            try:
                self._workers[self._directory.by_target(target)].put([task], forced=True)
            except UnknownServiceError as error:
                self._attempts.fail(task, str(error), service=target)
        if tasks:
            self.wake()

    def _fail_unknown(self, lane: Lane, number: int, target: str, error: UnknownServiceError, now_usec: int) -> int:
        tasks = self._store.claim({lane: number}, now_usec)
        self._note_claims(tasks)
        _log.warning("%d tasks of queue %s can't be delivered: %s", len(tasks), lane.queue, error)
        for task in tasks:
            self._attempts.fail(task, str(error), service=target)
        return len(tasks)

    def _queues_changed(self) -> None:
        expected: dict[Service, set[str]] = {service: set() for service in self._directory}
        for name, config in self._queues.items():
            if config.mode == "push" and not config.paused:
                try:
                    # A queue without a target may have tasks for any service.
                    services = [self._directory.by_target(config.target)] if config.target else list(self._directory)
                except UnknownServiceError as error:
                    _log.warning("Queue %s has a target that isn't served: %s", name, error)
                    continue
                for service in services:
                    expected[service].add(name)
        for service, workers in self._workers.items():
            workers.expect(expected[service])
        self._withdraw_soon([*self._queues, *self._queues.removed])

    def _withdraw_soon(self, queues: Collection[str]) -> None:
        """Have the tasks of some queues that were claimed and not begun go back to the store, and be looked at anew."""
        with self._condition:
            self._changed.update(queues)
            self._woken = True
            self._condition.notify()

    def _give_back_changed(self) -> None:
        paused = self._store.operations.paused()
        with self._condition:
            changed, self._changed = self._changed | (paused - self._paused), set()
        self._paused = paused
        if not changed:
            return
        withdrawn = [task for workers in self._workers.values() for task in workers.withdraw(changed)]
        for task in withdrawn:
            self._gates.given_back(task.queue, 1)
        if withdrawn:
            try:
                self._store.release(withdrawn)
            except Exception:
                # They are claimed, so nobody else would ever run them.
                self._note_claims(withdrawn)
                for task in withdrawn:
                    self._workers[self._directory.by_target(self._attempts.target(task.queue, task.target))].put([task])
                raise

    def _catch_up_with_clock(self) -> None:
        """See whether the clock was set back while no server ran."""
        newest_usec, now_usec = self._store.queries.newest_created_usec(), self._clock.now_usec()
        if newest_usec is not None and newest_usec - now_usec > 1_000_000:
            self._store.shift_etas(now_usec - newest_usec, newest_usec, now_usec)
