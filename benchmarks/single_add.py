"""One ``defer`` at a time in an app of the local server: how long it takes, from one thread and from four.

Run ``python benchmarks/single_add.py --baseline DIRECTORY``, where the directory has another version of the code, such
as a git worktree. Both are run in turns, each time with a new server and an empty data directory. Without a baseline,
the figures of this version are printed alone.

The tasks have a countdown, so none runs meanwhile. Each add is acknowledged when it is on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]
_APP = """
import json, threading, time
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer

def work(number):
    pass

def adds(seconds):
    took, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        defer(work, len(took), _countdown=3600)
        took.append(time.perf_counter() - began)
    return took

def app(environ, start_response):
    seconds = float(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(adds(seconds)).encode()]

app = wrap_wsgi_app(DeferredMiddleware(app))
"""
_START_SECONDS = 60.0


def measure(code: Path, seconds: float) -> dict[str, float]:
    """Return the figures of one run of the version in ``code``."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "main.py").write_text(_APP)
        ready = Path(directory, "ready.json")
        command = [sys.executable, "-m", "deferred_middleware", "serve", "main:app", "--port", "0", "--admin-port", "0"]
        command += ["--data-dir", str(Path(directory, "data")), "--ready-file", str(ready)]
        environ = {**os.environ, "PYTHONPATH": str(code)}
        with subprocess.Popen(command, cwd=directory, env=environ, stdout=subprocess.DEVNULL) as server:
            try:
                deadline = time.monotonic() + _START_SECONDS
                while not ready.exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
                url = json.loads(ready.read_text())["services"]["default"]
                _adds(url, 1, 0.5)
                one = _adds(url, 1, seconds)
                four = _adds(url, 4, seconds)
            finally:
                server.terminate()
    return {
        "p50 ms": statistics.median(one) * 1e3,
        "p99 ms": statistics.quantiles(one, n=100)[98] * 1e3,
        "adds/s, 1 thread": len(one) / seconds,
        "adds/s, 4 threads": len(four) / seconds,
    }


def _adds(url: str, threads: int, seconds: float) -> list[float]:
    """Return how long each add took, in seconds, of so many requests at a time."""
    requests = [
        subprocess.Popen([sys.executable, "-c", _GET, f"{url}/?{seconds}"], stdout=subprocess.PIPE)
        for _ in range(threads)
    ]
    return [took for request in requests for took in json.loads(request.communicate()[0])]


_GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=120).read().decode())"


def main() -> int:
    """Run the benchmark, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="directory with another version of the code")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    versions = {"this version": _HERE}
    if arguments.baseline is not None:
        versions["baseline"] = arguments.baseline.resolve()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for number in range(arguments.rounds):
        for name in sorted(versions, reverse=bool(number % 2)):
            found[name].append(measure(versions[name], arguments.seconds))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    for key in medians["this version"]:
        print(f"{key:20}", *(f"{name}: {figures[key]:9.2f}" for name, figures in medians.items()), sep="  ", end="")
        if "baseline" in medians:
            print(f"  ratio {medians['this version'][key] / medians['baseline'][key]:.2f}", end="")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
