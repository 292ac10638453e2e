"""The threads that make a service's attempts, and how the queues share them.

A service takes so many tasks at a time, and each of its threads makes one attempt after the other. A slow queue must
not have all of them while another's tasks wait. So a thread that is free takes the next task of the queue that has the
fewest threads; and of the free threads some are kept for the queues that have none, because their tasks may come at any
moment. A queue that is alone has all threads.

Each queue that has no thread is sure to find one as long as there are twice as many threads as queues. With fewer
threads a queue may still have half of them, however many others there are.
"""

from __future__ import annotations

import collections
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from deferred_middleware.server.records import ClaimedTask
from deferred_middleware.server.services import Service

_log = logging.getLogger(__name__)

# While its tasks take no longer than this a queue is given more than it can run at once, because its threads would
# stand idle while the next ones are claimed. Slow tasks wait in the store instead, where everybody can see them.
_FAST_SECONDS = 0.05
_LEAST_FACTOR = 4
_MOST_FACTOR = 16
_NEWEST_WEIGHT = 0.2


@dataclass
class _Share:
    """What one queue has of a service's threads, and what waits for them."""

    running: int = 0
    unbegun: collections.deque[ClaimedTask] = field(default_factory=collections.deque)
    mean_seconds: float = _FAST_SECONDS * 2
    last_turn: int = 0

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


class ServiceWorkers:
    """As many threads as ``service`` takes tasks at a time; each calls ``run_task`` with one after the other.

    ``wake_scheduler`` is called when there is room for more and the scheduler has said that it has more. A task for
    which ``is_alone`` is true is run while no other such task is: after the death of an app process the tasks that
    were running in it are tried one at a time, so that it turns out which of them it was.
    """

    def __init__(
        self,
        service: Service,
        run_task: Callable[[ClaimedTask, Service], None],
        wake_scheduler: Callable[[], None],
        *,
        is_alone: Callable[[ClaimedTask], bool] = lambda task: False,
    ) -> None:
        self._service = service
        self._run_task = run_task
        self._wake_scheduler = wake_scheduler
        self._is_alone = is_alone
        self._condition = threading.Condition()
        self._shares: dict[str, _Share] = {}
        self._expected: frozenset[str] = frozenset()
        self._forced: collections.deque[ClaimedTask] = collections.deque()
        self._alone: collections.deque[ClaimedTask] = collections.deque()
        self._running: dict[int, ClaimedTask] = {}
        self._running_alone: set[int] = set()
        self._idle_threads = 0
        self._turn = 0
        self._hungry = False
        self._held = False
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"deliver-{service.id}-{number}", daemon=True)
            for number in range(service.concurrency)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def expect(self, queues: Iterable[str]) -> None:
        """Keep threads for these queues, the tasks of which may come here."""
        with self._condition:
            self._expected = frozenset(queues)

    def room(self, queue: str, due: Collection[str], planned: Mapping[str, int], *, ahead: bool) -> int:
        """Return how many more tasks of ``queue`` to claim.

        ``due`` are the queues that have tasks for this service now, ``planned`` is what is going to be claimed of the
        others; ``ahead`` allows to claim more than can begin at once, if the tasks are fast.
        """
        with self._condition:
            if self._held:
                return 0
            mine = self._shares.get(queue) or _Share()
            busy = {name for name, share in self._shares.items() if share.in_hand} | set(due) | {queue}
            threads = self._service.concurrency - min(len(self._expected - busy), self._service.concurrency // 2)
            others = [(name, share) for name, share in self._shares.items() if name != queue]
            others_slow = sum(share.in_hand + planned.get(name, 0) for name, share in others if share.slow)
            others_slow += sum(number for name, number in planned.items() if name not in self._shares)
            fair = math.ceil(self._service.concurrency / len(busy))
            left = threads - sum(share.running for _name, share in others)
            number = min(max(fair, left), threads - others_slow)
            if not mine.in_hand and others_slow < self._service.concurrency:
                number = max(1, number)
            if ahead:
                number *= mine.factor
            return max(0, number - mine.in_hand)

    def put(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        """Take tasks in hand; those that are ``forced`` go first, and wait for nothing but a thread."""
        number = 0
        with self._condition:
            for task in tasks:
                if self._is_alone(task):
                    self._alone.append(task)
                elif forced:
                    self._forced.append(task)
                else:
                    self._share(task.queue).unbegun.append(task)
                number += 1
            self._condition.notify(number)

    def hold(self, held: bool) -> None:
        """Begin no attempt as long as the service is ``held``; those that are under way go on."""
        with self._condition:
            self._held = held
            self._condition.notify_all()

    def hunger(self, hungry: bool) -> None:
        """Say whether there are more tasks for this service, so that room for them is worth a wake-up."""
        with self._condition:
            self._hungry = hungry

    def free(self) -> int:
        """Return how many threads have nothing to do."""
        with self._condition:
            return self._service.concurrency - len(self._running)

    def running(self) -> list[ClaimedTask]:
        """Return the tasks whose attempt is under way."""
        with self._condition:
            return list(self._running.values())

    def withdraw(self, queues: Collection[str] | None = None) -> list[ClaimedTask]:
        """Take back the tasks that were not begun, of some queues or of all; return them. Forced ones stay."""
        with self._condition:
            return self._withdraw(queues)

    def stop(self) -> list[ClaimedTask]:
        """Let the threads end after their attempts; return the tasks that were not begun."""
        with self._condition:
            unbegun = [*self._withdraw(None), *self._forced]
            self._forced.clear()
            self._stopping = True
            self._condition.notify_all()
        return unbegun

    def join(self, until: float) -> None:
        """Wait for the threads to end, at most until ``until`` on the monotonic clock."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

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

    def _work(self) -> None:
        while (task := self._begin_next()) is not None:
            began = time.monotonic()
            try:
                self._run_task(task, self._service)
            except Exception:  # noqa: BLE001 - the thread has to stay for the other tasks
                _log.exception("Task %s of queue %s could not be run.", task.name, task.queue)
            if self._end(task, time.monotonic() - began):
                self._wake_scheduler()

    def _begin_next(self) -> ClaimedTask | None:
        with self._condition:
            while not self._stopping:
                line = self._next_line()
                if line is not None:
                    task = line.popleft()
                    self._running[task.id] = task
                    if line is self._alone:
                        self._running_alone.add(task.id)
                    share = self._share(task.queue)
                    share.running += 1
                    self._turn += 1
                    share.last_turn = self._turn
                    if self._idle_threads and self._next_line() is not None:
                        self._condition.notify()
                    return task
                self._idle_threads += 1
                self._condition.wait()
                self._idle_threads -= 1
            return None

    def _end(self, task: ClaimedTask, seconds: float) -> bool:
        """Take note that an attempt ended; return whether the scheduler is to be woken."""
        with self._condition:
            del self._running[task.id]
            self._running_alone.discard(task.id)
            share = self._share(task.queue)
            share.running -= 1
            share.mean_seconds += _NEWEST_WEIGHT * (seconds - share.mean_seconds)
            # Not for each task that is fast: claims are cheaper together.
            few = self._service.concurrency * max(2, share.factor // 3)
            return self._hungry and (share.slow or share.in_hand <= few)
