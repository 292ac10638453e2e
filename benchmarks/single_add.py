"""One ``defer`` at a time in an app of the local server: how long it takes, from one thread and from four.

Run ``python benchmarks/single_add.py --baseline DIRECTORY``, where the directory has another version of the code, such
as a git worktree. Both are run in turns, each time with a new server and an empty data directory. Without a baseline,
the figures of this version are printed alone.

The tasks have a countdown, so none runs meanwhile. Each add is acknowledged when it is on the disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import Arguments, Recording

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


def measure(code: Path, seconds: float) -> dict[tuple[str, str], dict[str, float]]:
    """Return the figures of one run of the version in ``code``, by title and unit."""
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
        ("One defer at a time", "ms"): {
            "median": statistics.median(one) * 1e3,
            "99th percentile": statistics.quantiles(one, n=100)[98] * 1e3,
        },
        ("Adds of one task", "adds/s"): {"1 thread": len(one) / seconds, "4 threads": len(four) / seconds},
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
    parser = Arguments(__doc__, rounds=(5, 2), seconds=(3.0, 1.0))
    parser.add_argument("--baseline", type=Path, help="directory with another version of the code")
    arguments = parser.parse()
    versions = {"this version": _HERE}
    if arguments.baseline is not None:
        versions["baseline"] = arguments.baseline.resolve()
    found: dict[str, list[dict[tuple[str, str], dict[str, float]]]] = {name: [] for name in versions}
    for number in range(arguments.rounds):
        for name in sorted(versions, reverse=bool(number % 2)):
            found[name].append(measure(versions[name], arguments.seconds))
    recording = Recording()
    for (title, unit), rows in found["this version"][0].items():
        if len(versions) == 1:
            samples = {row: [run[title, unit][row] for run in found["this version"]] for row in rows}
            recording.table(title, unit, samples, ours=samples)
            continue
        for row in rows:
            samples = {version: [run[title, unit][row] for run in runs] for version, runs in found.items()}
            recording.table(f"{title}: {row}", unit, samples, ours=["this version"], reference="baseline")
    return recording.end(arguments.json)


if __name__ == "__main__":
    sys.exit(main())
