"""Blocked names and a wall clock that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep.steady_clock import MOST_STOPPED_USEC, SteadyClock, elapsed_seconds
from tests.support.storing import DAY_USEC, NOW, Clock, new_task, prune, run_all

YEAR_USEC = 365 * DAY_USEC


@pytest.mark.parametrize(
    ("stopped_usec", "counted_usec"),
    [
        (0, 0),
        (DAY_USEC, DAY_USEC),
        (YEAR_USEC, MOST_STOPPED_USEC),
        (-YEAR_USEC, 0),
        (None, 0),
    ],
)
def test_the_time_between_two_servers(stopped_usec: int | None, counted_usec: int) -> None:
    """It counts up to a limit, and never back."""
    clock = SteadyClock(
        last_usec=1000,
        last_wall_usec=None if stopped_usec is None else NOW - stopped_usec,
        wall_usec=NOW,
        elapsed=lambda: 7.0,
    )
    assert clock.now_usec() == 1000 + counted_usec


def test_the_first_time_is_the_wall_clocks() -> None:
    """Without an earlier time, the clock begins at the wall clock's, and moves with the time that passes."""
    times = iter([1.0, 3.5])
    clock = SteadyClock(last_usec=0, last_wall_usec=None, wall_usec=NOW, elapsed=lambda: next(times))
    assert clock.now_usec() == NOW + 2_500_000


def test_the_real_clock_only_grows() -> None:
    """The system's clock for it exists and doesn't go back."""
    assert elapsed_seconds() <= elapsed_seconds()


def _set_while_it_runs(path: Path, clock: Clock, elapsed: Callable[[], float]) -> str:
    with closing(TaskStore(path, clock=clock, elapsed=elapsed)) as store:
        store.add([new_task("a")])
        run_all(store)
        clock.usec += YEAR_USEC
        prune(store)
        return store.add([new_task("a")])[0].outcome


def _set_while_none_runs(path: Path, clock: Clock, elapsed: Callable[[], float]) -> str:
    with closing(TaskStore(path, clock=clock, elapsed=elapsed)) as store:
        store.add([new_task("a")])
        run_all(store)
    clock.usec += YEAR_USEC
    for number in range(10):
        with closing(TaskStore(path, clock=clock, elapsed=elapsed)) as store:
            store.add([new_task(f"other-{number}")])
            prune(store)
    with closing(TaskStore(path, clock=clock, elapsed=elapsed)) as store:
        return store.add([new_task("a")])[0].outcome


@pytest.mark.parametrize("wrong", [_set_while_it_runs, _set_while_none_runs])
def test_a_clock_that_is_a_year_ahead_frees_no_name(
    tmp_path: Path, clock: Clock, wrong: Callable[[Path, Clock, Callable[[], float]], str]
) -> None:
    """A name stays blocked while the clock is a year ahead, after many restarts, and when it is right again."""
    passed = Clock()
    path = tmp_path / "tasks.sqlite"
    assert wrong(path, clock, passed) == "tombstoned"
    clock.usec = NOW
    with closing(TaskStore(path, clock=clock, elapsed=passed)) as store:
        assert store.add([new_task("a")])[0].outcome == "tombstoned"
        passed.usec += 9 * DAY_USEC
        assert store.add([new_task("a")])[0].outcome == "added"
