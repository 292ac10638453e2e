"""Tests of the monotonic clock that goes on while a test has stopped the time."""

from __future__ import annotations

import threading
import time

import pytest

from deferred_middleware.enqueue.add import RetryBudget
from deferred_middleware.enqueue.background import Alarm
from deferred_middleware.wire.monotonic import monotonic


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the time, as freezegun does."""
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: 1_700_000_000.0)


def test_it_goes_on_while_the_time_is_stopped() -> None:
    """It is later after a wait."""
    before = monotonic()
    threading.Event().wait(0.02)

    assert 0.01 < monotonic() - before < 60


def test_a_delayed_call_is_made_while_the_time_is_stopped() -> None:
    """The retry of an add comes, so nobody waits for its result for ever."""
    called = threading.Event()
    Alarm().call_later(0.01, called.set)

    assert called.wait(30)


def test_retries_end_while_the_time_is_stopped() -> None:
    """The time for the attempts of an add runs out."""
    budget = RetryBudget(0.15)
    threading.Event().wait(0.2)

    assert budget.delay() is None
