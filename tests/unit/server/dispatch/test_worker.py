"""How much of a queue a service takes in hand."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator

import pytest

from deferred_middleware.server.config.services import Service
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.dispatch.worker import ServiceWorker
from deferred_middleware.server.store.records import ClaimedTask
from tests.support.storing import TASK

CONCURRENCY = 2


class Attempt:
    """An attempt that ends after so many seconds, by itself."""

    awaited = 0
    deadline = 0.0

    def __init__(self, work: Work, worker: ServiceWorker, task: ClaimedTask) -> None:
        self.task = task
        self._work = work
        self._worker = worker

    def fileno(self) -> int:
        """Wait for no descriptor."""
        return -1

    def proceed(self) -> bool:
        """End at once, or later by another thread."""
        if self._work.seconds:
            threading.Timer(self._work.seconds, self._end).start()
        else:
            self._end()
        return True

    def _end(self) -> None:
        self._worker.attempt_ended(self.task, self._work.seconds)
        self._work.over.release()


class Work:
    """The worker of a service, whose tasks take as long as a test says."""

    def __init__(self) -> None:
        self.over = threading.Semaphore(0)
        self.seconds = 0.0
        service = Service(name="default", version="local", host="127.0.0.1", port=1, concurrency=CONCURRENCY)
        self.slots = ServiceSlots(CONCURRENCY, Quarantine())
        self.worker = ServiceWorker(service, self.slots, self, WakeUp())
        self.worker.start()

    def begin(self, task: ClaimedTask, worker: ServiceWorker) -> Attempt:
        """Begin an attempt."""
        if task.url == "/defect":
            raise KeyError("a defect")
        return Attempt(self, worker, task)

    def do(self, number: int) -> None:
        """Have so many tasks run to their end."""
        self.worker.assign(dataclasses.replace(TASK, id=task_id) for task_id in range(number))
        for _ in range(number):
            assert self.over.acquire(timeout=10)
        self.worker.stop()
        self.worker.join(time.monotonic() + 10)

    def claimable(self, *, ahead: bool) -> int:
        """Return how many tasks of the queue would be claimed."""
        return self.slots.claimable("default", ["default"], {}, ahead=ahead)


@pytest.fixture
def work() -> Iterator[Work]:
    """A worker with nothing to do yet."""
    work = Work()
    yield work
    work.worker.stop()
    work.worker.join(time.monotonic() + 10)


def test_nobody_knows_how_long_the_first_tasks_take(work: Work) -> None:
    """At first a queue gets as many as can be run at once."""
    assert work.claimable(ahead=True) == CONCURRENCY


def test_short_tasks_are_claimed_many_at_a_time(work: Work) -> None:
    """Of tasks that take no time thirty-two for each place are taken in hand, unless the queue has a rate."""
    work.do(100)
    assert work.claimable(ahead=True) == 32 * CONCURRENCY
    assert work.claimable(ahead=False) == CONCURRENCY


def test_short_tasks_are_claimed_when_half_of_them_are_left(work: Work) -> None:
    """A queue that has more than half of what it is given isn't given the rest, because claims are cheaper together."""
    work.do(100)
    work.worker.stop()
    half = 16 * CONCURRENCY
    tasks = [dataclasses.replace(TASK, id=task_id) for task_id in range(half + 1)]
    work.worker.assign(tasks[:half])
    assert work.claimable(ahead=True) == half
    work.worker.assign(tasks[half:])
    assert work.claimable(ahead=True) == 0


def test_slow_tasks_wait_in_the_store(work: Work) -> None:
    """Of tasks that take long no more are claimed than can be run at once."""
    work.seconds = 0.1
    work.do(6)
    assert work.claimable(ahead=True) == CONCURRENCY


def test_a_defect_in_one_attempt_leaves_the_others(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    """An attempt that can't even begin is told with its traceback, and the tasks behind it are run."""
    work.worker.assign([dataclasses.replace(TASK, id=1_000, url="/defect")])
    work.do(20)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "could not be run" in record.getMessage()
