"""Adds whose attempts take place in a time of the test's own."""

from __future__ import annotations

from typing import Any

from deferred_middleware import call
from deferred_middleware.enqueue import add as adding
from deferred_middleware.enqueue import prepare
from deferred_middleware.enqueue.add import Timing
from tests.support import sample


class Clock:
    """Time that passes when somebody sleeps, and at no other time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.now += seconds
        self.slept.append(seconds)


def add(clock: Clock, *args: Any, **options: Any) -> Any:
    """Enqueue a call as defer does, in the clock's time."""
    timing = Timing(clock=lambda: clock.now, sleep=clock.sleep, chance=lambda: 0.0)
    prepared = prepare.prepare(call(sample.note, *args, **options))
    adding.add(prepared, timing)
    return prepared.task
