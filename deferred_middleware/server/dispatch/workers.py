"""The attempts of a service that are under way at a time, and how the queues share them.

A service takes so many tasks at a time. One thread makes all these attempts: each of them is little but waiting for a
response, and threads that wait for each other's locks would take longer than the attempts of short tasks.

A slow queue must not have all places while another's tasks wait. So a place that is free goes to the next task of the
queue that has the fewest; and of the free places some are kept for the queues that have none, because their tasks may
come at any moment. A queue that is alone has all of them.

Each queue that has no place is sure to find one as long as there are twice as many places as queues. With fewer a queue
may still have half of them, however many others there are.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.connections import milliseconds_until
from deferred_middleware.server.store.records import ClaimedTask

_log = logging.getLogger(__name__)

# While its tasks take no longer than this a queue is given more than it can run at once, because its places would
# stay empty while the next ones are claimed. Slow tasks wait in the store instead, where everybody can see them.
_FAST_SECONDS = 0.05
_LEAST_FACTOR = 4
_MOST_FACTOR = 32
_NEWEST_WEIGHT = 0.2


@dataclass
class _Share:
    """What one queue has of a service's places, and what waits for them."""

    running: int = 0
    unbegun: collections.deque[ClaimedTask] = field(default_factory=collections.deque)
    mean_seconds: float = _FAST_SECONDS * 2
    last_turn: int = 0
    # With how many in hand it is given more.
    few: float = math.inf

    @property
    def slow(self) -> bool:
        return self.mean_seconds >= _FAST_SECONDS

    @property
    def factor(self) -> int:
        """How many times as many tasks as it can run at once it is given.

        The shorter they are the more, because claims are cheaper together.
        """
        if self.slow:
            return 1
        return max(_LEAST_FACTOR, min(_MOST_FACTOR, int(_FAST_SECONDS / max(self.mean_seconds, 1e-6))))

    @property
    def in_hand(self) -> int:
        return self.running + len(self.unbegun)


class UnderWay(Protocol):
    """An attempt that is being made, such as :class:`~deferred_middleware.server.dispatch.attempts.Attempt`.

    Only a defect lets :meth:`proceed` raise. The attempt's place is free then, and its task is run at the next start.
    """

    @property
    def awaited(self) -> int:
        """What its descriptor waits for, as :mod:`select` has it."""

    @property
    def deadline(self) -> float:
        """When it is to go on in any case, by the monotonic clock."""

    def fileno(self) -> int:
        """Return the descriptor that it waits for."""

    def proceed(self) -> bool:
        """Go on; return whether nothing is left to be waited for."""


