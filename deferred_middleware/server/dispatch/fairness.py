"""How the queues share the slots of a service.

A service runs a limited number of tasks at a time: that many slots it has. A slow queue must not occupy all of them
while tasks of another queue wait. Two rules prevent that:

* a free slot goes to the queue that occupies the fewest;
* some free slots are reserved for queues that occupy none, because their tasks may come at any moment.

While tasks are short, an app process gets more of them than there are slots, so that it always finds the next one. Such
tasks are delivered *ahead*. One that ends leaves its slot to one of its queue that was delivered ahead.

If the server is killed, what has begun and has no stored result runs again. So what was delivered beyond the slots and
the results that wait to be stored are limited together. If the disk is slow, the tasks wait for it.

A queue that is alone gets all slots. As long as there are at least twice as many slots as queues, a queue that occupies
no slot always finds one. With fewer slots a queue may still occupy half of them, however many other queues there are.

Nothing here has a thread, a socket or a clock: the callers say when tasks are assigned and how long attempts took.
"""

from __future__ import annotations

import collections
import math
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deferred_middleware.server.delivery.channel import AheadBudget, ToDeliver
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.store.records import ClaimedTask

# While the tasks of a queue take less time than this, the queue is assigned more tasks than can run at once: its slots
# would be empty while the next tasks are claimed. Slow tasks stay in the store instead, where people see them wait.
_FAST_SECONDS = 0.05
_LEAST_FACTOR = 4
_MOST_FACTOR = 32
_NEWEST_WEIGHT = 0.2


@dataclass
class _QueueShare:
    """What one queue has of a service's slots, and its claimed tasks that wait for a slot."""

    running: int = 0
    # How many tasks were delivered without a slot of their own.
    ahead: int = 0
    claimed: collections.deque[ClaimedTask] = field(default_factory=collections.deque)
    mean_seconds: float = _FAST_SECONDS * 2
    last_turn: int = 0
    # The queue is assigned more tasks as soon as no more than this many are left.
    refill_below: float = math.inf

    @property
    def is_slow(self) -> bool:
        return self.mean_seconds >= _FAST_SECONDS

    @property
    def factor(self) -> int:
        """How many times as many tasks as can run at once the queue is assigned.

        The shorter the tasks, the larger the factor, because one large claim costs less than several small ones.
        """
        if self.is_slow:
            return 1
        return max(_LEAST_FACTOR, min(_MOST_FACTOR, int(_FAST_SECONDS / max(self.mean_seconds, 1e-6))))

    @property
    def assigned(self) -> int:
        return self.running + self.ahead + len(self.claimed)


