"""Time several contenders in alternation, so that the machine's noise affects all of them equally."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping


def measure(contenders: Mapping[str, Callable[[], object]], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Return the time that one call of each contender took in each round, in microseconds.

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
    return samples
