"""Enqueue and run 5,000 tasks that do nothing, on the real local server and on other durable queues for comparison.

Run ``python benchmarks/local_queue.py``. ``pip install deferred_middleware[benchmarks]`` installs the other queues.
Those that need a Redis server are skipped if there is none. The order changes from round to round, and each contender
starts again in each round, with its own processes. All of them are durable: each enqueue is synced to the disk.

* enqueued: by one thread of another process, one at a time and 100 at a time, while no task runs;
* executed: from the start of the first task to that of the last, with the same number of threads for all (RQ has one);
* latency: from the enqueue of a single task to its start, while the queue is otherwise idle;
* idle: the CPU time of all processes of the queue while there is nothing to do, as a part of one CPU.

The ceiling is the rate at which a bare app in an app process answers deliveries over the same channel as tasks, without
the store and the scheduler. The difference is the time that a task takes in the app's middlewares, in its checks and
its call, and in the store. The benchmark also prints how fast waitress answers for the bare app over HTTP, to as many
clients at a time.

The goals: 2.5 times as many executed as the fastest of the other queues, half of the single tasks started within 2.5 ms
and 99 of 100 within 15 ms, and less than 1 % of a CPU when idle.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local_queue_contenders import Contender, Ours, found

_WAIT_SECONDS = 60.0
_IDLE_SECONDS = 10.0


@dataclass
class Figures:
    """The results of one contender in each round."""

    single: list[float] = field(default_factory=list)
    hundred: list[float] = field(default_factory=list)
    executed: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    public: list[float] = field(default_factory=list)
    deliveries: list[float] = field(default_factory=list)

    def share_of(self, rates: Sequence[float]) -> float:
        """Return the executed part of ``rates``, which has one rate for each round."""
        return statistics.median(mine / most for mine, most in zip(self.executed, rates, strict=True))


class Reports:
    """The socket to which tasks send numbers."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(_WAIT_SECONDS)

    def next(self) -> float:
        """Wait for the next number."""
        return float(json.loads(self._socket.recv(1000)))


def measure(contender: Contender, figures: Figures, reports: Reports, *, tasks: int, pings: int) -> None:
    """Let a contender enqueue and run its tasks, and record its results."""
    contender.start()
    half = tasks // 2
    figures.single.append(half / timed(lambda: contender.add(half)))
    began = time.perf_counter()
    if contender.add_many(tasks - half):
        figures.hundred.append((tasks - half) / (time.perf_counter() - began))
    else:
        contender.add(tasks - half)
    contender.run()
    figures.executed.append((tasks - 1) / reports.next())
    if isinstance(contender, Ours):
        figures.public.append(contender.bare(tasks))
        figures.deliveries.append(contender.bare_deliveries(tasks))
    for _ in range(pings):
        contender.ping()
        figures.latencies.append(reports.next() * 1000)
    before = contender.cpu_seconds()
    time.sleep(_IDLE_SECONDS)
    figures.idle.append((contender.cpu_seconds() - before) / _IDLE_SECONDS * 100)


def timed(function: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> int:
    """Print the table, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pings", type=int, default=200)
    options = parser.parse_args()
    kinds = found()
    results = {kind: Figures() for kind in kinds}
    with tempfile.TemporaryDirectory() as directory:
        os.environ["LOCAL_QUEUE_REPORT"] = f"{directory}/reports"
        reports = Reports(f"{directory}/reports")
        for round_number in range(options.rounds):
            shift = round_number % len(kinds)
            for kind in kinds[shift:] + kinds[:shift]:
                place = Path(directory) / f"{kind.__name__}-{round_number}"
                place.mkdir()
                contender = kind(place, options.tasks)
                try:
                    measure(contender, results[kind], reports, tasks=options.tasks, pings=options.pings)
                except Exception:
                    print(contender.output())
                    raise
                finally:
                    contender.stop()
    print_results(results)
    return print_goals(results)


def print_results(results: dict[type[Contender], Figures]) -> None:
    """Print all figures: medians over the rounds, and percentiles of the latencies of all rounds."""
    print(f"{'':36} {'one at a time':>14} {'100 at a time':>14} {'executed':>12} {'p50':>8} {'p99':>8} {'idle':>7}")
    for kind, figures in results.items():
        hundred = f"{statistics.median(figures.hundred):,.0f}/s" if figures.hundred else "-"
        print(
            f"{kind.name:36} {statistics.median(figures.single):12,.0f}/s {hundred:>14}"
            f" {statistics.median(figures.executed):10,.0f}/s {percentile(figures.latencies, 50):5.1f} ms"
            f" {percentile(figures.latencies, 99):5.1f} ms {statistics.median(figures.idle):5.2f} %"
        )
    ours = results[Ours]
    rows = (("the bare app, channel (ceiling)", ours.deliveries), ("the bare app, HTTP", ours.public))
    for what, measured in rows:
        print(f"{what:36} {'':14} {'':14} {statistics.median(measured):10,.0f}/s")
    print(f"  executed: {ours.share_of(ours.deliveries):.2f} of the ceiling")


def print_goals(results: dict[type[Contender], Figures]) -> int:
    """Print which goals are met. Return 1 if one is missed."""
    ours = results[Ours]
    executed = statistics.median(ours.executed)
    others = [statistics.median(figures.executed) for kind, figures in results.items() if kind is not Ours]
    latency, late = percentile(ours.latencies, 50), percentile(ours.latencies, 99)
    idle = statistics.median(ours.idle)
    goals = [
        (f"half of the single tasks begun after {latency:.1f} ms, goal 2.5 ms", latency <= 2.5),
        (f"99 of 100 single tasks begun after {late:.1f} ms, goal 15 ms", late <= 15),
        (f"idle: {idle:.2f} % of a CPU, goal 1 %", idle < 1),
    ]
    if others:
        ratio = executed / max(others)
        goals.insert(0, (f"executed: {ratio:.2f} times the fastest other, goal 2.5", ratio >= 2.5))
    for goal, met in goals:
        print(f"  {goal}: {'met' if met else 'missed'}")
    return 0 if all(met for _goal, met in goals) else 1


def percentile(values: Sequence[float], number: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[number - 1]


if __name__ == "__main__":
    raise SystemExit(main())
