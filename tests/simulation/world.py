"""The simulated world: a server, its app processes, its disk, its clients, and the time.

One loop takes the next event and calls it. The code of the server that decides is the real one, and so is SQLite:
:class:`~deferred_middleware.server.dispatch.rounds.DispatchCore`, ``AttemptRunner``, ``TaskStore`` and ``GroupCommit``.
What has threads and sockets is replaced by events: the scheduler's thread, the workers, the store's writer, the app.

A call that waits for a commit lets other events happen meanwhile (:meth:`World.wait_for`). If the server is killed
during the call, :class:`Killed` takes it off the stack.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import math
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.delivery.attempt_result import AttemptEvent, AttemptResult, EventKind, ProcessEnd
from deferred_middleware.server.dispatch import result_writer
from deferred_middleware.server.dispatch.attempts import AttemptRunner
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.rounds import MAX_WAIT_SECONDS, DispatchCore
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.database import StoreDrivers
from deferred_middleware.server.store.records import ClaimedTask, Completion, NewTask
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep.disk_reserve import DiskReserve
from deferred_middleware.wire import protocol
from tests.simulation import disk, model, plan
from tests.simulation.disk import STORE, SimulatedReserve, SimulatedWriter
from tests.simulation.model import Model, Task, Violation, key_of
from tests.simulation.plan import Stimulus

EPOCH = 1_700_000_000.0
_MOST_NESTED_CALLS = 3
_MOST_EVENTS = 30_000
_RESTART_SECONDS = 1.0
# If the clock is set back and the server is killed before it has noticed, a back-off takes longer by as much.
_PATIENCE_SECONDS = 3 * 3600.0
_SERVICES = {"default": 3, "background": 2}
# A run has few tasks.
_MOST_UNSTORED = 9
_MOST_UNSTORED_SLOW = 3
_IN_MODEL = {
    name: model.Service(
        name=name,
        most=number + _MOST_UNSTORED,
        most_slow=number + _MOST_UNSTORED_SLOW,
        slow_seconds=result_writer.SLOW_SECONDS,
    )
    for name, number in _SERVICES.items()
}


class Killed(BaseException):
    """The server of this call has been killed."""


class NoShrinker:
    """Does not shrink anything."""

    def __init__(self, *_: object) -> None:
        pass

    def wake(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """A task that was delivered, and when by the monotonic clock."""

    task: ClaimedTask
    began: float


class World:
    """One run, with the ``stimuli`` of ``seed`` or some of them, in ``directory``."""

    def __init__(self, seed: int, directory: Path, stimuli: Iterable[Stimulus] | None = None) -> None:
        self.seed = seed
        self.stimuli = list(plan.draw(seed) if stimuli is None else stimuli)
        self.chance = random.Random(f"run {seed}")
        self.model = Model()
        self.story: list[str] = []
        self.now = 0.0
        self.wall_offset = EPOCH
        # As the server has noticed it.
        self.noticed_offset = EPOCH
        self._latest_offset = EPOCH
        self.disk_mode = "good"
        self.queues = QueueRegistry(plan.queues(0))
        self.server: Server | None = None
        self._root = directory
        self._openings = 0
        self._events: list[tuple[float, int, str, Callable[[], object]]] = []
        self._order = 0
        self.events = 0
        self._nested = 0
        # While the wall clock's change is being handled, threads that read the clock wait.
        self.only_disk = False
        self._next_key = 0
        self._next_transaction = 0

    # Time and events.

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        return self.now

    def wall(self) -> float:
        """Return the wall clock's time."""
        return self.now + self.wall_offset

    def after(self, seconds: float, what: Callable[[], object], *, kind: str = "event") -> None:
        """Have something happen."""
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, kind, what))

    def tell(self, sentence: str) -> None:
        """Add a sentence to the story."""
        self.story.append(f"{self.now:10.4f}  {sentence}")

    def step(self) -> bool:
        """Let the next event happen; return false if there is none."""
        aside = []
        while self._events:
            event = heapq.heappop(self._events)
            if (self.only_disk and event[2] not in ("disk", "accident")) or (
                event[2] == "call" and self._nested >= _MOST_NESTED_CALLS
            ):
                aside.append(event)
                continue
            break
        else:
            for one in aside:
                heapq.heappush(self._events, one)
            return False
        for one in aside:
            heapq.heappush(self._events, one)
        self.events += 1
        if self.events > _MOST_EVENTS:
            raise Violation("the server is busy with nothing")
        self.now = max(self.now, event[0])
        # Until the server notices that the clock was set back, the old time goes on.
        offset = max(self.wall_offset, self.noticed_offset)
        self.model.latest_usec = max(self.model.latest_usec, int((self.now + offset) * 1e6))
        event[3]()
        if self.server is not None:
            self.server.check()
        return True

    def wait_for(self, future: Future[Any]) -> None:
        """Let events happen until a future is done."""
        server = self.server
        self._nested += 1
        try:
            while not future.done():
                if not self.step():
                    raise Violation("a call waits for ever")
                if self.server is not server:
                    raise Killed
        finally:
            self._nested -= 1

    # The run.

    def run(self) -> None:
        """Run to the end. Raises :class:`Violation`, and whatever the server's code raises."""
        reserve = SimulatedReserve(lambda: self.disk_mode == "full")
        with (
            mock.patch.object(DiskReserve, "_allocate", lambda one: reserve.allocate(one)),
            mock.patch.dict(DiskReserve.__init__.__kwdefaults__, {"size": 4096}),
            mock.patch.object(result_writer, "MOST_UNSTORED", _MOST_UNSTORED),
            mock.patch.object(result_writer, "MOST_UNSTORED_SLOW", _MOST_UNSTORED_SLOW),
        ):
            try:
                self._start()
                for stimulus in self.stimuli:
                    kind = "accident" if stimulus.kind in ("kill", "power cut", "disk", "process") else "call"
                    self.after(stimulus.at, functools.partial(self._happen, stimulus), kind=kind)
                last = max((one.at for one in self.stimuli), default=0.0)
                self.after(last + 40.0, self._calm_down, kind="accident")
                until = last + _PATIENCE_SECONDS
                while self.now < until and self.step():
                    if self.now > last + 41.0 and self._is_over():
                        break
                if self.server is None:
                    raise Violation("the server did not start again")
                self.model.check_end(self.server.store)
            finally:
                if self.server is not None:
                    self.server.drop()

    def _is_over(self) -> bool:
        server = self.server
        return (
            server is not None
            and server.writer.is_idle
            and not any(
                numbers.get("ready") or numbers.get("running") for numbers in server.store.queries.counts().values()
            )
        )

    def _calm_down(self) -> None:
        self.tell("no more accidents")
        # An ETA that was given while the clock was ahead is not reached before the clock is there again.
        self.wall_offset = self._latest_offset
        self.disk_mode = "good"
        self.queues.replace(plan.queues(0))
        if self.server is not None:
            self.after(0.0, self._resume_all, kind="call")

    def _resume_all(self) -> None:
        for queue in plan.QUEUES:
            self._happen(Stimulus(at=self.now, kind="resume", number=-1, facts={"queue": queue}))

    def _start(self) -> None:
        if self.server is not None:
            return
        self.model.restarted()
        if self.wall_offset > self.noticed_offset:
            # A new server can't tell a clock that was set forward from a long time in which none ran.
            self.model.hurry_all()
        self.noticed_offset = self.wall_offset
        self.server = Server(self, self._root / str(self._openings) / STORE)
        self.tell("the server starts")
        self.server.start()

    # Stimuli.

    def _happen(self, stimulus: Stimulus) -> None:
        if stimulus.kind in ("kill", "power cut"):
            self._kill(stimulus)
            return
        self.tell(f"#{stimulus.number} {stimulus}")
        if stimulus.kind == "clock":
            self.wall_offset += stimulus.facts["by"]
            self._latest_offset = max(self._latest_offset, self.wall_offset)
        elif stimulus.kind == "disk":
            self.disk_mode = stimulus.facts["mode"]
            self.after(stimulus.facts["seconds"], self._mend_disk, kind="accident")
        elif stimulus.kind == "configure":
            self.model.limits_change(set(plan.QUEUES))
            self.queues.replace(plan.queues(stimulus.facts["variant"]))
        elif self.server is None:
            self.tell("   nobody answers")
        elif stimulus.kind == "process":
            self.server.process_ends(stimulus.facts["service"], intended=stimulus.facts["intended"])
        else:
            self._call(self.server, stimulus)

    def _mend_disk(self) -> None:
        self.disk_mode = "good"

    def _kill(self, stimulus: Stimulus) -> None:
        server = self.server
        if server is None:
            return
        self.tell(f"#{stimulus.number} {stimulus}")
        self._openings += 1
        target = self._root / str(self._openings)
        if stimulus.kind == "kill":
            disk.copy_after_kill(server.path.parent, target)
        else:
            chance = random.Random(f"cut {self.seed} {stimulus.number}")
            disk.copy_after_power_cut(server.path.parent, target, server.writer.certain_bytes, chance)
        self.server = None
        server.drop()
        shutil.rmtree(server.path.parent)
        self.only_disk = False
        self.after(stimulus.facts["down"], self._start, kind="accident")

    def _call(self, server: Server, stimulus: Stimulus) -> None:
        """Do what a client or a person asks for."""
        try:
            getattr(self, f"_{stimulus.kind}")(server, stimulus.facts)
        except Killed:
            self.tell(f"   #{stimulus.number} was not answered")
        except (ServerError, sqlite3.Error) as error:
            self.tell(f"   #{stimulus.number} is refused: {error}")
        else:
            server.wake_up.wake()

    def _new_tasks(self, facts: dict[str, Any], transaction: str | None) -> list[tuple[Task, NewTask]]:
        found = []
        for index in range(facts["tasks"]):
            eta_usec = int((self.wall() + facts["countdown"]) * 1e6)
            self._next_key += 1
            known = Task(key=self._next_key, queue=facts["queue"], eta_usec=eta_usec, transaction=transaction)
            self.model.tasks[known.key] = known
            name = facts.get("name")
            new = NewTask(
                queue=known.queue,
                url=f"/t/{known.key}",
                eta_usec=eta_usec,
                name=None if name is None else f"{name}{index}",
                target=facts["target"],
            )
            found.append((known, new))
        return found

    def _add(self, server: Server, facts: dict[str, Any]) -> None:
        tasks = self._new_tasks(facts, None)
        keys = ", ".join(str(known.key) for known, _new in tasks)
        results = server.store.add([new for _known, new in tasks])
        for (known, _new), result in zip(tasks, results, strict=True):
            known.acknowledged = result.outcome == "added"
        self.tell(f"   tasks {keys}: {', '.join(result.outcome for result in results)}")
        server.check_store()

    def _crowd(self, server: Server, facts: dict[str, Any]) -> None:
        for number in range(facts["queues"]):
            one = {"queue": f"crowd-{number}", "tasks": facts["tasks"], "countdown": 0, "target": ""}
            self._add(server, one)

    def _transaction(self, server: Server, facts: dict[str, Any]) -> None:
        self._next_transaction += 1
        transaction = f"transaction {self._next_transaction}"
        tasks = self._new_tasks(facts, transaction)
        server.store.transactional.stage([new for _known, new in tasks], transaction)
        fate = facts["fate"]
        if fate == "roll back":
            self.model.undiscarded.add(transaction)
            server.store.transactional.discard(transaction)
            self.model.undiscarded.discard(transaction)
            return
        if fate == "crash before":
            self._kill(Stimulus(at=self.now, kind="kill", number=-1, facts={"down": 0.5}))
            return
        # The datastore's file is written, and synced.
        self.model.committed.add(transaction)
        if fate == "crash after":
            self._kill(Stimulus(at=self.now, kind="power cut", number=-1, facts={"down": 0.5}))
            return
        self._commit_staged(server, transaction, [known for known, _new in tasks])

    def _commit_staged(self, server: Server, transaction: str, tasks: list[Task]) -> None:
        try:
            server.store.transactional.commit([transaction])
        except sqlite3.Error:
            # As the datastore's stub does: what is committed stays committed.
            again = functools.partial(self._commit_staged, server, transaction, tasks)
            server.after(0.3, again, kind="call")
            return
        for known in tasks:
            known.acknowledged = True
        server.check_store()

    def _delete(self, server: Server, facts: dict[str, Any]) -> None:
        if not self.model.tasks:
            return
        known = self.model.tasks[1 + facts["pick"] % len(self.model.tasks)]
        found = server.store._database.read("SELECT name FROM tasks WHERE url = ?", (f"/t/{known.key}",))
        if found:
            known.deleting = True
            server.store.operations.delete_by_name(known.queue, [found[0][0]])

    def _purge(self, server: Server, facts: dict[str, Any]) -> None:
        for known in self.model.tasks.values():
            known.deleting |= known.queue == facts["queue"]
        server.store.operations.purge(facts["queue"])

    def _pause(self, server: Server, facts: dict[str, Any]) -> None:
        # The store's lock makes others wait that pause a queue, and one thread runs everything here.
        if self._nested:
            return
        # A read of the paused queues would wait for the lock too, if they weren't known.
        server.store.operations.paused()
        self.model.limits_change({facts["queue"]})
        server.store.operations.pause(facts["queue"])
        self.model.paused.add(facts["queue"])
        self.model.limits_change({facts["queue"]})

    def _resume(self, server: Server, facts: dict[str, Any]) -> None:
        if self._nested:
            self.after(
                0.1, functools.partial(self._happen, Stimulus(at=0, kind="resume", number=-1, facts=facts)), kind="call"
            )
            return
        self.model.paused.discard(facts["queue"])
        server.store.operations.paused()
        server.store.operations.resume(facts["queue"])

    def _retry(self, server: Server, facts: dict[str, Any]) -> None:
        for known in self.model.tasks.values():
            known.hurried |= known.queue == facts["queue"]
        server.store.operations.retry_failed(facts["queue"])

    def _force(self, server: Server, facts: dict[str, Any]) -> None:
        if not self.model.tasks:
            return
        known = self.model.tasks[1 + facts["pick"] % len(self.model.tasks)]
        found = server.store._database.read("SELECT id FROM tasks WHERE url = ?", (f"/t/{known.key}",))
        if found:
            known.hurried = True
            server.store.force_run(found[0][0])


