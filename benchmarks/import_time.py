"""Measure the import time of the package, compared with that of the SDK's taskqueue module.

Run ``python benchmarks/import_time.py``. The bar: at most 0.12 of the time of ``import google.appengine.api.taskqueue``
in the same run, without importing the SDK. Each import runs in new interpreters, in alternation. webob is imported
before the measurement, because both need it. The first round compiles the modules and does not count.

The public names are imported on first use. So a second figure shows the import of the names that an app uses. It has no
bar.
"""

from __future__ import annotations

import os
import subprocess
import sys

from recording import Arguments, Recording

BAR = 0.12
OURS = "deferred_middleware"
NAMES = "DeferredMiddleware, defer, task"
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
    NAMES: "from deferred_middleware import DeferredMiddleware, defer, task",
    PEER: "import google.appengine.api.taskqueue",
}


def main() -> int:
    """Print the table, and return 1 if the bar is missed."""
    options = Arguments(__doc__, rounds=(15, 3)).parse()
    recording = Recording()
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    imports_sdk = 0
    for _ in range(options.rounds + 1):
        for name, statement in CONTENDERS.items():
            run = [sys.executable, "-c", PROGRAM.format(statement=statement)]
            result = subprocess.run(run, capture_output=True, text=True, check=True, env=environ)
            milliseconds, has_sdk = result.stdout.split()
            samples[name].append(float(milliseconds))
            if name != PEER:
                imports_sdk += has_sdk == "True"
    medians = recording.table(
        "Import in a new interpreter that has webob",
        "ms",
        {name: times[1:] for name, times in samples.items()},
        ours=[OURS, NAMES],
        reference=PEER,
    )
    recording.goal(f"import {OURS} against import {PEER}", medians[OURS] / medians[PEER], at_most=BAR, unit="times")
    recording.goal("of our imports, those that import the SDK", imports_sdk, at_most=0)
    return recording.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
