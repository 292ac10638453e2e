"""The thread that claims due tasks and assigns them to the workers of their services.

It waits for the next ETA or to be woken. Then :mod:`~deferred_middleware.server.dispatch.rounds` claims due tasks, no
more than the limits of their queues and the slots of their services allow, and assigns them to the workers. These make
the attempts, have the results written, and begin the next attempts in the meantime.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from deferred_middleware.server.admin.reading.standing import QueueStanding
from deferred_middleware.server.admin.task_lines import AttemptReports, DeadLetterLog
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.delivery.http_attempt import Deliverer
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.delivery.url_attempt import UrlDeliverer
from deferred_middleware.server.dispatch.attempts import AttemptRunner
from deferred_middleware.server.dispatch.rounds import MAX_WAIT_SECONDS, DispatchCore
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.dispatch.worker import Links, ServiceWorker
from deferred_middleware.server.store.records import TaskSummary
from deferred_middleware.server.store.store import TaskStore

logger: Final = logging.getLogger(__name__)

_FIRST_ERROR_PAUSE_SECONDS = 0.1
_MAX_ERROR_PAUSE_SECONDS = 10.0
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
        self._store = store
        self._directory = directory
        self._real_seconds = real_seconds
        self._wake_up = WakeUp()
        self._core = core = DispatchCore(
            store,
            directory,
            self._wake_up,
            queues=QueueRegistry() if queues is None else queues,
            clock=clock,
            monotonic=monotonic,
        )
        self._links = Links(
            requests=requests,
            destinations=core.destinations,
            deliverer=Deliverer(requests),
            url_deliverer=url_deliverer or UrlDeliverer(),
        )
        self._runner = AttemptRunner(
            store=store,
            rules=core.rules,
            results=core.results,
            reports=reports or DeadLetterLog(),
            quarantine=core.quarantine,
            limits=core.limits,
            clock=core.clock,
            wake_up=self._wake_up,
        )
        self._workers = {
            service: ServiceWorker(service, slots, self._runner, self._wake_up, self._links)
            for service, slots in core.slots.items()
        }
        core.connect(self._workers, self._runner.fail)
        store.claims_not_begun(self.not_begun)
        self._thread: threading.Thread | None = None

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
        return self._core.limits.standing(queue)

    def service_of(self, task: TaskSummary) -> str:
        """Return the ID of a task's service. Raises :class:`UnknownServiceError` if it isn't served here."""
        return self._core.destinations.service_of(task).id

    def running_in(self, service: str) -> int:
        """Return how many attempts are in flight in a service."""
        return self.worker_of(service).slots.occupied

    def not_begun(self) -> list[int]:
        """Return the IDs of the claimed tasks that have not begun."""
        return [task_id for worker in self._workers.values() for task_id in worker.not_begun()]

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

    def _run(self) -> None:
        wait_seconds = 0.0
        pause_seconds = _FIRST_ERROR_PAUSE_SECONDS
        while self._wake_up.wait(min(MAX_WAIT_SECONDS, self._real_seconds(wait_seconds))):
            try:
                wait_seconds = self._core.run_round()
                pause_seconds = _FIRST_ERROR_PAUSE_SECONDS
            except Exception:  # whatever it is (a full disk, say), the tasks are safe, so it tries again
                logger.exception("The scheduler failed; it tries again in %g s.", pause_seconds)
                self._wake_up.pause(pause_seconds)
                wait_seconds = 0.0
                pause_seconds = min(_MAX_ERROR_PAUSE_SECONDS, 2 * pause_seconds)

    def _join_workers(self, until: float) -> None:
        for worker in self._workers.values():
            worker.join(until)
