"""Which tasks are claimed. This is known in memory only; in the database, a claimed task is ready like any other.

A claim ends when the task's result is committed, when the task is released or deleted, or with the server. Its token
fences the result: a result is written only while its claim holds.

Some tasks are claimed ahead: they begin when others have ended. People are shown those that have begun as running, and
the others as waiting.

Reads of the database may be a moment old. If a claim ends while others are being found, its task may still look ready
in what was read, although its result is stored by now. Therefore :meth:`Claims.claim` leaves out the tasks that were
claimed when the search began, and those whose claims ended since.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from deferred_middleware.server.store.records import ClaimedTask, Lane, StoredTask, TaskSummary
from deferred_middleware.server.store.upkeep.claim_record import ClaimRecord

Task = TypeVar("Task", TaskSummary, StoredTask)


class Claim(NamedTuple):
    """A claimed task, and what its result needs of its row besides.

    ``user_named`` tells whether the app chose its name. ``attempts_before`` is the number of attempts before a person
    retried it. ``slot`` is the claim's place in the record.
    """

    task: ClaimedTask
    user_named: bool
    attempts_before: int
    slot: int = -1


TakenIn = Callable[[Lane | None], Sequence[int]]
"""Returns the IDs of the claimed tasks of a lane, or with None of all lanes."""


class Claims:
    """The claimed tasks. Any thread may call any method. ``record`` tells the next server of them."""

    def __init__(self, record: ClaimRecord) -> None:
        self._record = record
        # Held by the thread that finds tasks to claim: one at a time.
        self._turn = threading.Lock()
        # Guards the rest.
        self._lock = threading.Lock()
        self._claims: dict[int, Claim] = {}
        # How often claims were made or have ended. Read without the lock.
        self.changes: int = 0
        # Returns the IDs of claimed tasks that have not begun; who runs the tasks sets it. Called without the lock.
        self.not_begun: Callable[[], Iterable[int]] = tuple
        # The IDs in the order of the claims.
        self._by_lane: dict[Lane, dict[int, None]] = {}
        # The claims that have ended since the current search began; None while there is no search.
        self._ended: set[int] | None = None

    def claim(self, find: Callable[[TakenIn], Iterable[Claim]]) -> list[ClaimedTask]:
        """Claim what ``find`` returns, which has to leave out the tasks that are taken already."""
        with self._turn:
            with self._lock:
                self._ended = set()
            try:
                found = find(self.taken_in)
            except BaseException:
                with self._lock:
                    self._ended = None
                raise
            with self._lock:
                ended, self._ended = self._ended, None
                claims = [claim for claim in found if claim.task.id not in ended]
                for claim in claims:
                    task = claim.task
                    slot = self._record.add(task.id, task.retry_count)
                    self._claims[task.id] = claim._replace(slot=slot)
                    self.changes += 1
                    self._by_lane.setdefault(Lane(task.queue, task.target), {})[task.id] = None
        return [claim.task for claim in claims]

    def end(self, task_ids: Iterable[int]) -> None:
        """End the claims of these tasks, as far as they are claimed."""
        with self._lock:
            for task_id in task_ids:
                self._end(task_id)

    def release(self, tasks: Iterable[ClaimedTask]) -> int:
        """End these claims; return how many of them held."""
        released = 0
        with self._lock:
            for task in tasks:
                if self._holds(task.id, task.claim_token):
                    self._end(task.id)
                    released += 1
        return released

    def get(self, task_id: int, token: int) -> Claim | None:
        """Return the claim with this token, or None if it no longer holds."""
        with self._lock:
            return self._claims[task_id] if self._holds(task_id, token) else None

    def is_claimed(self, task_id: int) -> bool:
        """Return whether a task is claimed."""
        with self._lock:
            return task_id in self._claims

    def running(self) -> set[int]:
        """Return the IDs of the claimed tasks, except those that are known not to have begun."""
        with self._lock:
            claimed = set(self._claims)
        return claimed.difference(self.not_begun()) if claimed else claimed

    def as_they_stand(self, tasks: Iterable[Task]) -> list[Task]:
        """Return the tasks, with the state ``running`` if they have begun."""
        running = self.running()
        return [
            dataclasses.replace(task, state="running") if task.state == "ready" and task.id in running else task
            for task in tasks
        ]

    def as_it_stands(self, task: Task) -> Task:
        """Return the task, with the state ``running`` if it has begun."""
        return self.as_they_stand([task])[0] if self.is_claimed(task.id) else task

    def running_by_lane(self) -> dict[Lane, list[int]]:
        """Return the IDs of the tasks that have begun, of each lane that has any."""
        running = self.running()
        found = ((lane, [one for one in ids if one in running]) for lane, ids in self.taken_by_lane().items())
        return {lane: ids for lane, ids in found if ids}

    def taken_in(self, lane: Lane | None) -> list[int]:
        """Return the IDs of the claimed tasks of a lane, or of all lanes; also of those that have just ended."""
        with self._lock:
            taken = list(self._claims if lane is None else self._by_lane.get(lane, ()))
            return taken + list(self._ended) if self._ended else taken

    def taken_by_lane(self) -> dict[Lane, list[int]]:
        """Return the IDs of the claimed tasks of each lane that has any."""
        with self._lock:
            return {lane: list(task_ids) for lane, task_ids in self._by_lane.items()}

    def numbers(self) -> Counter[str]:
        """Return how many tasks of each queue are claimed."""
        numbers: Counter[str] = Counter()
        with self._lock:
            for lane, task_ids in self._by_lane.items():
                numbers[lane.queue] += len(task_ids)
        return numbers

    def oldest_eta_usec(self, queue: str) -> int | None:
        """Return the earliest ETA of the claimed tasks of a queue, None if there are none."""
        with self._lock:
            return min(
                (claim.task.eta_usec for claim in self._claims.values() if claim.task.queue == queue), default=None
            )

    def _holds(self, task_id: int, token: int) -> bool:
        claim = self._claims.get(task_id)
        return claim is not None and claim.task.claim_token == token

    def _end(self, task_id: int) -> None:
        if self._ended is not None:
            self._ended.add(task_id)
        claim = self._claims.pop(task_id, None)
        if claim is None:
            return
        self.changes += 1
        self._record.remove(claim.slot)
        lane = Lane(claim.task.queue, claim.task.target)
        del self._by_lane[lane][task_id]
        if not self._by_lane[lane]:
            del self._by_lane[lane]
