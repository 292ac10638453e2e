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
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local_queue_contenders import Contender, Ours, found
from recording import Arguments, Recording

_WAIT_SECONDS = 120.0


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


class Reports:
    """The socket to which tasks send numbers."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(_WAIT_SECONDS)

    def next(self) -> float:
        """Wait for the next number."""
        return float(json.loads(self._socket.recv(1000)))

    def discard(self) -> None:
        """Drop what a contender that was stopped has still sent."""
        while select.select([self._socket], [], [], 0)[0]:
            self._socket.recv(1000)


def measure(contender: Contender, figures: Figures, reports: Reports, options: argparse.Namespace) -> None:
    """Let a contender enqueue and run its tasks, and record its results."""
    tasks = options.tasks
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
    for _ in range(options.pings):
        contender.ping()
        figures.latencies.append(reports.next() * 1000)
    before = contender.cpu_seconds()
    time.sleep(options.idle)
    figures.idle.append((contender.cpu_seconds() - before) / options.idle * 100)


def timed(function: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> int:
    """Print the table, and return 1 if a goal is missed."""
    options = Arguments(__doc__, tasks=(5000, 500), rounds=(3, 1), pings=(200, 20), idle=(10.0, 2.0)).parse()
    recording = Recording()
    kinds, missing = found()
    for name, reason in missing.items():
        recording.leave_out(name, reason)
    results = {kind: Figures() for kind in kinds}
    with tempfile.TemporaryDirectory() as directory:
        os.environ["LOCAL_QUEUE_REPORT"] = f"{directory}/reports"
        reports = Reports(f"{directory}/reports")
        for round_number in range(options.rounds):
            shift = round_number % len(kinds)
            for kind in kinds[shift:] + kinds[:shift]:
                if kind not in results:
                    continue
                print(f"  round {round_number + 1} of {options.rounds}: {kind.name}", flush=True)
                place = Path(directory) / f"{kind.__name__}-{round_number}"
                place.mkdir()
                contender = kind(place, options.tasks)
                try:
                    measure(contender, results[kind], reports, options)
                except Exception as error:
                    print(contender.output())
                    if kind is Ours:
                        raise
                    # A peer that fails or takes too long must not cost the others' figures; the report names it.
                    recording.leave_out(kind.name, f"{type(error).__name__}: {error}, in round {round_number + 1}")
                    del results[kind]
                finally:
                    contender.stop()
                reports.discard()
    record_tables(recording, {kind.name: figures for kind, figures in results.items()})
    record_goals(recording, results)
    return recording.end(options.json)


def record_tables(recording: Recording, results: dict[str, Figures]) -> None:
    """Record all figures, by the names of the contenders."""
    ours = results[Ours.name]

    def table(title: str, unit: str, samples: dict[str, list[float]]) -> None:
        names = [name for name in samples if name.startswith(Ours.name)]
        recording.table(title, unit, samples, ours=names, reference=Ours.name)

    table("Enqueued one at a time", "tasks/s", {name: each.single for name, each in results.items()})
    table("Enqueued 100 at a time", "tasks/s", {name: each.hundred for name, each in results.items() if each.hundred})
    executed = {name: each.executed for name, each in results.items()}
    bare = {"a bare app, by the channel (our ceiling)": ours.deliveries, "a bare app, by HTTP": ours.public}
    table("Executed", "tasks/s", executed | bare)
    table("From the enqueue to the start", "ms", {name: each.latencies for name, each in results.items()})
    late = {name: [percentile(each.latencies, 99)] for name, each in results.items()}
    table("From the enqueue to the start, 99th percentile", "ms", late)
    table("CPU time when idle", "% of a CPU", {name: each.idle for name, each in results.items()})


def record_goals(recording: Recording, results: dict[type[Contender], Figures]) -> None:
    """Record which goals are met."""
    ours = results[Ours]
    others = {kind.name: statistics.median(each.executed) for kind, each in results.items() if kind is not Ours}
    if others:
        fastest = max(others, key=others.__getitem__)
        ratio = statistics.median(ours.executed) / others[fastest]
        recording.goal(f"executed, against {fastest}", ratio, at_least=2.5, unit="times as many")
    recording.goal("start of single tasks, median", percentile(ours.latencies, 50), at_most=2.5, unit="ms")
    recording.goal("start of single tasks, 99th percentile", percentile(ours.latencies, 99), at_most=15, unit="ms")
    recording.goal("CPU time when idle", statistics.median(ours.idle), at_most=1, unit="%")


def percentile(values: Sequence[float], number: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[number - 1]


if __name__ == "__main__":
    raise SystemExit(main())
