"""Compare the task store with a simple model, for random sequences of operations.

The model is a list of tasks, a mapping of blocked names and a set of paused queues, in plain Python. Every result of
the store is compared with the model's, and at the end the whole content is.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deferred_middleware.server.store.records import ClaimedTask, Lane, Retention
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep import pruning
from tests.support.storing import Clock, completion, new_task, prune, stored_tasks

RETENTION = Retention(
    succeeded_seconds=3600, succeeded_tasks=4, first_attempts=2, last_attempts=2, tombstone_seconds=2 * 3600
)
LANES = [Lane("a", ""), Lane("a", "background"), Lane("b", "")]
HOUR_USEC = 3600 * 1_000_000
YEAR_USEC = 365 * 24 * HOUR_USEC
SOAK = bool(os.environ.get("DEFERRED_SOAK"))

queues = st.sampled_from(["a", "b"])
names = st.sampled_from(["one", "two", "three"])
new_tasks = st.lists(
    st.tuples(st.sampled_from(LANES), st.none() | names, st.sampled_from([0, 0, -5_000_000, 5_000_000, HOUR_USEC])),
    min_size=2,
    max_size=6,
)
limits = st.dictionaries(st.sampled_from(LANES), st.integers(1, 4), min_size=1) | st.just(dict.fromkeys(LANES, 3))
states = st.sampled_from(["ready", "succeeded", "succeeded", "failed"])
index = st.integers(0, 1000)
# Prefer the latest claims, because older ones are often no longer valid.
recent = st.integers(0, 7)


@dataclass(eq=False)
class Modelled:
    """A task of the model."""

    lane: Lane
    name: str
    user_named: bool
    eta_usec: int
    state: str = "ready"
    token: int | None = None
    id: int | None = None
    retry_count: int = 0
    attempts_before: int = 0
    attempts: list[int] = field(default_factory=list)
    finished_usec: int | None = None
    forced: bool = False

    @property
    def is_live(self) -> bool:
        """Whether the task is unfinished."""
        return self.state in ("ready", "running")


@pytest.fixture(autouse=True, scope="module")
def prune_on_demand() -> Iterator[None]:
    """Let the store prune only when the machine says so, and not because the machine's clock was set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "_PRUNE_EVERY_SECONDS", math.inf)
        yield


