"""Measure the import time of the package, compared with that of the SDK's taskqueue module.

Run ``python benchmarks/import_time.py``. The bar: at most 0.12 of the time of ``import google.appengine.api.taskqueue``
in the same run, without importing the SDK. Each import runs in new interpreters, in alternation. webob is imported
before the measurement, because both need it. The first round compiles the modules and does not count.

The public names are imported on first use. So a second figure shows the import of the names that an app uses. It has no
bar.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

BAR = 0.12
OURS = "deferred_middleware"
PEER = "google.appengine.api.taskqueue"
PROGRAM = """
import sys, time
import webob
started = time.perf_counter()
{statement}
print((time.perf_counter() - started) * 1000, any(name.startswith("google.appengine") for name in sys.modules))
"""
CONTENDERS = {
    "nothing more": "pass",
    "dataclasses, inspect, logging, pickle, typing": "import dataclasses, inspect, logging, pickle, typing",
    OURS: "import deferred_middleware",
    "DeferredMiddleware, defer, task": "from deferred_middleware import DeferredMiddleware, defer, task",
    PEER: "import google.appengine.api.taskqueue",
}


def main() -> int:
    """Print the table, and return 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    imports_sdk = False
    for _ in range(options.rounds + 1):
        for name, statement in CONTENDERS.items():
            run = [sys.executable, "-c", PROGRAM.format(statement=statement)]
            result = subprocess.run(run, capture_output=True, text=True, check=True, env=environ)
            milliseconds, has_sdk = result.stdout.split()
            samples[name].append(float(milliseconds))
            if name != PEER:
                imports_sdk = imports_sdk or has_sdk == "True"
    medians = {name: statistics.median(times[1:]) for name, times in samples.items()}
    for name, median in medians.items():
        print(f"  {name:46} {median:7.1f} ms {median / medians[PEER]:6.3f}")
    ratio = medians[OURS] / medians[PEER]
    print(f"import {OURS}: {ratio:.3f} of import {PEER} (bar {BAR}), SDK imported: {imports_sdk}")
    return 0 if ratio <= BAR and not imports_sdk else 1


if __name__ == "__main__":
    sys.exit(main())
