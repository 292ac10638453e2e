"""The token bucket and the throttle after a 503, partly as property tests."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.dispatch.queue_limits import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    RECOVERED,
    Throttle,
    TokenBucket,
)


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@given(
    rate=st.floats(0.01, 1000),
    size=st.integers(1, 100),
    waits=st.lists(st.floats(0, 20), max_size=40),
)
def test_no_more_begins_than_the_bucket_and_the_rate_give(rate: float, size: int, waits: list[float]) -> None:
    """In any span of time, at most the bucket size plus the rate times the span can be taken."""
    clock = Clock()
    bucket = TokenBucket(rate, size, clock=clock)
    taken: list[tuple[float, int]] = []
    for wait in [0.0, *waits]:
        clock.now += wait
        number = bucket.available()
        bucket.take(number)
        taken.append((clock.now, number))

    for first in range(len(taken)):
        total = 0
        for at, number in taken[first:]:
            total += number
            assert total <= size + rate * (at - taken[first][0]) + 1e-3


@given(rate=st.floats(0.01, 1000), size=st.integers(1, 100))
def test_the_wait_ends_when_there_is_a_token(rate: float, size: int) -> None:
    """An empty bucket has its next token after the waiting time that it gives, and not at half of it."""
    clock = Clock()
    bucket = TokenBucket(rate, size, clock=clock)
    bucket.take(size)

    wait = bucket.wait_seconds()

    assert math.isclose(wait, 1 / rate, rel_tol=1e-6)
    clock.now += wait * 0.5
    assert bucket.available() == 0
    clock.now += wait * 0.5
    assert bucket.available() >= 1
    assert bucket.wait_seconds() == 0


def test_a_rate_of_nothing_never_has_one_again() -> None:
    """With a rate of 0, an empty bucket stays empty forever."""
    bucket = TokenBucket(0, 1, clock=Clock())
    bucket.take(1)

    assert bucket.wait_seconds() == math.inf


def test_more_tokens_than_the_bucket_holds_never_come() -> None:
    """The wait for several tokens ends when the last of them is there, or never."""
    clock = Clock()
    bucket = TokenBucket(5, 10, clock=clock)
    bucket.take(10)
    assert round(bucket.wait_seconds(10), 6) == 2.0
    assert bucket.wait_seconds(11) == math.inf


def test_a_smaller_bucket_spills() -> None:
    """If rate and size change, saved tokens are kept up to the new size."""
    clock = Clock()
    bucket = TokenBucket(5, 10, clock=clock)
    bucket.change(1, 3)

    assert bucket.available() == 3
    bucket.take(3)
    clock.now += 2
    assert bucket.available() == 2


def test_a_503_pauses_and_recovery_doubles() -> None:
    """After a 503 nothing begins during the pause; then the limit starts at 1 and doubles with each other response."""
    clock = Clock()
    throttle = Throttle(clock=clock)

    assert throttle.answered(503, clock.now)
    assert throttle.wait_seconds() == FIRST_PAUSE_SECONDS
    clock.now += FIRST_PAUSE_SECONDS
    limits = []
    while throttle.limit is not None:
        limits.append(throttle.limit)
        assert not throttle.answered(500, clock.now)
    assert limits == [1, 2, 4, 8, 16, 32, RECOVERED]


def test_further_503s_double_the_pause_up_to_a_limit() -> None:
    """Each 503 after a pause doubles the pause up to a limit; 503s of attempts that began earlier don't count."""
    clock = Clock()
    throttle = Throttle(clock=clock)
    pauses = []
    for _ in range(10):
        began = clock.now
        throttle.answered(503, began)
        assert not throttle.answered(503, began)
        pauses.append(throttle.wait_seconds())
        clock.now += pauses[-1]

    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
