"""Measure what importing the package costs, beyond the interpreter and webob.

Run ``python benchmarks/import_time.py``. The bar: less than 30 ms, and the SDK is not imported.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

BAR_MS = 30.0
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
    "deferred_middleware": "import deferred_middleware",
    "google.appengine.api.taskqueue": "import google.appengine.api.taskqueue",
}


def main() -> int:
    """Print the table, and return 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    imports_sdk = False
    for _ in range(options.rounds + 1):
        for name, statement in CONTENDERS.items():
            run = [sys.executable, "-c", PROGRAM.format(statement=statement)]
            text = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
            samples[name].append(float(text[0]))
            if name == "deferred_middleware":
                imports_sdk = imports_sdk or text[1] == "True"
    # The first round only compiled what was not yet.
    medians = {name: statistics.median(times[1:]) for name, times in samples.items()}
    for name, milliseconds in medians.items():
        print(f"  {name:46} {milliseconds:7.1f} ms")
    ours = medians["deferred_middleware"]
    print(f"deferred_middleware: {ours:.1f} ms (bar {BAR_MS:.0f}), SDK imported: {imports_sdk}")
    return 0 if ours < BAR_MS and not imports_sdk else 1


if __name__ == "__main__":
    sys.exit(main())
