"""How many tasks of a queue are claimed for a service."""

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
    """An attempt that ends by itself after ``work.seconds``."""

    awaited = 0
    deadline = 0.0

    def __init__(self, work: Work, worker: ServiceWorker, task: ClaimedTask) -> None:
        self.task = task
        self._work = work
        self._worker = worker

    def fileno(self) -> int:
        """Return -1, because the attempt waits for no descriptor."""
        return -1

    def proceed(self) -> bool:
        """End now, or later in another thread."""
        if self._work.seconds:
            threading.Timer(self._work.seconds, self._end).start()
        else:
            self._end()
        return True

    def _end(self) -> None:
        self._worker.attempt_ended(self.task, self._work.seconds)
        self._work.over.release()


class Work:
    """The worker of a service whose tasks take ``seconds``."""

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
        """Run ``number`` tasks to their end."""
        self.worker.assign(dataclasses.replace(TASK, id=task_id) for task_id in range(number))
        for _ in range(number):
            assert self.over.acquire(timeout=10)
        self.worker.stop()
        self.worker.join(time.monotonic() + 10)

    def claimable(self, *, ahead: bool) -> int:
        """Return how many tasks of the queue may be claimed."""
        return self.slots.claimable("default", ["default"], {}, ahead=ahead)


@pytest.fixture
def work() -> Iterator[Work]:
    """A worker without tasks."""
    work = Work()
    yield work
    work.worker.stop()
    work.worker.join(time.monotonic() + 10)


def test_nobody_knows_how_long_the_first_tasks_take(work: Work) -> None:
    """Until the duration of a queue's tasks is known, no more are claimed than can run at once."""
    assert work.claimable(ahead=True) == CONCURRENCY


def test_short_tasks_are_claimed_many_at_a_time(work: Work) -> None:
    """If tasks are short, 32 are claimed for each slot, unless the queue has a rate."""
    work.do(100)
    assert work.claimable(ahead=True) == 32 * CONCURRENCY
    assert work.claimable(ahead=False) == CONCURRENCY


def test_short_tasks_are_claimed_when_half_of_them_are_left(work: Work) -> None:
    """Short tasks are claimed again only when at most half of the previous ones are left, so that claims are large."""
    work.do(100)
    work.worker.stop()
    half = 16 * CONCURRENCY
    tasks = [dataclasses.replace(TASK, id=task_id) for task_id in range(half + 1)]
    work.worker.assign(tasks[:half])
    assert work.claimable(ahead=True) == half
    work.worker.assign(tasks[half:])
    assert work.claimable(ahead=True) == 0


def test_slow_tasks_wait_in_the_store(work: Work) -> None:
    """If tasks are slow, no more are claimed than can run at once."""
    work.seconds = 0.1
    work.do(6)
    assert work.claimable(ahead=True) == CONCURRENCY


def test_a_defect_in_one_attempt_leaves_the_others(work: Work, caplog: pytest.LogCaptureFixture) -> None:
    """If an attempt can't begin, the traceback is logged and the tasks behind it still run."""
    work.worker.assign([dataclasses.replace(TASK, id=1_000, url="/defect")])
    work.do(20)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "could not be run" in record.getMessage()
