"""How many attempts of a queue may begin, by its rate, concurrency, pause, and 503 responses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

    def run(self, number: int) -> None:
        """Claim tasks, and begin their attempts."""
        self.limits.claimed("q", number)
        for _ in range(number):
            self.limits.began("q")

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
    limits.run(500)
    assert limits.allowance().number == UNLIMITED
    assert not limits.limits.is_slowed_down("q")
    assert limits.end() == (False, False)


def test_people_see_what_limits_a_queue(limits: Limits) -> None:
    """The standing has what is in flight, the free tokens and when the next one comes, and what a 503 has done."""
    limits.configure(rate_per_second=2, bucket_size=3)
    limits.run(3)

    standing = limits.limits.standing("q")
    assert (standing.in_flight, standing.tokens, standing.token_seconds) == (3, 0, 0.5)
    assert (standing.slowed_down_limit, standing.slowed_down_seconds) == (None, 0)

    limits.end(503)
    standing = limits.limits.standing("q")
    assert (standing.in_flight, standing.slowed_down_limit) == (2, 1)
    assert standing.slowed_down_seconds == FIRST_PAUSE_SECONDS


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
    assert limits.allowance() == Allowance(2)
    limits.run(2)
    waiting = limits.allowance()
    assert waiting.number == 0
    assert waiting.wait_seconds == pytest.approx(0.25)
    limits.now += 0.25
    assert limits.allowance().number == 1


def test_a_claimed_task_has_its_token_reserved(limits: Limits) -> None:
    """No more tasks are claimed than there are tokens; the token is taken when the attempt begins."""
    limits.configure(rate_per_second=4.0, bucket_size=3)
    limits.limits.claimed("q", 2)
    assert limits.allowance().number == 1
    limits.limits.claimed("q", 1)
    limits.now += 100
    # The bucket is full of reserved tokens: nothing changes until an attempt begins, and that one says so.
    assert limits.allowance() == Allowance(0, math.inf)
    assert limits.limits.began("q")
    assert not limits.limits.began("q")
    assert round(limits.allowance().wait_seconds, 6) == 0.25
    limits.now += 0.25
    assert limits.allowance() == Allowance(1)


@given(
    rate=st.sampled_from([1.0, 5.0, 100.0]),
    size=st.integers(1, 10),
    steps=st.lists(st.tuples(st.sampled_from(["claim", "begin", "release", "wait"]), st.integers(1, 8)), max_size=80),
)
def test_no_span_of_time_has_more_attempts_than_the_rate_allows(
    rate: float, size: int, steps: list[tuple[str, int]]
) -> None:
    """Between any two moments no more attempts begin than the bucket's size and what the rate adds meanwhile."""
    limits = Limits()
    limits.configure(rate_per_second=rate, bucket_size=size)
    claimed = 0
    began: list[float] = []
    for what, number in steps:
        if what == "claim":
            number = min(number, limits.allowance().number)
            limits.limits.claimed("q", number)
            claimed += number
        elif what == "begin":
            for _ in range(min(number, claimed)):
                limits.limits.began("q")
                began.append(limits.now)
                claimed -= 1
        elif what == "release" and claimed:
            limits.limits.released("q", 1)
            claimed -= 1
        else:
            limits.now += number / rate / 3
    for first, start in enumerate(began):
        for last in range(first, len(began)):
            assert last - first + 1 <= size + (began[last] - start) * rate + 1e-3


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
    assert not limits.limits.began("q")
    limits.end()
    assert limits.allowance().number == 0  # the other one's token is still reserved
    limits.limits.released("q", 1)
    assert limits.allowance().number == 1


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
    assert limits.limits.is_slowed_down("q")
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
    limits.run(4)
    limits.configure(rate_per_second=1.0, bucket_size=3, max_concurrent_requests=10)
    assert limits.allowance().number == 3
    limits.configure(max_concurrent_requests=5)
    assert limits.allowance().number == 1
    limits.configure()
    assert limits.allowance().number == UNLIMITED