class StoreMachine(RuleBasedStateMachine):
    """Does the same operations on the store and on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="dm-store"))
        self.directory = self.root / "0"
        self.openings = 0
        self.clock = Clock()
        # Moves with the time that passes, but not when somebody sets the clock.
        self.passed = Clock()
        # In the order of adding, which is the order of the IDs.
        self.tasks: list[Modelled] = []
        self.blocked: dict[tuple[str, str], int] = {}
        self.paused: set[str] = set()
        # All claims, valid or not.
        self.claims: list[tuple[Modelled, ClaimedTask]] = []

    @initialize()
    def open(self) -> None:
        """Open a store in the machine's current directory."""
        self.store = TaskStore(
            self.directory / "tasks.sqlite", clock=self.clock, elapsed=self.passed, retention=RETENTION
        )

    def teardown(self) -> None:
        """Compare all tasks, and close the store."""
        try:
            if self.openings or hasattr(self, "store"):
                self._compare_all()
                self.store.close()
        finally:
            shutil.rmtree(self.root)

    # Operations.

    @rule(tasks=new_tasks)
    def add(self, tasks: list[tuple[Lane, str | None, int]]) -> None:
        """Add tasks, some of them with names that may be taken."""
        now = self._tick()
        results = self.store.add(
            [new_task(name, queue=lane.queue, target=lane.target, eta_usec=now + wait) for lane, name, wait in tasks]
        )
        for (lane, name, wait), result in zip(tasks, results, strict=True):
            outcome = self._stands_against(lane.queue, name, now) if name is not None else None
            assert result.outcome == (outcome or "added")
            assert name in (None, result.name)
            if outcome is None:
                self.tasks.append(
                    Modelled(lane=lane, name=result.name, user_named=name is not None, eta_usec=now + wait)
                )

    @rule(limits=limits)
    def claim(self, limits: dict[Lane, int]) -> None:
        """Claim due tasks."""
        now = self._tick()
        expected: list[Modelled] = []
        for lane, limit in limits.items():
            due = [task for task in self.tasks if task.state == "ready" and task.lane == lane and task.eta_usec <= now]
            expected += sorted(due, key=lambda task: task.eta_usec)[:limit]
        # Tasks of different lanes with the same ETA come in the order of their IDs.
        expected.sort(key=lambda task: (task.eta_usec, self.tasks.index(task)))
        self._claimed(expected, self.store.claim(limits, now))

    @precondition(lambda self: self.claims)
    @rule()
    def claim_again(self) -> None:
        """Release the last claims and claim again, so that the first claims are no longer valid."""
        self.release([0, 1])
        self.claim(dict.fromkeys(LANES, 3))

    @rule(
        action=st.sampled_from(["retry", "retry_failed", "remove_failed", "force_run", "pause", "resume", "forget"]),
        queue=queues,
        pick=index,
        name=st.none() | names,
    )
    def do_as_people_do(self, action: str, queue: str, pick: int, name: str | None) -> None:
        """Do one of the operations for people; they share a rule so that the others are drawn more often."""
        if action in ("retry", "force_run"):
            getattr(self, action)(pick)
        elif action in ("retry_failed", "remove_failed"):
            getattr(self, action)(queue)
        elif action == "forget":
            self.forget_names(queue, name)
        else:
            self.pause_or_resume(queue, action == "pause")
        if any(task.forced for task in self.tasks):
            self.claim_forced(1 + pick % 3)

    def claim_forced(self, limit: int) -> None:
        """Claim forced tasks."""
        self._tick()
        expected = [task for task in self.tasks if task.forced and task.state == "ready"][:limit]
        assert self.store.forced_waiting or not expected
        self._claimed(expected, self.store.claim_forced(limit))

    @rule(
        tasks=new_tasks,
        picks=st.lists(st.tuples(recent, states), min_size=1, max_size=6),
        wait=st.sampled_from([0, 0, 1_000_000, HOUR_USEC]),
    )
    def run_some(self, tasks: list[tuple[Lane, str | None, int]], picks: list[tuple[int, str]], wait: int) -> None:
        """Complete tasks; if none is running, add and claim some first."""
        if not any(self._stands(*claim) for claim in self.claims[-8:]):
            self.add(tasks)
            self.claim(dict.fromkeys(LANES, 3))
        if self.claims:
            self.complete(picks, wait)

    def complete(self, picks: list[tuple[int, str]], wait: int) -> None:
        """Write results, some of them with claims that are no longer valid."""
        now = self._tick()
        given = []
        expected = []
        for number, (pick, state) in enumerate(picks):
            task, claimed = self.claims[-1 - pick % len(self.claims)]
            # No two tasks finish at the same time, so that the oldest is well defined.
            finished = now + number
            given.append(completion(claimed, state, eta_usec=now + wait, finished_usec=finished))
            expected.append(self._stands(task, claimed))
            if not expected[-1]:
                continue
            # A task that was forced stays so until its result is stored, whatever interrupts the attempt.
            task.state, task.token, task.eta_usec, task.forced = state, None, now + wait, False
            task.retry_count += 1
            self._attempted(task)
            if state != "ready":
                task.finished_usec = finished
                if task.user_named:
                    self.blocked[task.lane.queue, task.name] = self._steady() + 2 * HOUR_USEC
        self.clock.usec += len(picks)
        assert self.store.complete(given) == expected

    @precondition(lambda self: self.claims)
    @rule(picks=st.lists(recent, min_size=1, max_size=4, unique=True))
    def release(self, picks: list[int]) -> None:
        """Release tasks, some of them with claims that are no longer valid."""
        chosen = [self.claims[-1 - pick % len(self.claims)] for pick in picks]
        released = 0
        for task, claimed in chosen:
            if self._stands(task, claimed):
                task.state, task.token = "ready", None
                released += 1
        assert self.store.release([claimed for _task, claimed in chosen]) == released

    @rule(queue=queues, given=st.lists(names, min_size=1, max_size=3))
    def delete(self, queue: str, given: list[str]) -> None:
        """Delete tasks by name."""
        now = self._tick()
        expected = []
        for name in given:
            expected.append(self._stands_against(queue, name, now))
            for task in self._live(queue, name):
                self._forget(task)
                self.blocked[queue, name] = self._steady() + 2 * HOUR_USEC
        found = self.store.operations.delete_by_name(queue, given)
        assert [None if result is None else result.outcome for result in found] == expected

    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        """Delete a queue's unfinished tasks."""
        self._tick()
        gone = [task for task in self.tasks if task.lane.queue == queue and task.is_live]
        for task in gone:
            self._forget(task)
            if task.user_named:
                self.blocked[queue, task.name] = self._steady() + 2 * HOUR_USEC
        assert self.store.operations.purge(queue) == len(gone)

    def remove_failed(self, queue: str) -> None:
        """Delete a queue's dead letters."""
        gone = [task for task in self.tasks if task.lane.queue == queue and task.state == "failed"]
        for task in gone:
            self._forget(task)
        assert self.store.operations.delete_failed(queue) == len(gone)

    def retry(self, pick: int) -> None:
        """Retry one task, which may not be a dead letter."""
        now = self._tick()
        known = [task for task in self.tasks if task.id]
        if not known:
            return
        # Dead letters first: other tasks are rejected.
        known.sort(key=lambda task: task.state != "failed")
        task = known[pick % len(known)] if pick % 3 == 0 else known[0]
        assert task.id is not None
        expected = "retried"
        if task.state != "failed":
            expected = "not failed"
        elif self._live(task.lane.queue, task.name):
            expected = "name taken"
        else:
            self._start_anew(task, now)
        assert self.store.operations.retry(task.id) == expected

    def retry_failed(self, queue: str) -> None:
        """Retry all dead letters of a queue."""
        now = self._tick()
        retried = 0
        for task in self.tasks:
            failed = task.lane.queue == queue and task.state == "failed"
            if failed and not self._live(queue, task.name):
                self._start_anew(task, now)
                retried += 1
        assert self.store.operations.retry_failed(queue) == retried

    def force_run(self, pick: int) -> None:
        """Force a task to run; it may be in any state."""
        now = self._tick()
        known = [task for task in self.tasks if task.id]
        if not known:
            return
        task = known[pick % len(known)]
        assert task.id is not None
        waits = task.state == "ready"
        if waits:
            task.forced, task.eta_usec = True, min(task.eta_usec, now)
        assert self.store.force_run(task.id) == waits

    def pause_or_resume(self, queue: str, pause: bool) -> None:
        """Pause or resume a queue."""
        changes = (queue in self.paused) != pause
        assert (self.store.operations.pause if pause else self.store.operations.resume)(queue) == changes
        (self.paused.add if pause else self.paused.discard)(queue)

    def forget_names(self, queue: str, name: str | None) -> None:
        """Unblock names."""
        gone = [key for key in self.blocked if key[0] == queue and name in (None, key[1])]
        for key in gone:
            del self.blocked[key]
        assert self.store.operations.unblock_names(queue, name) == len(gone)

    @rule()
    def prune(self) -> None:
        """Delete old tasks and tombstones."""
        now = self._tick()
        succeeded = sorted(
            (task for task in self.tasks if task.state == "succeeded"), key=lambda task: task.finished_usec or 0
        )
        gone = succeeded[: max(0, len(succeeded) - RETENTION.succeeded_tasks)]
        gone += [task for task in succeeded[len(gone) :] if (task.finished_usec or 0) < now - HOUR_USEC]
        for task in gone:
            self._forget(task)
        self.blocked = {key: until for key, until in self.blocked.items() if until > self._steady()}
        assert prune(self.store) == len(gone)

    @rule()
    def close_and_open(self) -> None:
        """Close the store and open it again."""
        self.store.close()
        self._recovered()
        self.open()

    @rule()
    def crash(self) -> None:
        """Open a copy of the files as they are at this moment, as after a crash."""
        self.openings += 1
        found = self.root / str(self.openings)
        shutil.copytree(self.directory, found, ignore=shutil.ignore_patterns("*-shm"))
        self.store.close()
        self.directory = found
        self._recovered()
        self.open()

    @rule(jump=st.sampled_from([1_000_000, 10_000_000, HOUR_USEC, -HOUR_USEC, YEAR_USEC, -YEAR_USEC]))
    def set_clock(self, jump: int) -> None:
        """Set the wall clock forward or back."""
        self.clock.usec += jump

    @rule(time=st.sampled_from([1_000_000, HOUR_USEC, 2 * HOUR_USEC]))
    def wait(self, time: int) -> None:
        """Let time pass."""
        self.clock.usec += time
        self.passed.usec += time

    # Invariants.

    @invariant()
    def same_counts(self) -> None:
        """The store's counts and paused queues are the model's."""
        if hasattr(self, "store"):
            counted = {
                (queue, state): number
                for queue, numbers in self.store.queries.counts().items()
                for state, number in numbers.items()
            }
            assert counted == Counter((task.lane.queue, task.state) for task in self.tasks)
            assert self.store.operations.paused() == self.paused

    @invariant()
    def same_lanes(self) -> None:
        """The next ETA of each lane is that of the model's earliest task."""
        if hasattr(self, "store"):
            waiting: dict[Lane, int] = {}
            for task in self.tasks:
                if task.state == "ready":
                    waiting[task.lane] = min(task.eta_usec, waiting.get(task.lane, task.eta_usec))
            assert self.store.queries.lanes() == sorted(waiting.items())

    # The model of the operations.

    def _steady(self) -> int:
        """Return the time by which names are blocked; test_steady_clock.py has the tests of this clock."""
        return self.store._database.steady_clock.now_usec()

    def _tick(self) -> int:
        self.clock.usec += 1
        return self.store._database.now_usec()

    def _live(self, queue: str, name: str) -> list[Modelled]:
        return [task for task in self.tasks if (task.lane.queue, task.name) == (queue, name) and task.is_live]

    def _stands_against(self, queue: str, name: str, now: int) -> str | None:
        if self._live(queue, name):
            return "exists"
        return "tombstoned" if self.blocked.get((queue, name), 0) > self._steady() else None

    def _stands(self, task: Modelled, claimed: ClaimedTask) -> bool:
        return task.state == "running" and task.token == claimed.claim_token

    def _claimed(self, expected: list[Modelled], claimed: Iterable[ClaimedTask]) -> None:
        claimed = list(claimed)
        assert [task.name for task in claimed] == [task.name for task in expected]
        for task, found in zip(expected, claimed, strict=True):
            assert (found.retry_count, found.eta_usec) == (task.retry_count, task.eta_usec)
            assert task.id in (None, found.id)
            task.id, task.state, task.token = found.id, "running", found.claim_token
            self.claims.append((task, found))

    def _attempted(self, task: Modelled) -> None:
        number = task.attempts_before + task.retry_count
        task.attempts = [kept for kept in [*task.attempts, number] if kept <= 2 or kept > number - 2]

    def _start_anew(self, task: Modelled, now: int) -> None:
        task.attempts_before += task.retry_count
        task.state, task.eta_usec, task.retry_count, task.finished_usec = "ready", now, 0, None

    def _forget(self, task: Modelled) -> None:
        self.tasks.remove(task)
        task.state = "forgotten"

    def _recovered(self) -> None:
        now = self.store._database.now_usec()
        for task in self.tasks:
            if task.state == "running":
                task.state, task.token, task.eta_usec = "ready", None, min(task.eta_usec, now)

    def _compare_all(self) -> None:
        held = {task.id: task for task in stored_tasks(self.store, limit=100_000)}
        assert len(held) == len(self.tasks)
        # IDs grow in the order of adding, so both lists have the same order.
        for found, task in zip(sorted(held.values(), key=lambda task: task.id), self.tasks, strict=True):
            assert (found.queue, found.target, found.name) == (*task.lane, task.name)
            assert (found.state, found.eta_usec, found.finished_usec, found.retry_count) == (
                task.state,
                task.eta_usec,
                task.finished_usec,
                task.retry_count,
            )
            assert [attempt.number for attempt in self.store.queries.attempts(found.id)] == task.attempts


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    deadline=None,
    max_examples=2000 if SOAK else 50,
    stateful_step_count=50,
)
