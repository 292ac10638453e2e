"""When the scheduler runs tasks, on a real store and over real HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.delivery.attempt_result import AttemptResult
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.dispatch import fairness
from deferred_middleware.server.dispatch.results import completion_of
from deferred_middleware.server.dispatch.scheduler import Scheduler
from deferred_middleware.server.store.records import ClaimedTask, NewTask, RetryPolicy, State, StoredTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.threadedserver import ThreadedHTTPServer

QUICK = RetryPolicy(min_backoff_seconds=0.01, max_backoff_seconds=0.05)
_PATIENCE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """A request as an app saw it."""

    name: str
    service: str
    retry_count: int
    at: float


class App:
    """Two services on a real HTTP server each; ``answer`` chooses each response's status."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: Callable[[Seen], int] = lambda seen: 200
        self.concurrent = self.most_concurrent = 0
        self._condition = threading.Condition()
        self._servers = [self._serve(name) for name in ("default", "background")]

    def _serve(self, service: str) -> ThreadedHTTPServer:
        app = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                seen = Seen(
                    name=self.headers["X-AppEngine-TaskName"],
                    service=service,
                    retry_count=int(self.headers["X-AppEngine-TaskRetryCount"]),
                    at=time.time(),
                )
                status = app.handle(seen)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        server = ThreadedHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), name=f"app-{service}").start()
        return server

    def handle(self, seen: Seen) -> int:
        """Record a request and return the status of its response."""
        with self._condition:
            self.seen.append(seen)
            self.concurrent += 1
            self.most_concurrent = max(self.concurrent, self.most_concurrent)
            self._condition.notify_all()
        try:
            return self.answer(seen)
        finally:
            with self._condition:
                self.concurrent -= 1

    def wait_for(self, number: int) -> list[Seen]:
        """Wait until ``number`` requests have arrived; return them."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.seen) >= number, _PATIENCE_SECONDS), self.seen
            return list(self.seen)

    def services(self, concurrency: int = 2) -> list[Service]:
        """Return the two services."""
        return [
            Service(
                name=name,
                version="local",
                host="127.0.0.1",
                port=server.server_address[1],
                concurrency=concurrency,
                external=True,
            )
            for name, server in zip(("default", "background"), self._servers, strict=True)
        ]

    def close(self) -> None:
        """Stop the servers."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


def slowly(seconds: float) -> Callable[[Seen], int]:
    """Return an ``answer`` that takes ``seconds``."""

    def answer(_seen: Seen) -> int:
        time.sleep(seconds)
        return 200

    return answer


class SignallingStore(TaskStore):
    """A store that signals when results are written."""

    def __init__(self, path: Path) -> None:
        self.written = threading.Condition()
        super().__init__(path)

    def complete_later(self, completions: Any) -> Any:
        """Submit results, and signal when they are written."""
        future = super().complete_later(completions)
        future.add_done_callback(self._notify)
        return future

    def _notify(self, _future: object) -> None:
        with self.written:
            self.written.notify_all()

    def wait_for(self, name: str, state: State, *, queue: str = "default", attempts: int = 0) -> StoredTask:
        """Wait until a task is in this state and at least so many attempts of it are over; return it."""

        def reached() -> StoredTask | None:
            task = self.queries.get(queue, name)
            return task if task is not None and task.state == state and task.retry_count >= attempts else None

        with self.written:
            task = self.written.wait_for(reached, _PATIENCE_SECONDS)
        assert task is not None, self.queries.get(queue, name)
        return task


