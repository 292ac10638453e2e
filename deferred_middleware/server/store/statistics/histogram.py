"""Histograms of durations, with a logarithmic scale.

Each power of two has eight steps, so a percentile is right to about 6 %. A histogram has an entry for each step that
occurs, and no duration needs more than a few hundred steps, however many durations there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TypeAlias

Histogram: TypeAlias = dict[int, int]
"""How many durations fall on each step."""

_STEP_BITS = 3
_STEPS = 1 << _STEP_BITS
_MAX_USEC = (1 << 50) - 1


def step_of(usec: int) -> int:
    """Return the step of a duration in microseconds."""
    if usec < _STEPS:
        return max(0, usec)
    usec = min(usec, _MAX_USEC)
    shift = usec.bit_length() - 1 - _STEP_BITS
    return (shift << _STEP_BITS) + (usec >> shift)


def bounds_of(step: int) -> tuple[int, int]:
    """Return the first duration on a step, and the first one after it."""
    if step < 2 * _STEPS:
        return step, step + 1
    shift = (step >> _STEP_BITS) - 1
    start = (_STEPS + (step & (_STEPS - 1))) << shift
    return start, start + (1 << shift)


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return the sum of histograms."""
    total: Histogram = {}
    for histogram in histograms:
        for step, number in histogram.items():
            total[step] = total.get(step, 0) + number
    return total


def percentiles(histogram: Histogram, *percents: float) -> list[int | None]:
    """Return percentiles in microseconds; None for each if the histogram is empty."""
    total = sum(histogram.values())
    if not total:
        return [None for _ in percents]
    steps = sorted(histogram.items())
    return [_percentile(steps, total * percent / 100) for percent in percents]


def _percentile(steps: list[tuple[int, int]], rank: float) -> int:
    before = 0
    step, number = steps[-1]
    for step, number in steps:  # noqa: B007 - used after the loop
        if before + number >= rank:
            break
        before += number
    start, end = bounds_of(step)
    # The durations of a step are taken to be spread evenly over it.
    return start + int((end - 1 - start) * max(0.0, rank - before) / number)


def encode(histogram: Histogram) -> str:
    """Return the text of a histogram in the store."""
    return json.dumps(histogram, separators=(",", ":")) if histogram else ""


def decode(text: str) -> Histogram:
    """Return the histogram of a text."""
    return {int(step): number for step, number in json.loads(text).items()} if text else {}