class ServiceWorkers:
    """Make as many attempts at a time as ``service`` takes.

    ``begin`` returns the attempt of a task; it gets a function that is to be called, by any thread, at the attempt's
    end. ``wake_scheduler`` is called when there is room for more and the scheduler has said that it has more. A task
    for which ``is_alone`` is true is run while no other such task is: after the death of an app process the tasks that
    were running in it are tried one at a time, so that it turns out which of them it was.
    """

    def __init__(
        self,
        service: Service,
        begin: Callable[[ClaimedTask, Service, Callable[[], None]], UnderWay],
        wake_scheduler: Callable[[], None],
        *,
        is_alone: Callable[[ClaimedTask], bool] = lambda task: False,
    ) -> None:
        self._service = service
        self._begin = begin
        self._wake_scheduler = wake_scheduler
        self._is_alone = is_alone
        self._lock = threading.Lock()
        self._shares: dict[str, _Share] = {}
        self._expected: frozenset[str] = frozenset()
        self._forced: collections.deque[ClaimedTask] = collections.deque()
        self._alone: collections.deque[ClaimedTask] = collections.deque()
        self._running: dict[int, ClaimedTask] = {}
        self._running_alone: set[int] = set()
        self._turn = 0
        self._hungry = False
        self._held = False
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name=f"deliver-{service.id}", daemon=True)
        # The thread's own: what it waits for, by descriptor, and when the first of them has to go on.
        self._watched: dict[int, tuple[UnderWay, Callable[[], None]]] = {}
        self._poll = select.poll()
        self._next_deadline = math.inf
        # How it is woken: while it is asleep, by a byte.
        self._asleep = False
        self._waker: socket.socket | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def expect(self, queues: Iterable[str]) -> None:
        """Keep places for these queues, the tasks of which may come here."""
        with self._lock:
            self._expected = frozenset(queues)

    def room(self, queue: str, due: Collection[str], planned: Mapping[str, int], *, ahead: bool) -> int:
        """Return how many more tasks of ``queue`` to claim.

        ``due`` are the queues that have tasks for this service now, ``planned`` is what is going to be claimed of the
        others; ``ahead`` allows to claim more than can begin at once, if the tasks are fast.
        """
        with self._lock:
            if self._held:
                return 0
            mine = self._shares.get(queue) or _Share()
            busy = {name for name, share in self._shares.items() if share.in_hand} | set(due) | {queue}
            places = self._service.concurrency - min(len(self._expected - busy), self._service.concurrency // 2)
            others = [(name, share) for name, share in self._shares.items() if name != queue]
            others_slow = sum(share.in_hand + planned.get(name, 0) for name, share in others if share.slow)
            others_slow += sum(number for name, number in planned.items() if name not in self._shares)
            fair = math.ceil(self._service.concurrency / len(busy))
            left = places - sum(share.running for _name, share in others)
            number = min(max(fair, left), places - others_slow)
            if not mine.in_hand and others_slow < self._service.concurrency:
                number = max(1, number)
            mine.few = number
            if ahead and not mine.slow:
                number *= mine.factor
                # Claims are cheaper together, and each keeps results from being written together with later ones.
                mine.few = number // 2
            return max(0, number - mine.in_hand) if mine.in_hand <= mine.few else 0

    def put(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        """Take tasks in hand; those that are ``forced`` go first, and wait for nothing but a place."""
        with self._lock:
            for task in tasks:
                if self._is_alone(task):
                    self._alone.append(task)
                elif forced:
                    self._forced.append(task)
                else:
                    self._share(task.queue).unbegun.append(task)
            if len(self._running) < self._service.concurrency:
                self._wake()

    def hold(self, held: bool) -> None:
        """Begin no attempt as long as the service is ``held``; those that are under way go on."""
        with self._lock:
            self._held = held
            self._wake()

    def hunger(self, hungry: bool) -> None:
        """Say whether there are more tasks for this service, so that room for them is worth a wake-up."""
        with self._lock:
            self._hungry = hungry

    def free(self) -> int:
        """Return how many places are free."""
        with self._lock:
            return self._service.concurrency - len(self._running)

    def running(self) -> list[ClaimedTask]:
        """Return the tasks whose attempt is under way."""
        with self._lock:
            return list(self._running.values())

    def withdraw(self, queues: Collection[str] | None = None) -> list[ClaimedTask]:
        """Take back the tasks that were not begun, of some queues or of all; return them. Forced ones stay."""
        with self._lock:
            return self._withdraw(queues)

    def stop(self) -> list[ClaimedTask]:
        """Let the thread end after its attempts; return the tasks that were not begun."""
        with self._lock:
            unbegun = [*self._withdraw(None), *self._forced]
            self._forced.clear()
            self._stopping = True
            self._wake()
        return unbegun

    def join(self, until: float) -> None:
        """Wait for the thread to end, at most until ``until`` on the monotonic clock."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until - time.monotonic()))

    def _withdraw(self, queues: Collection[str] | None) -> list[ClaimedTask]:
        withdrawn: list[ClaimedTask] = []
        for name, share in self._shares.items():
            if queues is None or name in queues:
                withdrawn += share.unbegun
                share.unbegun.clear()
        kept = [task for task in self._alone if queues is not None and task.queue not in queues]
        withdrawn += [task for task in self._alone if task not in kept]
        self._alone = collections.deque(kept)
        return withdrawn

    def _share(self, queue: str) -> _Share:
        share = self._shares.get(queue)
        if share is None:
            share = self._shares[queue] = _Share()
        return share

    def _next_line(self) -> collections.deque[ClaimedTask] | None:
        """Return the line the first task of which is to be begun now; None if there is none."""
        if self._held:
            return None
        if self._forced:
            return self._forced
        if self._alone and not self._running_alone:
            return self._alone
        waiting = [(name, share) for name, share in self._shares.items() if share.unbegun]
        if len(waiting) > 1:
            waiting.sort(key=lambda item: (item[1].running, item[1].last_turn))
        return next((share.unbegun for name, share in waiting if self._may_begin(name, share)), None)

    def _may_begin(self, queue: str, share: _Share) -> bool:
        if share.running == 0:
            return True
        shares = self._shares
        idle = sum(1 for name in self._expected if name != queue and (name not in shares or not shares[name].running))
        kept = min(idle, self._service.concurrency // 2)
        return self._service.concurrency - len(self._running) - 1 >= kept

    def _wake(self) -> None:
        """Have the thread look for what it may begin; to be called with the lock."""
        if self._asleep and self._waker is not None:
            self._asleep = False
            self._waker.send(b"w")

    def _work(self) -> None:
        woken, waker = socket.socketpair()
        with woken, waker:
            self._poll.register(woken, select.POLLIN)
            with self._lock:
                self._waker = waker
            while (tasks := self._begin_next()) is not None:
                for task in tasks:
                    self._start(task)
                ready = self._poll.poll(milliseconds_until(self._next_deadline))
                self._asleep = False
                for descriptor, _event in ready:
                    if descriptor in self._watched:
                        self._proceed(descriptor)
                    elif descriptor == woken.fileno():
                        woken.recv(4096)
                if time.monotonic() >= self._next_deadline:
                    self._proceed_with_late()
            with self._lock:
                self._waker = None

    def _begin_next(self) -> list[ClaimedTask] | None:
        """Return the tasks whose attempts are to begin now, None when everything has ended."""
        tasks: list[ClaimedTask] = []
        with self._lock:
            while not self._stopping and len(self._running) < self._service.concurrency:
                line = self._next_line()
                if line is None:
                    break
                task = line.popleft()
                self._running[task.id] = task
                if line is self._alone:
                    self._running_alone.add(task.id)
                share = self._share(task.queue)
                share.running += 1
                self._turn += 1
                share.last_turn = self._turn
                tasks.append(task)
            self._asleep = True
            return None if self._stopping and not self._running else tasks

    def _start(self, task: ClaimedTask) -> None:
        end = functools.partial(self._end, task, time.monotonic())
        try:
            attempt = self._begin(task, self._service, end)
            if not attempt.proceed():
                descriptor = attempt.fileno()
                self._poll.register(descriptor, attempt.awaited)
                self._watched[descriptor] = attempt, end
                self._next_deadline = min(self._next_deadline, attempt.deadline)
        except Exception:  # noqa: BLE001 - the thread has to stay for the other tasks
            _log.exception("Task %s of queue %s could not be run.", task.name, task.queue)
            end()

    def _proceed(self, descriptor: int) -> None:
        attempt, end = self._watched[descriptor]
        try:
            if not attempt.proceed():
                self._poll.modify(descriptor, attempt.awaited)
                return
        except Exception:  # noqa: BLE001 - the thread has to stay for the other tasks
            _log.exception("An attempt of service %s could not go on.", self._service.id)
            end()
        del self._watched[descriptor]
        self._poll.unregister(descriptor)

    def _proceed_with_late(self) -> None:
        """Let the attempts go on whose deadline has come, and find out when the next one's does."""
        for descriptor, (attempt, _end) in list(self._watched.items()):
            if time.monotonic() >= attempt.deadline:
                self._proceed(descriptor)
        self._next_deadline = min((attempt.deadline for attempt, _end in self._watched.values()), default=math.inf)

    def _end(self, task: ClaimedTask, began: float) -> None:
        """Take note that an attempt ended; wake the scheduler if there is room for what it has."""
        seconds = time.monotonic() - began
        with self._lock:
            if self._running.pop(task.id, None) is None:
                return  # a defect came after its end
            self._running_alone.discard(task.id)
            share = self._share(task.queue)
            share.running -= 1
            share.mean_seconds += _NEWEST_WEIGHT * (seconds - share.mean_seconds)
            wanted = self._hungry and (share.slow or share.in_hand <= share.few)
            self._wake()
        if wanted:
            self._wake_scheduler()