class World:
    """A store, an app with two services, and schedulers between them."""

    def __init__(self, path: Path) -> None:
        self.app = App()
        self.store = SignallingStore(path)
        self._schedulers: list[Scheduler] = []

    def start(
        self,
        *,
        concurrency: int = 2,
        queues: QueueRegistry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Scheduler:
        """Start a scheduler."""
        directory = ServiceDirectory(self.app.services(concurrency))
        scheduler = Scheduler(self.store, directory, TaskRequests(), queues=queues, clock=clock)
        self._schedulers.append(scheduler)
        scheduler.start()
        return scheduler

    def add(self, name: str, *, delay_seconds: float = 0, **fields: Any) -> None:
        """Add a task, which retries quickly unless ``fields`` say otherwise."""
        eta_usec = int((time.time() + delay_seconds) * 1e6)
        task = NewTask(**{"queue": "default", "url": "/", "retry": QUICK, "name": name, "eta_usec": eta_usec, **fields})
        assert self.store.add([task])[0].outcome == "added"
        for scheduler in self._schedulers:
            scheduler.wake()

    def close(self) -> None:
        """Stop the schedulers, the store and the app."""
        for scheduler in self._schedulers:
            scheduler.stop(0)
        self.store.close()
        self.app.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A store and an app."""
    with contextlib.closing(World(tmp_path / "tasks.sqlite")) as world:
        yield world


def test_a_task_runs_once_and_is_done(world: World) -> None:
    """A due task is delivered once to its service, and the attempt is recorded."""
    world.start()
    world.add("one", target="local.background")
    task = world.store.wait_for("one", "succeeded")
    assert [(seen.name, seen.service, seen.retry_count) for seen in world.app.seen] == [("one", "background", 0)]
    (attempt,) = world.store.queries.attempts(task.id)
    assert (attempt.number, attempt.status, attempt.service) == (1, 200, "background")
    assert (task.retry_count, task.execution_count) == (1, 1)


def test_a_held_service_is_left_alone(world: World) -> None:
    """While a service is suspended no task begins there, even a forced one; the other service continues."""
    scheduler = world.start()
    scheduler.suspend_service("background")
    world.add("held", target="local.background")
    world.add("forced", target="local.background", delay_seconds=3600)
    forced = world.store.queries.get("default", "forced")
    assert forced is not None
    assert world.store.force_run(forced.id)
    scheduler.wake()
    for name in ("other", "another"):
        world.add(name, target="local.default")
        world.store.wait_for(name, "succeeded")
    assert {seen.service for seen in world.app.seen} == {"default"}
    scheduler.resume_service("background")
    for name in ("held", "forced"):
        task = world.store.wait_for(name, "succeeded")
        assert task.retry_count == 1


def test_what_was_waiting_runs_at_the_start(world: World) -> None:
    """Tasks that were added before the scheduler starts run without a wake-up."""
    world.add("one")
    world.start()
    world.store.wait_for("one", "succeeded")


def test_an_eta_is_met(world: World) -> None:
    """An idle scheduler runs no task before its ETA, and at least half of them within 50 ms after it."""
    world.start()
    for number, delay_seconds in enumerate((0.25, 0.37, 0.53, 0.61, 0.79)):
        world.add(f"later{number}", delay_seconds=delay_seconds)
    began = {seen.name: seen.at for seen in world.app.wait_for(5)}
    etas = {name: world.store.wait_for(name, "succeeded").eta_usec / 1e6 for name in began}
    lateness_seconds = sorted(began[name] - eta for name, eta in etas.items())
    assert lateness_seconds[0] >= 0
    assert lateness_seconds[2] < 0.05


def test_a_sooner_task_is_not_kept_waiting_by_a_later_one(world: World) -> None:
    """Tasks run in the order of their ETAs, not in the order in which they were added."""
    world.start()
    for name, delay_seconds in (("c", 0.3), ("a", 0.1), ("b", 0.2)):
        world.add(name, delay_seconds=delay_seconds)
    assert [seen.name for seen in world.app.wait_for(3)] == ["a", "b", "c"]


def test_a_failing_task_is_tried_until_it_succeeds(world: World) -> None:
    """A failing task is retried until it succeeds, and each attempt gets its retry count."""
    world.app.answer = lambda seen: 200 if seen.retry_count == 3 else 500
    world.start()
    world.add("flaky")
    task = world.store.wait_for("flaky", "succeeded")
    assert [seen.retry_count for seen in world.app.seen] == [0, 1, 2, 3]
    assert [attempt.status for attempt in world.store.queries.attempts(task.id)] == [500, 500, 500, 200]


def test_retries_wait_for_their_back_off(world: World) -> None:
    """A retry waits for the back-off and not much longer."""
    world.app.answer = lambda seen: 200 if seen.retry_count else 500
    world.start()
    world.add("flaky", retry=RetryPolicy(min_backoff_seconds=0.3))
    first, second = world.app.wait_for(2)
    assert 0.3 <= second.at - first.at < 0.45


def test_a_task_that_is_past_its_limit_is_a_dead_letter(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """With a limit of two retries, a task fails after three attempts, is kept as failed, and is logged."""
    world.app.answer = lambda seen: 500
    world.start()
    world.add("doomed", retry=dataclasses.replace(QUICK, retry_limit=2))
    task = world.store.wait_for("doomed", "failed")
    assert len(world.app.seen) == 3
    assert task.finished_usec is not None
    assert "doomed" in caplog.text


def test_the_queues_policy_holds_for_tasks_without_their_own(world: World) -> None:
    """If a task has no retry options, its queue's retry options apply."""
    world.app.answer = lambda seen: 500
    world.start(queues=QueueRegistry([QueueConfig(name="default", retry=dataclasses.replace(QUICK, retry_limit=1))]))
    world.add("doomed", retry=None)
    world.store.wait_for("doomed", "failed")
    assert len(world.app.seen) == 2


def test_a_task_for_an_unknown_service_fails_visibly_and_is_retried(world: World) -> None:
    """A task for an unknown service is not delivered, and each try is recorded as an attempt with the reason."""
    world.start()
    world.add("lost", target="local.nowhere", retry=dataclasses.replace(QUICK, retry_limit=1))
    world.add("found")
    task = world.store.wait_for("lost", "failed")
    world.store.wait_for("found", "succeeded")
    assert [seen.name for seen in world.app.seen] == ["found"]
    attempts = world.store.queries.attempts(task.id)
    assert [attempt.status for attempt in attempts] == [None, None]
    assert "No service answers to 'local.nowhere'" in str(attempts[0].reason)
    assert task.execution_count == 0


def test_no_more_run_at_a_time_than_the_service_takes(world: World) -> None:
    """A service runs as many tasks at a time as its concurrency, and never more."""
    world.app.answer = slowly(0.02)
    for number in range(20):
        world.add(f"t{number}")
    world.start(concurrency=3)
    world.app.wait_for(20)
    assert world.app.most_concurrent == 3


def test_a_stuck_service_does_not_hold_up_another(world: World) -> None:
    """If one service is full of slow tasks, the tasks of another still run."""
    over = threading.Event()
    world.app.answer = lambda seen: 200 if seen.service == "background" or over.wait(_PATIENCE_SECONDS) else 500
    world.start(concurrency=1)
    for number in range(10):
        world.add(f"slow{number}")
    world.add("quick", target="local.background")
    world.store.wait_for("quick", "succeeded")
    over.set()
    world.store.wait_for("slow9", "succeeded")


def test_slow_tasks_wait_in_the_store(world: World) -> None:
    """If a service's tasks are slow, no more are claimed than it can run, and the others stay in the store."""
    over = threading.Event()
    world.app.answer = lambda seen: 200 if over.wait(_PATIENCE_SECONDS) else 500
    for number in range(10):
        world.add(f"t{number}")
    world.start(concurrency=2)
    world.app.wait_for(2)
    assert world.store.queries.counts() == {"default": {"ready": 8, "running": 2}}
    over.set()
    world.app.wait_for(10)


def test_what_is_claimed_and_has_not_begun_is_shown_as_waiting(world: World) -> None:
    """Of the claimed tasks, only the one that has begun is running; the others are due, and found as such."""
    gate = threading.Event()
    world.app.answer = lambda seen: 200 if gate.wait(_PATIENCE_SECONDS) else 500
    scheduler = world.start(concurrency=1)
    for number in range(10):
        world.add(f"task{number}")
    world.app.wait_for(1)
    queries = world.store.queries
    for task_id in range(1, 11):  # a person's wish is claimed even if there is no slot for it
        world.store.force_run(task_id)
    scheduler.wake()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while queries.statistics("default").in_flight < 10 or queries.counts() != {"default": {"ready": 9, "running": 1}}:
        assert time.monotonic() < deadline, queries.counts()
        time.sleep(0.005)  # no call waits until what was claimed is assigned

    assert queries.backlog("default").due == 9
    assert [task.name for task in queries.find(state="running").tasks] == [world.app.seen[0].name]
    waiting = queries.find(state="ready").tasks
    assert len(waiting) == 9
    last = max(waiting, key=lambda task: (task.eta_usec, task.id))
    assert queries.ahead_of([last.id], most=8) == {last.id: (8, False)}
    assert queries.ahead_of([last.id], most=7) == {last.id: (7, True)}
    assert queries.is_claimed(last.id)
    gate.set()
    world.app.wait_for(10)


def test_a_long_lane_does_not_hold_up_a_short_one(world: World) -> None:
    """Two queues take turns at a service with one slot, even if one has many more tasks."""
    for number in range(6):
        world.add(f"t{number}")
    world.add("other", queue="other")
    world.app.answer = slowly(0.06)
    world.start(concurrency=1)
    names = [seen.name for seen in world.app.wait_for(7)]
    assert names.index("other") <= 1


def test_a_clock_that_jumps_ahead_makes_tasks_due(world: World) -> None:
    """If the wall clock jumps past an ETA, the task runs at the next wake-up."""
    ahead = [0.0]
    scheduler = world.start(clock=lambda: time.time() + ahead[0])
    world.add("tomorrow", delay_seconds=24 * 3600)
    ahead[0] = 24 * 3600 + 1
    scheduler.wake()
    world.store.wait_for("tomorrow", "succeeded")


def test_stopping_waits_for_attempts_in_flight(world: World) -> None:
    """Within the grace period, stopping waits for the running attempt, saves its result and begins no other."""
    world.app.answer = slowly(0.2)
    scheduler = world.start(concurrency=1)
    world.add("running")
    world.app.wait_for(1)
    world.add("waiting")
    assert scheduler.stop(_PATIENCE_SECONDS) == 0
    world.store.wait_for("running", "succeeded")
    assert world.store.queries.counts() == {"default": {"ready": 1, "succeeded": 1}}


def test_stopping_releases_what_does_not_end_in_time(world: World) -> None:
    """An attempt that outlasts the grace period is cut off, and its task is released without counting the attempt."""
    over = threading.Event()
    world.app.answer = lambda seen: 200 if over.wait(_PATIENCE_SECONDS) else 500
    scheduler = world.start(concurrency=1)
    world.add("endless")
    world.app.wait_for(1)
    began = time.monotonic()
    assert scheduler.stop(0.1) == 1
    assert time.monotonic() - began < 2
    over.set()
    task = world.store.queries.get("default", "endless")
    assert task is not None
    assert (task.state, task.retry_count) == ("ready", 0)
    assert world.store.queries.attempts(task.id) == []


def test_a_result_that_cannot_be_written_is_written_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the store can't write a result, the result is written later and the task doesn't run again."""
    failures = [True, True]
    complete_later = world.store.complete_later

    def failing(completions: Any) -> Any:
        if failures:
            failures.pop()

            def fail(*_: object) -> list[bool]:
                raise sqlite3.OperationalError("database or disk is full")

            return world.store._writer.submit(fail)
        return complete_later(completions)

    monkeypatch.setattr(world.store, "complete_later", failing)
    world.start()
    world.add("one")
    world.store.wait_for("one", "succeeded")
    assert len(world.app.seen) == 1
    assert failures == []


def test_the_scheduler_survives_a_failing_store(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If claiming fails, the error is logged and the task runs when claiming works again."""
    failures = [True, True]
    claim = world.store.claim

    def failing(*arguments: Any) -> list[ClaimedTask]:
        if failures:
            failures.pop()
            raise sqlite3.OperationalError("database or disk is full")
        return claim(*arguments)

    monkeypatch.setattr(world.store, "claim", failing)
    world.start()
    world.add("one")
    world.store.wait_for("one", "succeeded")
    assert "disk is full" in caplog.text


def test_an_idle_scheduler_does_not_poll(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no task is due, the scheduler doesn't query the store."""
    asked = threading.Semaphore(0)
    lanes = world.store.queries.lanes

    def counting() -> Any:
        asked.release()
        return lanes()

    monkeypatch.setattr(world.store.queries, "lanes", counting)
    world.add("tomorrow", delay_seconds=24 * 3600)
    world.start()
    assert asked.acquire(timeout=_PATIENCE_SECONDS)
    assert not asked.acquire(timeout=0.5)


def _claimed(**changes: Any) -> ClaimedTask:
    fields: dict[str, Any] = {field.name: None for field in dataclasses.fields(ClaimedTask)}
    fields.update(id=1, url="/work", claim_token=2, eta_usec=5, retry_count=0, execution_count=0)
    return ClaimedTask(**{**fields, **changes})


def _settled(result: AttemptResult, policy: RetryPolicy | None = None, **changes: Any) -> Any:
    return completion_of(
        _claimed(**changes),
        result,
        policy or RetryPolicy(),
        started_usec=1_000_000,
        finished_usec=3_000_000,
        service="default",
    )


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_every_2xx_is_done(status: int) -> None:
    """Any 2xx status means success."""
    assert _settled(AttemptResult(status=status, duration_usec=1)).state == "succeeded"


@pytest.mark.parametrize("status", [199, 300, 302, 304, 403, 404, 408, 429, 500, 503, None])
def test_everything_else_is_retried(status: int | None) -> None:
    """Any other status, or no response, leads to a retry after the back-off, counted from the attempt's end."""
    completion = _settled(AttemptResult(status=status, duration_usec=1))
    assert (completion.state, completion.eta_usec, completion.finished_usec) == ("ready", 3_100_000, None)


def test_a_permanent_failure_is_a_dead_letter() -> None:
    """A 200 with the outcome permanent-failure makes the task a dead letter."""
    completion = _settled(AttemptResult(status=200, duration_usec=1, outcome="permanent-failure"))
    assert (completion.state, completion.attempt.reason) == ("failed", "permanent failure")


def test_an_attempt_without_a_response_counts_as_no_execution() -> None:
    """A cut-off attempt is recorded as response 0, Instance Unavailable; a failed response as its status, App Error."""
    cut_off = _settled(AttemptResult(status=None, duration_usec=1), retry_count=4, execution_count=2)
    assert (cut_off.retry_count, cut_off.execution_count) == (5, 2)
    assert (cut_off.previous_response, cut_off.retry_reason) == (0, "Instance Unavailable")
    failed = _settled(AttemptResult(status=503, duration_usec=1), retry_count=4, execution_count=2)
    assert (failed.retry_count, failed.execution_count) == (5, 3)
    assert (failed.previous_response, failed.retry_reason) == (503, "App Error")


def test_age_counts_from_the_first_attempt() -> None:
    """The age limit applies to the time since the first attempt."""
    policy = RetryPolicy(age_limit_seconds=10)
    failure = AttemptResult(status=500, duration_usec=1)
    assert _settled(failure, policy).first_attempt_usec == 1_000_000
    assert _settled(failure, policy, first_attempt_usec=-6_000_000).state == "ready"
    assert _settled(failure, policy, first_attempt_usec=-8_000_000).state == "failed"


def test_an_endless_back_off_fits_into_the_store() -> None:
    """If the back-off is huge, the task waits for 100 years, and the ETA fits into SQLite's integers."""
    policy = RetryPolicy(min_backoff_seconds=1e300, max_backoff_seconds=1e300)
    eta_usec = _settled(AttemptResult(status=500, duration_usec=1), policy).eta_usec
    assert 100 * 365 * 86_400 * 1_000_000 < eta_usec < 2**63


def queue(name: str = "default", **fields: Any) -> QueueConfig:
    """Return the configuration of a queue whose tasks are retried quickly."""
    return QueueConfig(**{"name": name, "retry": QUICK, **fields})


def test_a_queue_begins_no_more_than_its_rate(world: World) -> None:
    """A queue begins as many tasks as its bucket holds at once, and the others at its rate."""
    started = time.time()
    world.start(queues=QueueRegistry([queue(rate_per_second=20, bucket_size=2)]), concurrency=8)
    for number in range(8):
        world.add(f"task{number}")

    seen = world.app.wait_for(8)

    # None is too early since the start. A busy machine may delay one, and the next comes sooner after it; so that any
    # span of time keeps to the rate is tested with a clock of its own, in test_queue_limits_rate.py.
    times = sorted(request.at for request in seen)
    assert all(number <= 2 + 20 * (at - started) for number, at in enumerate(times, 1))


def test_a_queue_has_no_more_under_way_than_it_may(world: World) -> None:
    """A queue runs at most max_concurrent_requests tasks, even if the service has more threads."""
    world.app.answer = slowly(0.02)
    world.start(queues=QueueRegistry([queue(max_concurrent_requests=2)]), concurrency=8)
    for number in range(12):
        world.add(f"task{number}")

    world.app.wait_for(12)

    assert world.app.most_concurrent == 2


def test_a_slow_queue_does_not_have_all_threads(world: World) -> None:
    """A queue whose tasks never end leaves threads for another queue's tasks."""
    release = threading.Event()

    def answer(seen: Seen) -> int:
        if seen.name.startswith("stuck"):
            release.wait(_PATIENCE_SECONDS)
        return 200

    world.app.answer = answer
    world.start(queues=QueueRegistry([queue("slow"), queue("quick")]), concurrency=4)
    for number in range(20):
        world.add(f"stuck{number}", queue="slow")
    world.app.wait_for(2)
    try:
        for number in range(5):
            world.add(f"quick{number}", queue="quick")
        world.store.wait_for("quick4", "succeeded", queue="quick")
    finally:
        release.set()


@pytest.mark.parametrize("how", ["rate", "people"])
def test_a_paused_queue_runs_when_it_is_resumed(world: World, how: str) -> None:
    """A queue that is paused by rate 0 or by a person runs its tasks after it is resumed; other queues continue."""
    registry = QueueRegistry([queue("held", rate_per_second=0 if how == "rate" else None), queue("other")])
    if how == "people":
        world.store.operations.pause("held")
    scheduler = world.start(queues=registry)
    world.add("waits", queue="held")
    world.add("runs", queue="other")
    world.store.wait_for("runs", "succeeded", queue="other")
    assert [request.name for request in world.app.seen] == ["runs"]

    if how == "rate":
        registry.replace([queue("held"), queue("other")])
    else:
        world.store.operations.resume("held")
        scheduler.wake()

    world.store.wait_for("waits", "succeeded", queue="held")


@pytest.mark.parametrize("rated", [False, True])
def test_a_pause_withdraws_what_was_claimed_and_not_begun(
    world: World, rated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No claimed task begins while its queue is paused, all run after that, and the limits are as before."""
    monkeypatch.setattr(fairness, "_FAST_SECONDS", _PATIENCE_SECONDS)  # on a busy machine, too
    rate = 10_000.0 if rated else None
    queues = QueueRegistry(
        [QueueConfig(name="default", max_concurrent_requests=200, rate_per_second=rate, bucket_size=500)]
    )
    scheduler = world.start(concurrency=1, queues=queues)
    for number in range(30):  # until the queue is known as a fast one, so that its tasks are claimed ahead
        world.add(f"quick{number}")
    world.app.wait_for(30)
    gate = threading.Event()
    world.app.answer = lambda seen: 200 if gate.wait(_PATIENCE_SECONDS) else 500
    eta_usec = int(time.time() * 1e6)
    names = [f"task{number:03}" for number in range(100)]
    world.store.add([NewTask(queue="default", url="/", retry=QUICK, name=name, eta_usec=eta_usec) for name in names])
    scheduler.wake()
    world.app.wait_for(31)
    assert world.store.queries.statistics("default").in_flight > 1

    world.store.operations.pause("default")
    scheduler.wake()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while world.store.queries.statistics("default").in_flight > 1:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    gate.set()
    world.store.wait_for(world.app.seen[30].name, "succeeded")
    time.sleep(0.1)
    assert len(world.app.seen) == 31

    world.store.operations.resume("default")
    scheduler.wake()
    seen = world.app.wait_for(130)
    assert sorted(one.name for one in seen[30:]) == names
    for name in names:
        world.store.wait_for(name, "succeeded")
    allowance = scheduler._core.limits.allowance("default", frozenset())
    assert allowance.number == 200


def test_all_forced_tasks_run_at_once(world: World) -> None:
    """As many forced tasks as the service has slots run at a time, however many are forced together."""
    gate = threading.Event()
    world.app.answer = lambda seen: 200 if gate.wait(_PATIENCE_SECONDS) else 500
    queues = QueueRegistry([QueueConfig(name="default", rate_per_second=0.0)])
    scheduler = world.start(concurrency=12, queues=queues)
    for number in range(11):
        world.add(f"task{number}")
    for number in range(11):
        task = world.store.queries.get("default", f"task{number}")
        assert task is not None
        assert world.store.force_run(task.id)
    scheduler.wake()
    world.app.wait_for(11)
    assert world.app.concurrent == 11
    gate.set()
    for number in range(11):
        world.store.wait_for(f"task{number}", "succeeded")


def test_a_forced_task_runs_in_a_paused_queue(world: World) -> None:
    """A forced task runs although its queue is paused."""
    scheduler = world.start(queues=QueueRegistry([queue("held", rate_per_second=0)]))
    world.add("forced", queue="held", delay_seconds=3600)
    task = world.store.queries.get("held", "forced")
    assert task is not None

    assert world.store.force_run(task.id)
    scheduler.wake()

    world.store.wait_for("forced", "succeeded", queue="held")


def test_a_queues_target_wins(world: World) -> None:
    """A queue's target takes precedence over the task's own target."""
    world.start(queues=QueueRegistry([queue("mail", target="background")]))
    world.add("task", queue="mail", target="local.default")

    assert [request.service for request in world.app.wait_for(1)] == ["background"]


def test_a_503_slows_the_whole_queue_and_a_429_does_not(world: World) -> None:
    """A 503 pauses the whole queue; a 429 doesn't, and other queues continue."""
    statuses = {"busy": 503, "many": 429}
    world.app.answer = lambda seen: statuses.get(seen.name, 200) if seen.retry_count == 0 else 200
    world.start(queues=QueueRegistry([queue("slowed"), queue("other")]), concurrency=4)
    world.add("busy", queue="slowed")
    world.store.wait_for("busy", "ready", queue="slowed", attempts=1)
    began = world.app.wait_for(1)[0].at
    world.add("behind", queue="slowed")
    world.add("many", queue="other")
    world.store.wait_for("many", "succeeded", queue="other")
    world.store.wait_for("behind", "succeeded", queue="slowed")

    by_name = {request.name: request for request in world.app.seen if request.name == "behind"}
    assert by_name["behind"].at - began >= 0.9
    assert max(request.at for request in world.app.seen if request.name == "many") < by_name["behind"].at


def test_a_queue_that_is_removed_keeps_its_tasks(world: World) -> None:
    """Tasks of a removed queue run with the queue's last configuration."""
    registry = QueueRegistry([queue("gone", rate_per_second=0)])
    world.start(queues=registry)
    world.add("kept", queue="gone")

    registry.replace([queue("gone")])
    registry.replace([])

    world.store.wait_for("kept", "succeeded", queue="gone")


@pytest.mark.parametrize("by_seconds", [-3600, 3600, -365 * 24 * 3600, 365 * 24 * 3600])
def test_a_back_off_lasts_as_long_when_the_clock_is_set(world: World, by_seconds: float) -> None:
    """If the clock is set by an hour or a year during a back-off, the retry is neither early nor stuck."""
    ahead = [0.0]
    failed = threading.Event()

    def answer(seen: Seen) -> int:
        if seen.retry_count == 0:
            failed.set()
            return 500
        return 200

    world.app.answer = answer
    scheduler = world.start(clock=lambda: time.time() + ahead[0])
    world.add("task", retry=RetryPolicy(min_backoff_seconds=1.5, max_backoff_seconds=1.5))
    assert failed.wait(_PATIENCE_SECONDS)
    world.store.wait_for("task", "ready", attempts=1)
    set_at = time.monotonic()
    ahead[0] = by_seconds
    scheduler.wake()
    world.add("now", delay_seconds=by_seconds)
    scheduler.wake()

    world.store.wait_for("now", "succeeded")
    world.store.wait_for("task", "succeeded")

    assert time.monotonic() - set_at < _PATIENCE_SECONDS
    first, second = (request.at for request in world.app.seen if request.name == "task")
    assert second - first >= 0.5


def test_a_handler_that_outlasts_its_deadline_does_not_overlap_with_the_next_attempt(world: World) -> None:
    """An attempt that outlasts its deadline is cut off, and the next one waits until its handler ends."""
    running: list[int] = []
    overlapped = []

    def answer(seen: Seen) -> int:
        if running:
            overlapped.append(seen)
        running.append(1)
        if seen.retry_count == 0:
            time.sleep(0.6)
        running.pop()
        return 200

    world.app.answer = answer
    world.start(concurrency=4)
    world.add("slow", dispatch_deadline_usec=100_000)

    task = world.store.wait_for("slow", "succeeded")

    assert overlapped == []
    assert (task.retry_count, task.execution_count) == (2, 1)
    assert [attempt.status for attempt in world.store.queries.attempts(task.id)] == [None, 200]
