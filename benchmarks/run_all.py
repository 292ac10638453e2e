"""Run all benchmarks, even if one misses its bar, and print a summary.

Run ``python benchmarks/run_all.py``, or ``make bench``. The exit status is 1 if a bar was missed, and 2 if a script
failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = (
    "import_time",
    "passthrough",
    "execution",
    "signing",
    "enqueue",
    "single_add",
    "datastore_put",
    "large_store",
    "dashboard",
    "local_queue",
)
"""In the order in which they run, the shortest first. Each exits with 1 if it misses a bar."""
VERDICTS = {0: "met", 1: "missed"}


def main() -> int:
    """Run the scripts, and return the status."""
    results: dict[str, tuple[int, float]] = {}
    for name in SCRIPTS:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        status = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))], check=False).returncode
        results[name] = status, time.monotonic() - started
    print("== summary")
    for name, (status, seconds) in results.items():
        print(f"  {name:12} {VERDICTS.get(status, f'failed with status {status}'):24} {seconds:6.0f} s")
    statuses = {status for status, _ in results.values()}
    return 0 if statuses == {0} else 1 if statuses <= {0, 1} else 2


if __name__ == "__main__":
    sys.exit(main())
