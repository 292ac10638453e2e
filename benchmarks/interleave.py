"""Time several contenders in alternation, so that the machine's noise affects all of them equally."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping


def measure(contenders: Mapping[str, Callable[[], object]], *, rounds: int, calls: int) -> dict[str, float]:
    """Return each contender's median time for one call, in microseconds.

    In each of ``rounds``, every contender makes ``calls`` calls, one contender after the other. The order rotates by
    one from round to round.
    """
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for contender in contenders.values():
        for _ in range(calls // 10 + 1):
            contender()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                contender = contenders[name]
                started = time.perf_counter_ns()
                for _ in range(calls):
                    contender()
                samples[name].append((time.perf_counter_ns() - started) / calls / 1000)
    finally:
        gc.enable()
    return {name: statistics.median(times) for name, times in samples.items()}


def print_table(title: str, medians: Mapping[str, float], reference: str) -> None:
    """Print the medians, and each one's ratio to ``reference``."""
    width = max(map(len, medians))
    print(title)
    print(f"  {'':{width}}  {'median':>10}  ratio to {reference}")
    for name, microseconds in medians.items():
        print(f"  {name:{width}}  {microseconds:7.3f} µs  {microseconds / medians[reference]:.2f}")
