"""The figures of a queue that the taskqueue API and people ask for; no task is counted for them."""

from __future__ import annotations

from dataclasses import dataclass

from deferred_middleware.server.store.records import Lane
from deferred_middleware.server.store.storecore import StoreCore

# Two statements, because SQLite reads all that has the same queue for "(queue, target) > (?, ?)".
NEXT_TARGET = """
    SELECT queue, target, eta_usec FROM tasks
    WHERE state = 'ready' AND method <> 'PULL' AND queue = ? AND target > ? ORDER BY target, eta_usec LIMIT 1"""
NEXT_QUEUE = """
    SELECT queue, target, eta_usec FROM tasks
    WHERE state = 'ready' AND method <> 'PULL' AND queue > ? ORDER BY queue, target, eta_usec LIMIT 1"""
OLDEST_RUNNING = "SELECT min(eta_usec) FROM tasks WHERE queue = ? AND state = 'running'"
OLDEST_LEASABLE = """
    SELECT eta_usec FROM tasks WHERE state = 'ready' AND method = 'PULL' AND queue = ? ORDER BY eta_usec, id LIMIT 1"""


@dataclass(frozen=True, kw_only=True)
class QueueFigures:
    """How a queue stands.

    ``tasks`` are those that are not finished. ``oldest_eta_usec`` is the earliest ETA among them, None when there are
    none. What was executed, run or leased, is known since the server was started.
    """

    tasks: int
    oldest_eta_usec: int | None
    in_flight: int
    executed_last_minute: int
    executed_last_hour: int


class StoreFigures(StoreCore):
    """What the store knows of its queues at a glance."""

    def lanes(self) -> list[tuple[Lane, int]]:
        """Return each lane that has tasks waiting, with the earliest ETA among them."""
        lanes: list[tuple[Lane, int]] = []
        # Jumps from lane to lane in the index: the cost grows with the lanes, not with the tasks in them. The name of a
        # queue is never empty, so "" comes before all of them.
        found = self._lanes_reader.read(NEXT_QUEUE, ("",))
        while found:
            queue, target, eta_usec = found[0]
            lanes.append((Lane(queue, target), eta_usec))
            found = self._lanes_reader.read(NEXT_TARGET, (queue, target)) or self._lanes_reader.read(
                NEXT_QUEUE, (queue,)
            )
        return lanes

    def next_eta_usec(self) -> int | None:
        """Return the earliest ETA of the tasks that wait, None when none does."""
        return min((eta_usec for _lane, eta_usec in self.lanes()), default=None)

    def figures(self, queue: str) -> QueueFigures:
        """Return how a queue stands, be it known or not."""
        etas = [eta_usec for lane, eta_usec in self.lanes() if lane.queue == queue]
        etas += [row[0] for row in self._read(OLDEST_LEASABLE, (queue,))]
        etas += [row[0] for row in self._read(OLDEST_RUNNING, (queue,)) if row[0] is not None]
        minute, hour = self._counts.executed(queue)
        return QueueFigures(
            tasks=self._counts.of(queue, "ready", "running"),
            oldest_eta_usec=min(etas, default=None),
            in_flight=self._counts.of(queue, "running"),
            executed_last_minute=minute,
            executed_last_hour=hour,
        )
