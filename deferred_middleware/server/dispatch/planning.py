"""Which tasks to claim next, and for which service.

The tasks of one queue with one target form a lane. A round begins with the lanes that have tasks, and their earliest
ETAs. The :class:`ClaimPlanner` finds the lanes that are due and may run, and divides what a service can take among its
queues, and what a queue may claim among its lanes. It has neither a thread nor a clock, and reads nothing of the store.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory, UnknownServiceError
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.queue_limits import QueueLimits
from deferred_middleware.server.store.records import HTTP_TARGET, Lane, TaskSummary

logger: Final = logging.getLogger(__name__)


class Destinations:
    """Where tasks go: to their queue's target in ``queues``, or else their own, both resolved by ``directory``."""

    def __init__(self, queues: QueueRegistry, directory: ServiceDirectory) -> None:
        self._queues = queues
        self._directory = directory

    def service_of(self, task: Lane | TaskSummary) -> Service:
        """Return the service of a task or a lane. Raises :class:`UnknownServiceError` when it isn't served here."""
        return self._directory.by_target(self._target_of(task))

    def host_of(self, task: TaskSummary) -> str:
        """Return the ``Host`` header of a task."""
        return self._directory.host(self._target_of(task))

    def expected_queues(self) -> dict[Service, set[str]]:
        """Return for each service the queues that may have tasks for it."""
        expected: dict[Service, set[str]] = {service: set() for service in self._directory}
        for name, config in self._queues.items():
            if config.mode == "push" and not config.paused:
                try:
                    # A queue without a target may have tasks for any service.
                    services = [self._directory.by_target(config.target)] if config.target else list(self._directory)
                except UnknownServiceError as error:
                    logger.warning("The target of queue %s is not served here: %s", name, error)
                    continue
                for service in services:
                    expected[service].add(name)
        return expected

    def _target_of(self, task: Lane | TaskSummary) -> str:
        # The queue's target is for tasks of services.
        if task.target == HTTP_TARGET:
            return HTTP_TARGET
        return self._queues.config_of(task.queue).target or task.target


@dataclass(kw_only=True)
class Round:
    """What one round has found. ``allowed`` is how many attempts each queue may still begin."""

    wait_seconds: float = math.inf
    allowed: dict[str, int] = field(default_factory=dict)
    due: dict[Service, dict[str, list[Lane]]] = field(default_factory=dict)
    undeliverable: list[tuple[Lane, UnknownServiceError]] = field(default_factory=list)


class ClaimPlanner:
    """Plans the scheduler's claims. Only one thread at a time may use it."""

    def __init__(self, destinations: Destinations, limits: QueueLimits) -> None:
        self._destinations = destinations
        self._limits = limits
        # When each queue and each lane last had a turn; those that have waited longest go first.
        self._turns: dict[Lane | str, int] = {}
        self._turn = 0

    def survey(self, lanes: Iterable[tuple[Lane, int]], now_usec: int, paused: frozenset[str]) -> Round:
        """Find the lanes that are due and may run; ``paused`` are the queues that people have paused.

        ``lanes`` come with their earliest ETAs. The round's ``wait_seconds`` are the time until another lane may run.
        """
        found = Round()
        allowed = found.allowed
        for lane, eta_usec in lanes:
            if eta_usec > now_usec:
                found.wait_seconds = min(found.wait_seconds, (eta_usec - now_usec) / 1e6)
                continue
            if lane.queue not in allowed:
                allowance = self._limits.allowance(lane.queue, paused)
                allowed[lane.queue] = allowance.number
                found.wait_seconds = min(found.wait_seconds, allowance.wait_seconds)
            if not allowed[lane.queue]:
                continue
            try:
                service = self._destinations.service_of(lane)
            except UnknownServiceError as error:
                found.undeliverable.append((lane, error))
            else:
                found.due.setdefault(service, {}).setdefault(lane.queue, []).append(lane)
        return found

    def claims(
        self, due: dict[str, list[Lane]], slots: ServiceSlots, allowed: dict[str, int], *, ahead: bool = True
    ) -> dict[Lane, int]:
        """Return how many tasks to claim of the lanes of a service, which are ``due`` by queue.

        What is planned is subtracted from ``allowed``. With ``ahead`` false, no more are claimed than have slots.
        """
        planned: dict[str, int] = {}
        claims: dict[Lane, int] = {}
        for queue in sorted(due, key=self._last_turn):
            claimable = slots.claimable(queue, due, planned, ahead=ahead and not self._limits.is_slowed_down(queue))
            number = min(allowed[queue], claimable)
            if number:
                planned[queue] = number
                allowed[queue] -= number
                self._take_turn(queue)
                self._divide(due[queue], number, claims)
        return claims

    def _divide(self, lanes: list[Lane], number: int, claims: dict[Lane, int]) -> None:
        """Divide a queue's claim among its lanes, so that a long lane doesn't hold up the others."""
        lanes.sort(key=self._last_turn)
        for position, lane in enumerate(lanes):
            share = math.ceil(number / (len(lanes) - position))
            if share:
                claims[lane] = share
                number -= share
                self._take_turn(lane)

    def _last_turn(self, whose: Lane | str) -> int:
        return self._turns.get(whose, 0)

    def _take_turn(self, whose: Lane | str) -> None:
        self._turn += 1
        self._turns[whose] = self._turn
