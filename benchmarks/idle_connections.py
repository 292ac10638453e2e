"""Run tasks on the local server while 5,000 idle connections are open to its app, and 5,000 to its queue process.

Run ``python benchmarks/idle_connections.py``. One server answers requests and runs batches of tasks, in turns without
the connections and with them. The goal: less than 10 % lost, and every request answered.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from local_queue import Reports
from local_queue_contenders import Ours
from recording import Arguments, Recording

CONNECTIONS = 5000
_ANSWER_SECONDS = 60.0


def main() -> int:
    """Print the table, and return 1 if the goal is missed."""
    options = Arguments(__doc__, tasks=(5000, 500), rounds=(7, 1)).parse()
    # Each connection is a descriptor of this process, too.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    recording = Recording()
    found: dict[str, list[float]] = {"no idle connections": [], "10,000 idle connections": []}
    without, crowded = found
    answered: dict[str, list[float]] = {without: [], crowded: []}
    with tempfile.TemporaryDirectory() as directory:
        os.environ["LOCAL_QUEUE_REPORT"] = f"{directory}/reports"
        reports = Reports(f"{directory}/reports")
        contender = Ours(Path(directory), options.tasks)
        try:
            contender.start()
            # The first batch is not measured.
            measure(contender, reports, options.tasks, connections=0)
            for number in range(options.rounds):
                for name in sorted(found, reverse=bool(number % 2)):
                    rate, seconds = measure(
                        contender, reports, options.tasks, connections=CONNECTIONS if name == crowded else 0
                    )
                    found[name].append(rate)
                    answered[name].append(seconds * 1e3)
        finally:
            contender.stop()
    recording.table("Executed", "tasks/s", found, ours=found, reference=without)
    recording.table("A request to the app, and one to the queue process", "ms", answered, ours=found, reference=without)
    lost = 1 - statistics.median(some / all for some, all in zip(found[crowded], found[without], strict=True))
    recording.goal("lost to idle connections", lost * 100, at_most=10.0, unit="%")
    return recording.end(options.json)


def measure(contender: Ours, reports: Reports, tasks: int, *, connections: int) -> tuple[float, float]:
    """Return how many tasks run per second with so many idle connections to each process, and how soon it answers."""
    contender.pause()
    contender.add_many(tasks)
    with contextlib.ExitStack() as stack:
        for host, port in contender.addresses():
            for _ in range(connections):
                stack.enter_context(socket.create_connection((host, port), timeout=_ANSWER_SECONDS))
        # After these answers, all connections are accepted.
        for _ in range(2):
            began = time.perf_counter()
            for host, port in contender.addresses():
                with urllib.request.urlopen(f"http://{host}:{port}/", timeout=_ANSWER_SECONDS) as response:
                    response.read()
            seconds = time.perf_counter() - began
        contender.run()
        return (tasks - 1) / reports.next(), seconds


if __name__ == "__main__":
    sys.exit(main())