class ServiceSlots:
    """The ``concurrency`` slots of one service, the tasks that occupy them, and the claimed tasks that wait for them.

    Tasks that ``quarantine`` suspects are run one at a time: when an app process dies, the tasks that were running in
    it are tried again separately, so that it turns out which of them ended the process. ``results_room`` returns how
    many more results of the service may wait to be stored. Any thread may call any method.
    """

    def __init__(self, concurrency: int, quarantine: Quarantine, results_room: Callable[[], float]) -> None:
        self._concurrency = concurrency
        self._quarantine = quarantine
        self._results_room = results_room
        # Guards everything below.
        self._lock = threading.Lock()
        self._shares: dict[str, _QueueShare] = {}
        self._expected: frozenset[str] = frozenset()
        self._forced: collections.deque[ClaimedTask] = collections.deque()
        self._suspects: collections.deque[ClaimedTask] = collections.deque()
        self._delivered: dict[int, ClaimedTask] = {}
        # How many slots are occupied.
        self._occupied = 0
        self._running_suspects: set[int] = set()
        self._turn = 0
        self._more_is_due = False
        self._suspended = False
        self._is_down = False
        self._closed = False
        # Whether a task had to wait because too many results are not stored.
        self._held_back = False

    @property
    def occupied(self) -> int:
        """How many slots are occupied: that many tasks may run at a time."""
        return self._occupied

    def expect(self, queues: Iterable[str]) -> None:
        """Reserve slots for these queues, whose tasks may come to this service."""
        with self._lock:
            self._expected = frozenset(queues)

    def claimable(self, queue: str, due: Collection[str], planned: Mapping[str, int], *, ahead: bool) -> int:
        """Return how many more tasks of ``queue`` to claim for this service.

        ``due`` are the queues that have due tasks for this service. ``planned`` is how many tasks of the other queues
        are going to be claimed. With ``ahead`` true, fast tasks are claimed before there are slots for them.
        """
        with self._lock:
            if self._suspended or self._is_down:
                return 0
            own = self._shares.get(queue) or _QueueShare()
            served = {name for name, share in self._shares.items() if share.assigned} | planned.keys() | {queue}
            busy = served | set(due)
            # Queues that are due and get nothing yet need their slots even more than those that are only expected.
            idle = len((self._expected | busy) - served)
            slots = self._concurrency - min(idle, self._concurrency // 2)
            others = [(name, share) for name, share in self._shares.items() if name != queue]
            others_slow = sum(share.assigned + planned.get(name, 0) for name, share in others if share.is_slow)
            others_slow += sum(number for name, number in planned.items() if name not in self._shares)
            fair = math.ceil(self._concurrency / len(busy))
            left = slots - sum(share.running for _name, share in others)
            number = min(max(fair, left), slots - others_slow)
            if not own.assigned and others_slow < self._concurrency:
                number = max(1, number)
            # If the others leave it no slot, it is to ask for tasks when it has none left.
            number = max(0, number)
            own.refill_below = number
            if ahead and not own.is_slow:
                number *= own.factor
                # Half of them at a time: each claim interrupts the gathering of results that are written together.
                own.refill_below = number // 2
            return max(0, number - own.assigned) if own.assigned <= own.refill_below else 0

    def assign(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> bool:
        """Take over claimed tasks; return whether a slot is free.

        Tasks that are ``forced`` go first, and wait for nothing but a slot.
        """
        with self._lock:
            for task in tasks:
                if self._quarantine.is_suspect(task):
                    self._suspects.append(task)
                elif forced:
                    self._forced.append(task)
                else:
                    self._share(task.queue).claimed.append(task)
            return self._occupied < self._concurrency

    def suspend(self, suspended: bool) -> None:
        """While ``suspended`` is true, begin no attempt; attempts in flight continue."""
        with self._lock:
            self._suspended = suspended

    def set_down(self, is_down: bool) -> None:
        """While ``is_down`` is true, no app process serves, so begin no attempt."""
        with self._lock:
            self._is_down = is_down

    def more_is_due(self, more: bool) -> None:
        """Note whether the store has more due tasks for this service, so that :meth:`end` asks for them."""
        with self._lock:
            self._more_is_due = more

    def begin(self, budget: AheadBudget | None = None) -> list[ToDeliver] | None:
        """Return the tasks that are delivered now; None when the slots are closed and all attempts have ended.

        As far as the ``budget`` allows, tasks are delivered ahead.
        """
        tasks: list[ToDeliver] = []
        with self._lock:
            room = self._concurrency - len(self._delivered) + self._results_room()
            while not self._closed and self._occupied < self._concurrency and len(tasks) < room:
                line = self._next_line()
                if line is None:
                    break
                task = line.popleft()
                if line is self._suspects:
                    self._running_suspects.add(task.id)
                share = self._share(task.queue)
                share.running += 1
                self._occupied += 1
                tasks.append(self._deliver(task, share))
            if budget is not None and not (self._closed or self._suspended or self._is_down):
                self._go_ahead(budget, tasks, room)
            self._held_back = len(tasks) >= room
            return None if self._closed and not self._delivered else tasks

    def end(self, task: ClaimedTask, seconds: float) -> bool:
        """Free the slot of a task whose attempt took so many seconds; return whether to claim more tasks.

        A second call for the same attempt changes nothing.
        """
        with self._lock:
            if not self._take_out(task):
                return False
            share = self._share(task.queue)
            share.mean_seconds += _NEWEST_WEIGHT * (seconds - share.mean_seconds)
            return self._more_is_due and (share.is_slow or share.assigned <= share.refill_below)

    def is_held_back(self) -> bool:
        """Return whether tasks wait until results are stored."""
        with self._lock:
            return self._held_back

    def give_back(self, tasks: Sequence[ClaimedTask]) -> list[ClaimedTask]:
        """Take back delivered tasks that have not begun; return those that may not begin here any more."""
        with self._lock:
            found = [task for task in tasks if self._take_out(task)]
            if self._closed:
                return found
            for task in reversed(found):
                if self._quarantine.is_suspect(task):
                    self._suspects.appendleft(task)
                else:
                    self._share(task.queue).claimed.appendleft(task)
            return []

    def running(self) -> list[ClaimedTask]:
        """Return the tasks whose attempts are in flight."""
        with self._lock:
            return list(self._delivered.values())

    def waiting(self) -> list[int]:
        """Return the IDs of the tasks that are claimed and wait for a slot."""
        with self._lock:
            lines = [self._forced, self._suspects, *(share.claimed for share in self._shares.values())]
            return [task.id for line in lines for task in line]

    def withdraw(self, queues: Collection[str]) -> list[ClaimedTask]:
        """Take out the tasks of these queues that are claimed and not begun, except forced ones; return them."""
        with self._lock:
            return self._withdraw(queues)

    def close(self) -> list[ClaimedTask]:
        """Begin no attempt any more; take out the tasks that are claimed and not begun, and return them."""
        with self._lock:
            self._closed = True
            withdrawn = [*self._withdraw(None), *self._forced]
            self._forced.clear()
            return withdrawn

    def _withdraw(self, queues: Collection[str] | None) -> list[ClaimedTask]:
        withdrawn: list[ClaimedTask] = []
        for name, share in self._shares.items():
            if queues is None or name in queues:
                withdrawn += share.claimed
                share.claimed.clear()
        kept = [task for task in self._suspects if queues is not None and task.queue not in queues]
        withdrawn += [task for task in self._suspects if task not in kept]
        self._suspects = collections.deque(kept)
        return withdrawn

    def _deliver(self, task: ClaimedTask, share: _QueueShare, *, is_ahead: bool = False) -> ToDeliver:
        self._delivered[task.id] = task
        self._turn += 1
        share.last_turn = self._turn
        return ToDeliver(task, is_ahead, share.mean_seconds)

    def _go_ahead(self, budget: AheadBudget, tasks: list[ToDeliver], room: float) -> None:
        """Deliver tasks of queues that occupy a slot, or would if one were free, until there are ``room`` of them."""
        waiting = [share for share in self._shares.values() if share.claimed]
        while waiting and len(tasks) < room:
            share = (
                min(waiting, key=lambda one: (one.running + one.ahead, one.last_turn)) if waiting[1:] else waiting[0]
            )
            if not budget.take(share.claimed[0], share.mean_seconds):
                return
            share.ahead += 1
            tasks.append(self._deliver(share.claimed.popleft(), share, is_ahead=True))
            if not share.claimed:
                waiting.remove(share)

    def _take_out(self, task: ClaimedTask) -> bool:
        """Take a task out of those that are delivered; return whether it was one of them."""
        if self._delivered.pop(task.id, None) is None:
            return False
        self._running_suspects.discard(task.id)
        share = self._share(task.queue)
        # A task that was delivered ahead takes over its slot, as far as the queue may keep the slot.
        if share.ahead and (share.running == 1 or self._occupied <= self._concurrency - self._reserved(task.queue)):
            share.ahead -= 1
        elif share.running:
            share.running -= 1
            self._occupied -= 1
        else:
            share.ahead -= 1
        return True

    def _share(self, queue: str) -> _QueueShare:
        share = self._shares.get(queue)
        if share is None:
            share = self._shares[queue] = _QueueShare()
        return share

    def _next_line(self) -> collections.deque[ClaimedTask] | None:
        """Return the line whose first task begins next; None if no task may begin."""
        if self._suspended or self._is_down:
            return None
        if self._forced:
            return self._forced
        if self._suspects and not self._running_suspects:
            return self._suspects
        waiting = [(name, share) for name, share in self._shares.items() if share.claimed]
        if len(waiting) > 1:
            waiting.sort(key=lambda item: (item[1].running + item[1].ahead, item[1].last_turn))
        return next((share.claimed for name, share in waiting if self._may_begin(name, share)), None)

    def _may_begin(self, queue: str, share: _QueueShare) -> bool:
        if share.running == 0:
            return True
        return self._concurrency - self._occupied - 1 >= self._reserved(queue)

    def _reserved(self, queue: str) -> int:
        """Return how many slots are reserved for other queues than this one."""
        shares = self._shares
        idle = sum(1 for name in self._expected if name != queue and (name not in shares or not shares[name].running))
        return min(idle, self._concurrency // 2)
