"""Histograms with a logarithmic scale."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.store.statistics.histogram import (
    bounds_of,
    decode,
    encode,
    merged,
    percentiles,
    step_of,
)


@given(st.integers(min_value=0, max_value=2**50 - 1))
def test_a_duration_is_within_the_bounds_of_its_step(usec: int) -> None:
    """Each duration belongs to one step, and the steps are at most an eighth of the duration wide."""
    start, end = bounds_of(step_of(usec))
    assert start <= usec < end
    assert end - start <= max(1, usec / 8)


@given(st.integers(), st.integers())
def test_longer_durations_are_not_on_lower_steps(one: int, other: int) -> None:
    """The steps are in the order of the durations, and any number has one of a few hundred steps."""
    assert step_of(min(one, other)) <= step_of(max(one, other)) < 400


@given(st.lists(st.integers(min_value=0, max_value=10**10), min_size=1, max_size=200))
def test_percentiles_are_close(durations: list[int]) -> None:
    """The median of a histogram is within an eighth of a median of the durations."""
    histogram: dict[int, int] = {}
    for usec in durations:
        histogram[step_of(usec)] = histogram.get(step_of(usec), 0) + 1
    (median,) = percentiles(histogram, 50)
    assert median is not None
    low, high = statistics.median_low(durations), statistics.median_high(durations)
    assert low * 7 / 8 - 1 <= median <= high * 9 / 8 + 1


@pytest.mark.parametrize("histogram", [{}, {0: 1}, {383: 5, 12: 7}])
def test_a_histogram_survives_the_store(histogram: dict[int, int]) -> None:
    """What is written is read again."""
    assert decode(encode(histogram)) == histogram


def test_an_empty_histogram_has_no_percentiles() -> None:
    """Without durations, nothing is made up."""
    assert percentiles({}, 50, 99) == [None, None]


def test_histograms_are_added() -> None:
    """The sum has the durations of all."""
    assert merged([{1: 1, 2: 1}, {2: 3}, {}]) == {1: 1, 2: 4}
