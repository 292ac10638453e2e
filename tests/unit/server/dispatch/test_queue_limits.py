"""How many attempts of a queue may begin, by its rate, its concurrency, its being paused, and 503s."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.dispatch.queue_limits import FIRST_PAUSE_SECONDS, UNLIMITED, Allowance, QueueGates


class Gates:
    """The gates of one queue ``q``, a clock, and what people have paused."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.paused: frozenset[str] = frozenset()
        self.queues = QueueRegistry()
        self.gates = QueueGates(self.queues, lambda: self.paused, clock=lambda: self.now)

    def configure(self, **fields: Any) -> None:
        """Configure the queue anew."""
        self.queues.replace([QueueConfig(name="q", **fields)])

    def allowance(self) -> Allowance:
        """Return what may begin now."""
        return self.gates.allowance("q")

    def end(self, status: int | None = 200) -> tuple[bool, bool]:
        """End an attempt that has just begun."""
        return self.gates.ended("q", status, self.now)


@pytest.fixture
def gates() -> Gates:
    """A queue without limits."""
    gates = Gates()
    gates.configure()
    return gates


def test_a_queue_without_limits(gates: Gates) -> None:
    """Any number may begin, however many are under way, and an end is worth no wake-up."""
    assert gates.allowance() == Allowance(UNLIMITED)
    gates.gates.claimed("q", 500)
    assert gates.allowance().number == UNLIMITED
    assert not gates.gates.is_rated("q")
    assert gates.end() == (False, False)


def test_concurrency(gates: Gates) -> None:
    """No more are under way than the queue allows; the end of one lets the next begin, and wakes who was refused."""
    gates.configure(max_concurrent_requests=3)
    assert gates.allowance().number == 3
    gates.gates.claimed("q", 3)
    assert gates.allowance() == Allowance(0)
    assert gates.end() == (True, False)
    assert gates.allowance().number == 1


def test_rate(gates: Gates) -> None:
    """As many as there are tokens may begin, and then it is known when the next one may."""
    gates.configure(rate_per_second=4.0, bucket_size=2)
    assert gates.gates.is_rated("q")
    assert gates.allowance() == Allowance(2)
    gates.gates.claimed("q", 2)
    waiting = gates.allowance()
    assert waiting.number == 0
    assert waiting.wait_seconds == pytest.approx(0.25)
    gates.now += 0.25
    assert gates.allowance().number == 1


def test_what_is_given_back_costs_nothing(gates: Gates) -> None:
    """A task that was claimed and not attempted returns its token and its place."""
    gates.configure(rate_per_second=1.0, bucket_size=2, max_concurrent_requests=2)
    gates.gates.claimed("q", 2)
    assert gates.allowance().number == 0
    gates.gates.given_back("q", 2)
    assert gates.allowance().number == 2


def test_what_a_person_forces_costs_no_token(gates: Gates) -> None:
    """It counts as under way, but the queue's rate is for the others."""
    gates.configure(rate_per_second=1.0, bucket_size=1, max_concurrent_requests=2)
    gates.gates.claimed("q", 1, forced=True)
    assert gates.allowance().number == 1
    gates.gates.claimed("q", 1)
    assert gates.allowance().number == 0


@pytest.mark.parametrize("how", ["by a person", "by its rate"])
def test_a_paused_queue(gates: Gates, how: str) -> None:
    """Nothing begins, and no time is told, because it takes somebody to resume it; then all is as before."""
    if how == "by a person":
        gates.paused = frozenset({"q"})
    else:
        gates.configure(rate_per_second=0.0)
    assert gates.allowance() == Allowance(0, math.inf)
    gates.paused = frozenset()
    gates.configure()
    assert gates.allowance().number == UNLIMITED


def test_another_queue_is_not_concerned(gates: Gates) -> None:
    """Each queue has gates of its own."""
    gates.configure(max_concurrent_requests=1)
    gates.gates.claimed("q", 1)
    gates.paused = frozenset({"q"})
    assert gates.gates.allowance("default").number == UNLIMITED


def test_503_slows_a_queue_and_successes_speed_it_up(gates: Gates) -> None:
    """Nothing begins for a while, then one attempt, and twice as many after each that is answered otherwise."""
    gates.gates.claimed("q", 1)
    assert gates.end(503) == (False, True)
    assert gates.allowance() == Allowance(0, FIRST_PAUSE_SECONDS)
    assert gates.gates.is_rated("q")
    gates.now += FIRST_PAUSE_SECONDS
    assert gates.allowance().number == 1
    gates.gates.claimed("q", 1)
    assert gates.allowance().number == 0
    assert gates.end(200) == (True, False)
    assert gates.allowance().number == 2


def test_the_stricter_limit_holds(gates: Gates) -> None:
    """A queue that was slowed down and has a concurrency obeys the smaller of the two."""
    gates.configure(max_concurrent_requests=3)
    gates.gates.claimed("q", 1)
    gates.end(503)
    for _ in range(5):
        gates.now += FIRST_PAUSE_SECONDS
        gates.gates.claimed("q", 1)
        gates.end(200)
    assert gates.allowance().number == 3


def test_a_new_configuration_holds_at_once(gates: Gates) -> None:
    """What is under way stays counted, and tokens that were saved up stay as far as there is room."""
    gates.configure(rate_per_second=1.0, bucket_size=10, max_concurrent_requests=10)
    gates.gates.claimed("q", 4)
    gates.configure(rate_per_second=1.0, bucket_size=3, max_concurrent_requests=10)
    assert gates.allowance().number == 3
    gates.configure(max_concurrent_requests=5)
    assert gates.allowance().number == 1
    gates.configure()
    assert gates.allowance().number == UNLIMITED
