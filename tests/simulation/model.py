"""What must be true of a simulated run. The model follows the run from outside and raises a :class:`Violation`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.records import ClaimedTask, Completion
from deferred_middleware.server.store.store import TaskStore

_FINISHED = ("succeeded", "failed")
# The server takes a difference of up to a second between the clocks for inaccuracy.
_CLOCK_TOLERANCE_SECONDS = 1.01
_ROUNDING = 1e-3


class Violation(AssertionError):
    """The run broke a promise."""


def key_of(url: str) -> int:
    """Return the model's number of a task, which is in its URL."""
    return int(url.rpartition("/")[2])


class Row(NamedTuple):
    """A task in the store."""

    id: int
    queue: str
    name: str
    state: str
    url: str
    retry_count: int


@dataclass
class Task:
    """What is known of a task. Times are by the monotonic clock, unless they are in microseconds."""

    key: int
    queue: str
    eta_usec: int
    acknowledged: bool = False
    # A person has asked for its deletion.
    deleting: bool = False
    deleted: bool = False
    # A person may have made it due: forced, or retried.
    hurried: bool = False
    transaction: str | None = None
    runs: int = 0
    running: bool = False
    # An app process ended that had been given it, which counts as an attempt here even if it had not begun.
    broken_off: bool = False
    # When its back-off ends.
    not_before: float = 0.0


@dataclass
class Rate:
    """A token bucket as the documentation describes it."""

    tokens: float
    filled_at: float


@dataclass(frozen=True, kw_only=True)
class Service:
    """How many of its attempts may have no stored result: always, and during a commit that takes long."""

    name: str
    most: int
    most_slow: int
    slow_seconds: float


