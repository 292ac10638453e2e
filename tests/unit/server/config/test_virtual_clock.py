"""A clock that tests advance and stop."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.config.virtual_clock import VirtualClock


def readings(clock: VirtualClock) -> tuple[float, float, float]:
    """Return the three clocks."""
    return clock.time(), clock.monotonic(), clock.elapsed()


def test_it_is_the_machines_clock_at_first() -> None:
    """Nothing differs until a test asks for it."""
    clock = VirtualClock()
    assert abs(clock.time() - time.time()) < 1
    assert abs(clock.monotonic() - time.monotonic()) < 1
    assert clock.real_seconds(5) == 5


def test_all_three_clocks_advance_together() -> None:
    """An hour passes for all of them at once."""
    clock = VirtualClock()
    before = readings(clock)
    clock.advance(3600)
    assert all(3600 <= after - earlier < 3610 for earlier, after in zip(before, readings(clock), strict=True))


def test_a_frozen_clock_moves_only_by_hand() -> None:
    """It stands still, is advanced exactly, and continues from there."""
    clock = VirtualClock()
    clock.freeze()
    before = readings(clock)
    time.sleep(0.01)
    assert readings(clock) == before
    clock.advance(5)
    assert all(after - earlier == pytest.approx(5) for earlier, after in zip(before, readings(clock), strict=True))
    assert clock.real_seconds(5) == math.inf
    assert clock.real_seconds(0) == 0
    clock.freeze()
    clock.run()
    assert not clock.is_frozen
    after = readings(clock)
    assert all(0 <= now - earlier - 5 < 5 for earlier, now in zip(before, after, strict=True))


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_no_clock_goes_back(seconds: float) -> None:
    """A clock can't be set back."""
    with pytest.raises(ValueError, match="can't be advanced"):
        VirtualClock().advance(seconds)


@given(st.lists(st.sampled_from(["freeze", "run", "advance"]), max_size=20))
def test_monotonic_never_goes_back(steps: list[str]) -> None:
    """Whatever a test does, time goes on or stands still."""
    clock = VirtualClock()
    last = readings(clock)
    for step in steps:
        clock.advance(2.5) if step == "advance" else getattr(clock, step)()
        now = readings(clock)
        assert all(a <= b + 1e-6 for a, b in zip(last, now, strict=True))
        last = now
