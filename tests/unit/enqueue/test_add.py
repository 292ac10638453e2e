"""Tests of how often and when an add is tried, by properties, in a time of their own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.enqueue.add import LONGEST_DELAY_SECONDS, LONGEST_RPC_SECONDS, Attempts, Timing

seconds = st.floats(0.01, 600)
chances = st.floats(0, 1, exclude_max=True)


@given(seconds, st.lists(st.tuples(chances, st.floats(0, 20)), min_size=1, max_size=100))
def test_attempts_end_in_time(whole: float, steps: list[tuple[float, float]]) -> None:
    """No attempt starts after the time is over, whatever chance says and however long the attempts take."""
    now = 0.0
    by_chance = iter([chance for chance, _ in steps])
    attempts = Attempts(whole, Timing(clock=lambda: now, chance=lambda: next(by_chance)))

    for _, took in steps:
        limit = attempts.rpc_seconds()
        assert limit is not None
        assert 0 < limit <= min(LONGEST_RPC_SECONDS, whole / 3)
        now += min(took, limit)
        delay = attempts.delay()
        if delay is None:
            break
        assert 0.05 <= delay <= LONGEST_DELAY_SECONDS
        now += delay
        assert now < whole
    assert attempts.failed >= 1


def test_no_time_is_a_single_attempt() -> None:
    """With 0 seconds the SDK's own deadline holds, and nothing follows."""
    attempts = Attempts(0)

    assert attempts.rpc_seconds() is None
    assert attempts.delay() is None
