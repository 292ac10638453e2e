"""Run all benchmarks, even if one misses its bar, print a summary, and write the report in the manual.

Run ``python benchmarks/run_all.py``, or ``make bench``: it takes about 15 minutes, on a machine that does nothing else.
``--quick`` measures less, in about two minutes, and writes the report to ``build/benchmarks`` instead, because its
figures are worth little. The exit status is 1 if a bar was missed, and 2 if a script failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import machine
import report

import deferred_middleware

SCRIPTS = (
    "import_time",
    "passthrough",
    "signing",
    "execution",
    "enqueue",
    "single_add",
    "local_queue",
    "large_store",
    "dashboard",
    "datastore_put",
)
"""In the order in which they run. Each exits with 1 if it misses a bar."""
VERDICTS = {0: "met", 1: "missed"}
LIMIT_SECONDS = 900.0
_HERE = Path(__file__).resolve().parent
_QUICK_PAGE = _HERE.parent / "build" / "benchmarks" / "benchmarks.rst"


def main() -> int:
    """Run the scripts, write the report, and return the status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure less, to try the benchmarks out")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, metavar="NAME", help="run these, and write no report")
    options = parser.parse_args()
    facts = machine.facts()
    runs: dict[str, dict[str, Any]] = {}
    scripts = options.only or SCRIPTS
    for number, name in enumerate(scripts, 1):
        print(f"== {number} of {len(scripts)}: {name}", flush=True)
        runs[name] = run(name, quick=options.quick)
        print(f"== {verdict(runs[name])} after {runs[name]['seconds']:.0f} s", flush=True)
    if not options.only:
        page = quick_page() if options.quick else report.PAGE
        results = {
            "day": datetime.now(timezone.utc).date().isoformat(),
            "version": deferred_middleware.__version__,
            "machine": facts,
            "scripts": runs,
        }
        report.write(results, page)
        print(f"The report is in {page.relative_to(_HERE.parent)}.")
    print("== summary")
    for name, each in runs.items():
        print(f"  {name:14} {verdict(each):24} {each['seconds']:6.0f} s")
    statuses = {each["status"] for each in runs.values()}
    return 0 if statuses == {0} else 1 if statuses <= {0, 1} else 2


def run(name: str, *, quick: bool) -> dict[str, Any]:
    """Run a script. Return its status, its seconds and its recording, which is None if it failed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "results.json")
        command = [sys.executable, str(_HERE / f"{name}.py"), f"--json={target}", *(["--quick"] if quick else [])]
        # In a session of its own, so that the processes that it starts end with it.
        environ = {**os.environ, "GRPC_VERBOSITY": "NONE"}
        with subprocess.Popen(command, start_new_session=True, env=environ) as process:
            try:
                status = process.wait(LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"  stopped after {LIMIT_SECONDS:.0f} s", flush=True)
                status = -1
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        recording = json.loads(target.read_text()) if target.exists() else None
    if recording is None and status in VERDICTS:
        status = -1
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "recording": rounded(recording)}


def verdict(run: dict[str, Any]) -> str:
    """Return what became of a run."""
    return VERDICTS.get(run["status"], "failed")


def rounded(value: Any) -> Any:
    """Return the value with five digits of each number."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def quick_page() -> Path:
    """Return a copy of the page."""
    _QUICK_PAGE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(report.PAGE, _QUICK_PAGE)
    return _QUICK_PAGE


if __name__ == "__main__":
    sys.exit(main())
