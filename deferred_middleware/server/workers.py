"""The threads that make a service's attempts, and what waits in their hands."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from deferred_middleware.server.records import ClaimedTask
from deferred_middleware.server.services import Service

_log = logging.getLogger(__name__)

# While its tasks take no longer than this a service is given more than it can run at once, because it would stand idle
# while the next ones are claimed. Slow tasks wait in the store instead, where everybody can see that they wait.
_FAST_SECONDS = 0.05
_FAST_FACTOR = 4
_NEWEST_WEIGHT = 0.2


class ServiceWorkers:
    """As many threads as ``service`` takes tasks at a time; each calls ``run_task`` with one after the other.

    ``wake_scheduler`` is called when there is room for more and the scheduler has said that it has more.
    """

    def __init__(
        self,
        service: Service,
        run_task: Callable[[ClaimedTask, Service], None],
        wake_scheduler: Callable[[], None],
    ) -> None:
        self._service = service
        self._run_task = run_task
        self._wake_scheduler = wake_scheduler
        self._queue: queue.SimpleQueue[ClaimedTask | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._in_hand = 0
        self._hungry = False
        self._mean_seconds = _FAST_SECONDS * 2
        self._running: dict[int, ClaimedTask] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"deliver-{service.name}-{number}", daemon=True)
            for number in range(service.concurrency)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def free(self, *, hungry: bool) -> int:
        """Return how many more tasks to claim; ``hungry`` says whether there are any, so that it is worth a wake-up."""
        with self._lock:
            self._hungry = hungry
            return max(0, self._capacity() - self._in_hand)

    def put(self, task: ClaimedTask) -> None:
        """Take a task in hand."""
        with self._lock:
            self._in_hand += 1
        self._queue.put(task)

    def running(self) -> list[ClaimedTask]:
        """Return the tasks whose attempt is under way."""
        with self._lock:
            return list(self._running.values())

    def stop(self) -> list[ClaimedTask]:
        """Let the threads end after their attempts; return the tasks that were not begun."""
        unstarted = []
        while True:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                unstarted.append(task)
        for _thread in self._threads:
            self._queue.put(None)
        return unstarted

    def join(self, until: float) -> None:
        """Wait for the threads to end, at most until ``until`` on the monotonic clock."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def _capacity(self) -> int:
        factor = _FAST_FACTOR if self._mean_seconds < _FAST_SECONDS else 1
        return self._service.concurrency * factor

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            with self._lock:
                self._running[task.id] = task
            began = time.monotonic()
            try:
                self._run_task(task, self._service)
            except Exception:  # noqa: BLE001 - the thread has to stay for the other tasks
                _log.exception("Task %s of queue %s could not be run.", task.name, task.queue)
            with self._lock:
                del self._running[task.id]
                self._in_hand -= 1
                self._mean_seconds += _NEWEST_WEIGHT * (time.monotonic() - began - self._mean_seconds)
                # Not for each task: claims are cheaper together.
                wake = self._hungry and self._in_hand <= max(self._service.concurrency - 1, self._capacity() // 2)
            if wake:
                self._wake_scheduler()