@dataclass
class Model:
    """The tasks and queues of a run."""

    tasks: dict[int, Task] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)
    # Rolled back while the disk was broken: the next server deletes their tasks.
    undiscarded: set[str] = field(default_factory=set)
    # The latest time that the wall clock has shown: what was due once stays due.
    latest_usec: int = 0
    rates: dict[str, Rate] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)
    # Queues whose limits or pause have changed since the last round: what is claimed is about to be withdrawn.
    changing: set[str] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    begun: int = 0
    # By service: the attempts that were delivered and whose results are not known to be stored, by the ID of the task.
    unstored: dict[str, dict[int, int]] = field(default_factory=dict)
    # When the current commit began.
    commit_began: float = math.inf

    def begins(self, task: ClaimedTask, service: Service, config: QueueConfig, now: float, *, forced: bool) -> None:
        """Check that an attempt may be delivered now."""
        known = self._known(task)
        self._delivered(task, service, now)
        if known.eta_usec > self.latest_usec and not known.hurried and not known.runs:
            raise Violation(f"task {known.key} begins before its ETA")
        if now < known.not_before - _CLOCK_TOLERANCE_SECONDS and not known.hurried:
            raise Violation(f"task {known.key} begins {known.not_before - now:.2f} s before its back-off ends")
        queue = task.queue
        if forced:
            self.in_flight[queue] += 1
            return
        if queue not in self.changing:
            if queue in self.paused or config.paused:
                raise Violation(f"task {known.key} begins in the paused queue {queue}")
            most = config.max_concurrent_requests
            if most is not None and self.in_flight[queue] >= most:
                raise Violation(f"{self.in_flight[queue] + 1} tasks of queue {queue} at a time, {most} are allowed")
        self.in_flight[queue] += 1
        if config.rate_per_second and queue not in self.changing:
            rate = self.rates.setdefault(queue, Rate(float(config.bucket_size), now))
            filled = rate.tokens + (now - rate.filled_at) * config.rate_per_second
            rate.tokens, rate.filled_at = min(config.bucket_size, filled) - 1, now
            if rate.tokens < -_ROUNDING:
                raise Violation(f"queue {queue} begins more than {config.rate_per_second:g} tasks per second")

    def ended(self, task: ClaimedTask) -> None:
        """Take note that an attempt is no longer in flight, for the server."""
        self.in_flight[task.queue] -= 1

    def _delivered(self, task: ClaimedTask, service: Service, now: float) -> None:
        """Check how many tasks would run again after a kill."""
        attempts = self.unstored.setdefault(service.name, {})
        attempts[task.id] = task.retry_count
        most = service.most_slow if now - self.commit_began > service.slow_seconds else service.most
        if len(attempts) > most:
            raise Violation(f"{len(attempts)} attempts of {service.name} have no stored result, {most} are allowed")

    def runs(self, task: ClaimedTask, store: TaskStore) -> None:
        """Check that the app may run a task now."""
        known = self._known(task)
        self.begun += 1
        if known.running:
            raise Violation(f"task {known.key} runs twice at the same time")
        found = store._database.lanes_reader.read("SELECT state, retry_count FROM tasks WHERE id = ?", (task.id,))
        if not found:
            if not known.deleting:
                raise Violation(f"task {known.key} runs and is not stored")
        elif found[0][0] in _FINISHED:
            raise Violation(f"task {known.key} runs again, although its result is stored: {found[0][0]}")
        elif found[0] != ("ready", task.retry_count):
            raise Violation(f"task {known.key} runs for attempt {task.retry_count + 1}, and is {found[0]}")
        if known.transaction is not None and known.transaction not in self.committed:
            raise Violation(f"task {known.key} runs, and its transaction was not committed")
        known.running = True
        known.runs += 1

    def stops(self, task: ClaimedTask) -> None:
        """Take note that the app does not run a task any more."""
        self._known(task).running = False

    def released(self, task: ClaimedTask) -> None:
        """Take note that an attempt ended with its process, which was meant to end: the task runs again anyway."""
        for attempts in self.unstored.values():
            attempts.pop(task.id, None)

    def result(self, task: ClaimedTask, completion: Completion, backoff_seconds: float, now: float) -> None:
        """Take note of the result that the server has decided; it is not stored yet."""
        known = self._known(task)
        if completion.state == "ready":
            known.not_before = now + backoff_seconds
            # Its own ETA counts for the first attempt.
            known.eta_usec = 0
            known.hurried = False

    def check_store(self, store: TaskStore) -> None:
        """Check what the database has, after a commit."""
        read = store._database.lanes_reader.read
        rows = [Row(*row) for row in read(f"SELECT {', '.join(Row._fields)} FROM tasks")]
        counted = Counter((row.queue, row.state) for row in rows if row.state != "held")
        stored = {
            (queue, state): number
            for queue, state, number in read(
                "SELECT queue, state, number FROM counts WHERE queue <> '' AND number <> 0"
            )
        }
        if stored != counted:
            raise Violation(f"the counts are {stored}, and a scan finds {dict(counted)}")
        if dict(store._database.counts.numbers()) != counted:
            raise Violation(f"the counts in memory are {store._database.counts.numbers()}, and a scan finds {counted}")
        names = Counter((row.queue, row.name) for row in rows if row.state not in _FINISHED)
        twice = [name for name, number in names.items() if number > 1]
        if twice:
            raise Violation(f"unfinished tasks share the name {twice[0]}")
        there = {key_of(row.url): row.state for row in rows}
        waiting = {row.id: row.retry_count for row in rows if row.state == "ready"}
        for service, attempts in self.unstored.items():
            self.unstored[service] = {
                task_id: retries for task_id, retries in attempts.items() if waiting.get(task_id) == retries
            }
        for key, known in self.tasks.items():
            if not known.acknowledged or known.deleting:
                continue
            if key not in there:
                raise Violation(f"task {key} was acknowledged, and is not stored")
            if there[key] in _FINISHED and not known.runs and not (there[key] == "failed" and known.broken_off):
                raise Violation(f"task {key} is {there[key]}, and never ran")

    def check_recovered(self, store: TaskStore, services: Iterable[Service]) -> None:
        """Check what a new server has found, before it runs anything."""
        self.check_store(store)
        for service in services:
            number = len(self.unstored.get(service.name, ()))
            if number > service.most:
                raise Violation(f"{number} tasks of {service.name} run again, {service.most} are allowed")
        self.unstored.clear()
        rows = store._database.read("SELECT url, state FROM tasks")
        there = {key_of(url): state for url, state in rows}
        for key, known in self.tasks.items():
            if known.transaction is None:
                continue
            if known.transaction in self.committed and not known.deleting and there.get(key, "held") == "held":
                raise Violation(f"task {key} is {there.get(key)}, and its transaction was committed")
            if known.transaction not in self.committed and key in there:
                raise Violation(f"task {key} is {there[key]}, and its transaction was not committed")

    def check_end(self, store: TaskStore) -> None:
        """Check that nothing is left to do, after a time without accidents."""
        self.check_store(store)
        for url, state in store._database.read("SELECT url, state FROM tasks"):
            is_left = state == "held" and self.tasks[key_of(url)].transaction in self.undiscarded
            if state not in _FINISHED and not is_left:
                raise Violation(f"task {key_of(url)} is {state}, and nothing runs it")
        claimed = store.queries.counts()
        running = {queue: numbers for queue, numbers in claimed.items() if numbers.get("running")}
        if running:
            raise Violation(f"tasks are claimed and nothing runs: {running}")

    def restarted(self) -> None:
        """Take note that a new server begins: what the old one knew in memory is gone."""
        self.commit_began = math.inf
        self.undiscarded.clear()
        self.rates.clear()
        self.in_flight.clear()
        self.changing.clear()
        for task in self.tasks.values():
            task.running = False

    def hurry_all(self) -> None:
        """Take note that back-offs may end early."""
        for task in self.tasks.values():
            task.hurried = True

    def limits_change(self, queues: set[str]) -> None:
        """Take note that the limits of queues change."""
        self.changing |= queues
        for queue in queues:
            self.rates.pop(queue, None)

    def _known(self, task: ClaimedTask) -> Task:
        return self.tasks[key_of(task.url)]
