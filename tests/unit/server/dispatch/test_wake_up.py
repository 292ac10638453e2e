"""Tests of what wakes the scheduler's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from deferred_middleware.server.dispatch.wake_up import WakeUp

PATIENCE_SECONDS = 60


@pytest.mark.parametrize(
    ("wake", "goes_on", "withdrawn"),
    [
        (WakeUp.wake, True, set()),
        (lambda wake_up: wake_up.withdraw(["mail", "quick"]), True, {"mail", "quick"}),
        (WakeUp.stop, False, set()),
    ],
)
def test_a_wake_up_before_the_wait_counts(wake: Callable[[WakeUp], None], goes_on: bool, withdrawn: set[str]) -> None:
    """The scheduler doesn't wait if it was woken since its last wait, and it learns why."""
    wake_up = WakeUp()
    answers: list[bool] = []
    scheduler = threading.Thread(target=lambda: answers.append(wake_up.wait(10 * PATIENCE_SECONDS)), daemon=True)

    wake(wake_up)
    scheduler.start()
    scheduler.join(PATIENCE_SECONDS)

    assert answers == [goes_on]
    assert wake_up.take_queues_to_withdraw() == withdrawn
    assert wake_up.take_queues_to_withdraw() == set()
