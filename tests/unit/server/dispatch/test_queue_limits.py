"""How many attempts of a queue may begin, by its rate, concurrency, pause, and 503 responses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.dispatch.queue_limits import FIRST_PAUSE_SECONDS, UNLIMITED, Allowance, QueueLimits


class Limits:
    """The limits of one queue ``q``, a clock, and the paused queues."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.paused: frozenset[str] = frozenset()
        self.queues = QueueRegistry()
        self.limits = QueueLimits(self.queues, clock=lambda: self.now)

    def configure(self, **fields: Any) -> None:
        """Replace the queue's configuration."""
        self.queues.replace([QueueConfig(name="q", **fields)])

    def allowance(self) -> Allowance:
        """Return how many attempts may begin now."""
        return self.limits.allowance("q", self.paused)

    def end(self, status: int | None = 200) -> tuple[bool, bool]:
        """End an attempt that has just begun."""
        return self.limits.ended("q", status, self.now)


@pytest.fixture
def limits() -> Limits:
    """A queue without limits."""
    limits = Limits()
    limits.configure()
    return limits


def test_a_queue_without_limits(limits: Limits) -> None:
    """A queue without limits may begin any number of attempts, and the end of one needs no wake-up."""
    assert limits.allowance() == Allowance(UNLIMITED)
    limits.limits.claimed("q", 500)
    assert limits.allowance().number == UNLIMITED
    assert not limits.limits.is_rated("q")
    assert limits.end() == (False, False)


def test_concurrency(limits: Limits) -> None:
    """A queue begins no more attempts than its concurrency; the end of one lets the next begin."""
    limits.configure(max_concurrent_requests=3)
    assert limits.allowance().number == 3
    limits.limits.claimed("q", 3)
    assert limits.allowance() == Allowance(0)
    assert limits.end() == (True, False)
    assert limits.allowance().number == 1


def test_rate(limits: Limits) -> None:
    """A queue may begin one attempt for each token, and then waits for the next token."""
    limits.configure(rate_per_second=4.0, bucket_size=2)
    assert limits.limits.is_rated("q")
    assert limits.allowance() == Allowance(2)
    limits.limits.claimed("q", 2)
    waiting = limits.allowance()
    assert waiting.number == 0
    assert waiting.wait_seconds == pytest.approx(0.25)
    limits.now += 0.25
    assert limits.allowance().number == 1


def test_what_is_given_back_costs_nothing(limits: Limits) -> None:
    """A task that is released without an attempt gives back its token and its place."""
    limits.configure(rate_per_second=1.0, bucket_size=2, max_concurrent_requests=2)
    limits.limits.claimed("q", 2)
    assert limits.allowance().number == 0
    limits.limits.released("q", 2)
    assert limits.allowance().number == 2


def test_what_a_person_forces_costs_no_token(limits: Limits) -> None:
    """A forced task takes a place but no token."""
    limits.configure(rate_per_second=1.0, bucket_size=1, max_concurrent_requests=2)
    limits.limits.claimed("q", 1, forced=True)
    assert limits.allowance().number == 1
    limits.limits.claimed("q", 1)
    assert limits.allowance().number == 0


@pytest.mark.parametrize("how", ["by a person", "by its rate"])
def test_a_paused_queue(limits: Limits, how: str) -> None:
    """A paused queue begins nothing and gives no waiting time; after it is resumed, it has its limits back."""
    if how == "by a person":
        limits.paused = frozenset({"q"})
    else:
        limits.configure(rate_per_second=0.0)
    assert limits.allowance() == Allowance(0, math.inf)
    limits.paused = frozenset()
    limits.configure()
    assert limits.allowance().number == UNLIMITED


def test_another_queue_is_not_concerned(limits: Limits) -> None:
    """The limits of one queue don't affect another."""
    limits.configure(max_concurrent_requests=1)
    limits.limits.claimed("q", 1)
    limits.paused = frozenset({"q"})
    assert limits.limits.allowance("default", limits.paused).number == UNLIMITED


def test_503_slows_a_queue_and_successes_speed_it_up(limits: Limits) -> None:
    """After a 503 a queue pauses, then begins one attempt, then twice as many after each other response."""
    limits.limits.claimed("q", 1)
    assert limits.end(503) == (False, True)
    assert limits.allowance() == Allowance(0, FIRST_PAUSE_SECONDS)
    assert limits.limits.is_rated("q")
    limits.now += FIRST_PAUSE_SECONDS
    assert limits.allowance().number == 1
    limits.limits.claimed("q", 1)
    assert limits.allowance().number == 0
    assert limits.end(200) == (True, False)
    assert limits.allowance().number == 2


def test_the_stricter_limit_holds(limits: Limits) -> None:
    """If a queue has both a throttle and a concurrency, the smaller limit applies."""
    limits.configure(max_concurrent_requests=3)
    limits.limits.claimed("q", 1)
    limits.end(503)
    for _ in range(5):
        limits.now += FIRST_PAUSE_SECONDS
        limits.limits.claimed("q", 1)
        limits.end(200)
    assert limits.allowance().number == 3


def test_a_new_configuration_holds_at_once(limits: Limits) -> None:
    """After a configuration change, running attempts still count, and saved tokens fit the new bucket size."""
    limits.configure(rate_per_second=1.0, bucket_size=10, max_concurrent_requests=10)
    limits.limits.claimed("q", 4)
    limits.configure(rate_per_second=1.0, bucket_size=3, max_concurrent_requests=10)
    assert limits.allowance().number == 3
    limits.configure(max_concurrent_requests=5)
    assert limits.allowance().number == 1
    limits.configure()
    assert limits.allowance().number == UNLIMITED
