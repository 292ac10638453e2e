"""Writing results to a real store."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.result_writer import MOST_UNSTORED, MOST_UNSTORED_SLOW, ResultWriter
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.records import ClaimedTask, Completion, Lane, NewTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import NOW, completion, counted_commits

WAIT_SECONDS = 10.0
NUMBER = 10


class TellingWriter(ResultWriter):
    """A writer that reports what happened to each result."""

    def __init__(self, store: TaskStore) -> None:
        self.seconds = 100.0
        clock = WatchedClock(lambda *_: None, monotonic=lambda: self.seconds)
        super().__init__(store, WakeUp(), clock, self._note_stored)
        self.room_then: list[int] = []
        self.told: queue.SimpleQueue[tuple[int, object]] = queue.SimpleQueue()

    def _note_stored(self) -> None:
        self.room_then.append(self.room("default"))

    def _written(self, completion: Completion, stood: bool) -> None:
        super()._written(completion, stood)
        self.told.put((completion.task_id, stood))

    def _failed(self, completion: Completion, error: BaseException) -> None:
        super()._failed(completion, error)
        self.told.put((completion.task_id, type(error)))


class World:
    """A store with some claimed tasks, and the reports about their results."""

    def __init__(self, store: TaskStore) -> None:
        self.store = store
        store.add([NewTask(queue="default", url="/work", eta_usec=NOW)] * NUMBER)
        self.claimed: list[ClaimedTask] = store.claim({Lane("default", ""): NUMBER}, NOW)
        self.results = TellingWriter(store)

    def told(self, number: int) -> dict[int, object]:
        """Return the next ``number`` reports, by task ID."""
        return dict(self.results.told.get(timeout=WAIT_SECONDS) for _ in range(number))

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Keep the store's writer busy."""
        began, go_on = threading.Event(), threading.Event()

        def wait(*_: object) -> None:
            began.set()
            assert go_on.wait(WAIT_SECONDS)

        # In a thread of its own, because a caller commits in its own thread while nobody else does.
        threading.Thread(target=self.store._writer.submit, args=(wait,), daemon=True).start()
        assert began.wait(WAIT_SECONDS)
        try:
            yield
        finally:
            go_on.set()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A store with claimed tasks, on a fast disk."""
    with contextlib.closing(TaskStore(tmp_path / "tasks.sqlite", clock=lambda: NOW / 1e6)) as store:
        monkeypatch.setattr(store, "commit_seconds", lambda: 0.001)
        yield World(store)


def unwritable(task: ClaimedTask) -> Completion:
    """Return a result with a value that SQLite can't store."""
    return dataclasses.replace(completion(task), retry_reason=object())  # type: ignore[arg-type]


def test_results_that_wait_are_written_together(world: World) -> None:
    """Results that arrive while the store is busy share one commit, and each is reported."""
    with counted_commits(world.store) as commits:
        with world.busy():
            for task in world.claimed:
                world.results.submit(completion(task))
        assert world.told(NUMBER) == {task.id: True for task in world.claimed}
    # One commit for the task that kept the store busy, and one for all results.
    assert len(commits) == 2


def test_what_comes_later_is_written_later(world: World) -> None:
    """Results that are submitted one after the other are each written once."""
    first, second = world.claimed[:2]
    world.results.submit(completion(first))
    assert world.told(1) == {first.id: True}
    world.results.submit(completion(second))
    assert world.told(1) == {second.id: True}


def test_a_claim_that_does_not_stand_is_told(world: World) -> None:
    """If a task was released meanwhile, its result is dropped and the other results are written."""
    lost, kept = world.claimed[:2]
    world.store.release([lost])
    with world.busy():
        world.results.submit(completion(lost))
        world.results.submit(completion(kept))
    assert world.told(2) == {lost.id: False, kept.id: True}


def test_a_result_by_itself_fails_by_itself(world: World) -> None:
    """If one result can't be written, its whole batch fails; written alone, only that result fails."""
    with world.busy():
        for task in world.claimed[:-1]:
            world.results.submit(completion(task))
        world.results.submit(unwritable(world.claimed[-1]))
    failed = world.told(NUMBER)
    assert True not in failed.values()
    with world.busy():
        for task in world.claimed[:-1]:
            world.results.submit_alone(completion(task))
        world.results.submit_alone(unwritable(world.claimed[-1]))
    told = world.told(NUMBER)
    assert [task_id for task_id, what in told.items() if what is not True] == [world.claimed[-1].id]


def test_a_closed_store_is_told_of(world: World) -> None:
    """If the store is closed, each result is reported as failed."""
    world.store.close()
    world.results.submit(completion(world.claimed[0]))
    world.results.submit(completion(world.claimed[1]))
    assert world.told(2) == {task.id: ServerError for task in world.claimed[:2]}


def test_results_that_are_not_stored_are_counted(world: World) -> None:
    """They are counted by service, until they are stored; who waits for that hears of it after the count."""
    services = ("default", "other", "third")
    other = completion(world.claimed[2])
    with world.busy():
        for task in world.claimed[:2]:
            world.results.submit(completion(task))
        world.results.submit(dataclasses.replace(other, attempt=dataclasses.replace(other.attempt, service="other")))
        assert [world.results.room(service) - MOST_UNSTORED for service in services] == [-2, -1, 0]
    world.told(3)
    assert {world.results.room(service) for service in services} == {MOST_UNSTORED}
    assert world.results.room_then == [MOST_UNSTORED]


def test_a_result_that_can_not_be_written_is_not_stored(world: World) -> None:
    """It is counted as long as it is kept in memory, and the disk counts as slow."""
    world.results.submit(completion(world.claimed[0]))
    world.told(1)
    world.results.submit(unwritable(world.claimed[1]))
    world.told(1)
    assert world.results.room("default") == MOST_UNSTORED_SLOW - 1
    (kept,) = world.results.take_unwritten()
    world.results.submit_alone(dataclasses.replace(kept, retry_reason=""))
    world.told(1)
    assert world.results.room("default") == MOST_UNSTORED


def test_what_could_not_be_written_is_tried_again_each_second(world: World) -> None:
    """Whoever asks is told when to ask again; what is written again too early would keep the store busy."""
    results = world.results
    assert results.retry_unwritten() == 3600
    results.submit(unwritable(world.claimed[0]))
    world.told(1)
    results.seconds += 10
    assert results.retry_unwritten() == 1.0
    assert list(world.told(1)) == [world.claimed[0].id]
    results.seconds += 0.25
    assert results.retry_unwritten() == 0.75
    assert results.told.empty()
    results.seconds += 0.75
    assert results.retry_unwritten() == 1.0
    assert list(world.told(1)) == [world.claimed[0].id]
    (kept,) = results.take_unwritten()
    assert kept.task_id == world.claimed[0].id
    assert results.retry_unwritten() == 3600


def test_the_disk_is_slow_if_a_commit_takes_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of more than 50 ms makes it slow."""
    seconds = 0.05
    monkeypatch.setattr(world.store, "commit_seconds", lambda: seconds)
    assert not world.results.is_slow()
    seconds = 0.051
    assert world.results.is_slow()
