"""Adds whose attempts take place in simulated time."""

from __future__ import annotations

from typing import Any

from deferred_middleware import call
from deferred_middleware.enqueue import add as adding
from deferred_middleware.enqueue import prepare
from deferred_middleware.enqueue.add import Timing
from tests.support import sample


class Clock:
    """A clock that advances only when something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds
        self.slept.append(seconds)


def add(clock: Clock, *args: Any, **options: Any) -> Any:
    """Enqueue a call as defer does, on the simulated clock."""
    timing = Timing(clock=lambda: clock.now, sleep=clock.sleep, chance=lambda: 0.0)
    prepared = prepare.prepare(call(sample.note, *args, **options))
    adding.add(prepared, timing)
    return prepared.task