class Reports:
    """Tells the model what was decided."""

    def __init__(self, world: World) -> None:
        self._world = world

    def attempt_ended(self, task: ClaimedTask, completion: Completion, _outcome: str | None) -> None:
        """Take note of the end of an attempt."""
        world = self._world
        policy = task.retry or world.queues.config_of(task.queue).retry
        backoff_seconds = policy.backoff_seconds(completion.retry_count)
        world.model.result(task, completion, backoff_seconds, world.now)
        world.tell(f"task {key_of(task.url)}: attempt {completion.retry_count} is decided: {completion.state}")


class Worker:
    """Makes the attempts of one service, as events."""

    def __init__(self, server: Server, service: Service, slots: ServiceSlots) -> None:
        self.service = service
        self.slots = slots
        self.is_awake = False
        self._server = server
        self._forced: set[int] = set()

    def assign(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        """Take over claimed tasks."""
        tasks = list(tasks)
        if forced:
            self._forced.update(task.id for task in tasks)
        self.slots.assign(tasks, forced=forced)
        self.wake()

    def wake(self) -> None:
        """Look soon whether an attempt may begin."""
        if not self.is_awake:
            self.is_awake = True
            self._server.after(self._server.world.chance.choice([0.0, 0.0002]), self._turn)

    def _turn(self) -> None:
        self.is_awake = False
        for one in self.slots.begin() or ():
            task = one.task
            world = self._server.world
            forced = task.id in self._forced
            self._forced.discard(task.id)
            config = world.queues.config_of(task.queue)
            world.model.begins(task, _IN_MODEL[self.service.id], config, world.now, forced=forced)
            self._server.runner.begin(task, self.service)
            self._server.apps[self.service.id].deliver(Attempt(task, world.now))

    def conclude(
        self, attempt: Attempt, result: AttemptResult, kind: EventKind = "answered", end: ProcessEnd | None = None
    ) -> None:
        """Handle the result of an attempt."""
        world = self._server.world
        self._server.runner.conclude(self.service, [AttemptEvent(kind, attempt.task, result)], end)
        world.model.ended(attempt.task)
        if self.slots.end(attempt.task, world.now - attempt.began):
            self._server.wake_up.wake()
        self.wake()


class AppProcess:
    """The process of one service."""

    def __init__(self, server: Server, worker: Worker) -> None:
        self._server = server
        self._worker = worker
        # By task: the attempts that were delivered and have no result.
        self._attempts: dict[int, Attempt] = {}
        self._running: set[int] = set()
        self.is_down = False
        self._ends = 0

    def deliver(self, attempt: Attempt) -> None:
        """Send a task to the app."""
        self._attempts[attempt.task.id] = attempt
        behaviour = plan.behaviour(
            self._server.world.seed,
            key_of(attempt.task.url),
            self._server.world.model.tasks[key_of(attempt.task.url)].runs,
        )
        self._server.after(behaviour.travel_seconds / 2, functools.partial(self._run, attempt, behaviour))

    def die(self, *, intended: bool) -> None:
        """End, with all attempts; another process follows."""
        if self.is_down:
            return
        self.is_down = True
        service = self._worker.service.id
        self._worker.slots.suspend(True)
        self._ends += 1
        end = ProcessEnd(service=service, number=self._ends, how="was killed", intended=intended)
        attempts, self._attempts = self._attempts, {}
        for attempt in attempts.values():
            self._stop(attempt)
            self._server.world.model.tasks[key_of(attempt.task.url)].broken_off = True
            if intended:
                self._server.world.model.released(attempt.task)
            self._server.after(
                0.0001, functools.partial(self._worker.conclude, attempt, self._broken(attempt), "died", end)
            )
        self._server.after(_RESTART_SECONDS, self._serve_again)

    def _serve_again(self) -> None:
        self.is_down = False
        self._worker.slots.suspend(False)
        self._worker.wake()
        self._server.wake_up.wake()

    def _run(self, attempt: Attempt, behaviour: plan.Behaviour) -> None:
        if self._attempts.get(attempt.task.id) is not attempt:
            return
        self._server.world.model.runs(attempt.task, self._server.store)
        self._running.add(attempt.task.id)
        self._server.after(behaviour.seconds, functools.partial(self._answer, attempt, behaviour))

    def _answer(self, attempt: Attempt, behaviour: plan.Behaviour) -> None:
        if self._attempts.get(attempt.task.id) is not attempt:
            return
        self._stop(attempt)
        self._server.after(behaviour.travel_seconds / 2, functools.partial(self._arrive, attempt, behaviour))

    def _arrive(self, attempt: Attempt, behaviour: plan.Behaviour) -> None:
        if self._attempts.pop(attempt.task.id, None) is not attempt:
            return
        if behaviour.status is None:
            result = self._broken(attempt)
        else:
            result = AttemptResult(
                status=behaviour.status,
                duration_usec=int(behaviour.seconds * 1e6),
                outcome=next(iter(sorted(protocol.DEAD_LETTERS))) if behaviour.permanent else None,
            )
        self._worker.conclude(attempt, result)
        if behaviour.answers_twice:
            # The store's fence must hold against a result of an attempt that is over.
            again = functools.partial(self._server.repeat_result, attempt, result)
            self._server.after(self._server.world.chance.choice([0.0, 0.01, 1.0]), again)

    def _stop(self, attempt: Attempt) -> None:
        if attempt.task.id in self._running:
            self._running.discard(attempt.task.id)
            self._server.world.model.stops(attempt.task)

    def _broken(self, attempt: Attempt) -> AttemptResult:
        seconds = self._server.world.now - attempt.began
        return AttemptResult(status=None, duration_usec=int(seconds * 1e6), reason="broken off")


class Server:
    """One run of the local server, from its start to its kill."""

    def __init__(self, world: World, path: Path) -> None:
        self.world = world
        self.path = path
        path.parent.mkdir(exist_ok=True)
        self.store = TaskStore(
            path,
            clock=world.wall,
            elapsed=world.monotonic,
            drivers=StoreDrivers(make_writer=self._make_writer, make_shrinker=NoShrinker),
        )
        # No log is copied into the database, see disk.py.
        self.writer._connection.execute("PRAGMA wal_autocheckpoint=0")
        self.writer.wake = self._wake_disk
        self._disk_is_awake = False
        self.wake_up = WakeUp()
        directory = ServiceDirectory(
            [
                Service(name=name, version="local", host="localhost", port=1, concurrency=number)
                for name, number in _SERVICES.items()
            ]
        )
        self._directory = directory
        # When the scheduler looks again, and what for.
        self._round = 0
        self._round_is_running = False
        self._waits_longest = False
        self._offset_at_round = world.wall_offset

    def _make_writer(self, *parts: Any, **more: Any) -> SimulatedWriter:
        self.writer = SimulatedWriter(*parts, path=self.path, wait=self.world.wait_for, **more)
        return self.writer

    def start(self) -> None:
        """Recover, and begin to run tasks."""
        world = self.world
        try:
            self.store.operations.paused()
            self.store.transactional.recover(world.model.committed)
            world.model.check_recovered(self.store, _IN_MODEL.values())
            self.core = DispatchCore(
                self.store,
                self._directory,
                self.wake_up,
                queues=world.queues,
                clock=world.wall,
                monotonic=world.monotonic,
            )
        except Killed:
            return
        except (ServerError, sqlite3.Error) as error:
            world.tell(f"the server ends: {error}")
            world.after(
                0.0,
                functools.partial(world._kill, Stimulus(at=0, kind="kill", number=-1, facts={"down": 1.0})),
                kind="accident",
            )
            return
        shift_etas = self.core.clock._on_jump

        def on_jump(*jump: int) -> object:
            world.only_disk = True
            try:
                return shift_etas(*jump)
            finally:
                world.only_disk = False

        self.core.clock._on_jump = on_jump
        self.runner = AttemptRunner(
            store=self.store,
            rules=self.core.rules,
            results=self.core.results,
            reports=Reports(world),
            quarantine=self.core.quarantine,
            limits=self.core.limits,
            clock=self.core.clock,
            wake_up=self.wake_up,
        )
        self.workers = {service: Worker(self, service, slots) for service, slots in self.core.slots.items()}
        self.apps = {service.id: AppProcess(self, worker) for service, worker in self.workers.items()}
        self.core.connect(self.workers, self._fail)
        self._plan_round(0.0)

    def drop(self) -> None:
        """Let go of everything, as a process that is killed. The files were copied before."""
        world = self.world
        world.queues._listeners.clear()
        database = self.store._database
        for reader in (database.reader, database.lanes_reader):
            reader.close()
        self.writer.close()
        database._stamps.close()
        database._claim_record.close()
        database._lock.release()

    def after(self, seconds: float, what: Callable[[], object], *, kind: str = "event") -> None:
        """Have something happen, unless this server is gone by then."""

        def happen() -> None:
            if self.world.server is self:
                with contextlib.suppress(Killed):
                    what()

        self.world.after(seconds, happen, kind=kind)

    def check(self) -> None:
        """Check after an event that the scheduler is awake if it has been woken."""
        if hasattr(self, "workers") and self.wake_up._is_set and not self._round_is_running:
            self.wake_up._is_set = False
            self._waits_longest = False
            self._plan_round(self.world.chance.choice([0.0, 0.0003]))

    def check_store(self) -> None:
        """Check the stored tasks, unless the server is gone."""
        if self.world.server is self:
            self.world.model.check_store(self.store)

    def process_ends(self, service: str, *, intended: bool) -> None:
        """End an app process."""
        if hasattr(self, "apps"):
            self.apps[service].die(intended=intended)

    def repeat_result(self, attempt: Attempt, result: AttemptResult) -> None:
        """Hand in the result of an attempt that is over once more."""
        usec = self.core.clock.now_usec()
        service = self.core.destinations.service_of(attempt.task)
        completion = self.core.rules.after_attempt(attempt.task, service, result, started_usec=usec, finished_usec=usec)
        self.core.results.submit(completion)

    def _fail(self, task: ClaimedTask, error: Any) -> None:
        raise Violation(f"task {key_of(task.url)} can't be sent: {error}")

    # The scheduler's thread.

    def _plan_round(self, seconds: float) -> None:
        self._round += 1
        self.after(seconds, functools.partial(self._run_round, self._round))

    def _run_round(self, number: int) -> None:
        if number != self._round or self._round_is_running:
            return
        begun_by_patience = self._waits_longest
        offset = self._offset_at_round
        claimed = self.store._database.claims.numbers().total()
        changes = self.store._database.claims.changes
        self._round_is_running = True
        try:
            wait_seconds = self.core.run_round()
        except sqlite3.Error as error:
            self.world.tell(f"the scheduler fails: {error}")
            wait_seconds = 0.1
        finally:
            self._round_is_running = False
        if self.world.server is not self:
            return
        self.world.model.changing.clear()
        self.world.noticed_offset = self.core.clock._offset
        if begun_by_patience and offset == self.world.wall_offset and self.store._database.claims.changes != changes:
            raise Violation(
                f"the scheduler was not woken: it found tasks to run only after its longest wait ({claimed})"
            )
        self._waits_longest = wait_seconds >= MAX_WAIT_SECONDS
        # A change of the clock that is not handled yet may make tasks due.
        self._offset_at_round = self.core.clock._offset
        self._plan_round(wait_seconds)

    # The store's writer.

    def _wake_disk(self, seconds: float) -> None:
        if not self._disk_is_awake:
            self._disk_is_awake = True
            self.after(seconds, self._write, kind="disk")

    def _write(self) -> None:
        world = self.world
        mode = world.disk_mode
        error = None
        if mode == "broken" and world.chance.random() < 0.5:
            error = sqlite3.OperationalError("disk I/O error")
        elif mode == "full" and self.writer._reserve._is_allocated:
            error = sqlite3.OperationalError("database or disk is full")
        stamp = self.writer._stamps._last_usec
        step = self.writer.proceed(error)
        if world.server is not self:
            return
        # Only commits that change something are synced, and have a stamp.
        is_synced = self.writer._stamps._last_usec != stamp
        world.model.commit_began = world.now if step == "ran" and is_synced else math.inf
        if step == "committed":
            world.model.check_store(self.store)
        self._disk_is_awake = False
        if step is not None or not self.writer.is_idle:
            seconds = 0.0002 if step != "ran" else world.chance.choice([0.0005, 0.002])
            if step == "ran" and mode == "slow":
                seconds = world.chance.choice([0.05, 0.5])
            self._wake_disk(seconds)
