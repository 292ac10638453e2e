"""Measure the pages of the local server: with 1,000,000 stored tasks, while 1,000 tasks a second run.

    python benchmarks/dashboard.py

The goals: each page answers in 100 ms at the 95th percentile; an open page, which loads itself again when something
changes, costs execution less than 3 %; a change shows within a second. An open page is a client that does what the
script of the pages does: it waits for an event, loads the page, and then pauses for 0.4 to 0.7 seconds.

The machine matters: the server, the app, and this client share its cores. The cost is a median of pairs of rounds, one
with an open page and one without, of which each executes a backlog.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from recording import Arguments, Recording

from deferred_middleware.server.store.statistics.traceback_text import failure_site
from deferred_middleware.server.store.store import TaskStore

PAGES = (
    "/",
    "/tasks",
    "/tasks?state=failed",
    "/tasks?queue=later&state=scheduled",
    "/tasks?function=mail/send_7",
    "/tasks/4711",
    "/failures",
    "/failures/1",
    "/functions",
    "/functions?period=week",
    "/functions?function=dashboard_app/work",
    "/queue-yaml",
    "/cron",
    "/datastore",
    "/memcache",
)
PAGE_MS, COST_PERCENT, SHOWN_SECONDS = 100, 3, 1.0
FUNCTIONS, GROUPS = 40, 25
_RATE = 1000


def fill(path: Path, number: int) -> None:
    """Write a store: three of ten tasks are dead letters, six are scheduled, one has succeeded."""
    TaskStore(path).close()
    now = int(time.time() * 1e6)
    connection = sqlite3.connect(path)
    sites = [
        failure_site(
            status=500,
            reason=None,
            response=f'Traceback (most recent call last):\n  File "/app/m.py", line {n}, in f{n}\nE{n}: x\n'.encode(),
            url="/",
        )
        for n in range(GROUPS)
    ]
    for site in sites:
        connection.execute(
            "INSERT INTO failures (key, exception, message, file, line, function, source, first_usec, last_usec,"
            " attempts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
            (site.key, site.exception, site.message, site.file, site.line, site.function, site.source, now, now),
        )
    connection.executemany(
        "INSERT INTO tasks (id, queue, name, user_named, state, eta_usec, created_usec, finished_usec, method, url,"
        " target, retry_count, execution_count, previous_response, failure)"
        " VALUES (?, ?, ?, 0, ?, ?, ?, ?, 'POST', ?, '', ?, 1, ?, ?)",
        (_row(n, now, number) for n in range(number)),
    )
    connection.execute("INSERT INTO payloads (task_id, headers, body) SELECT id, '[]', randomblob(300) FROM tasks")
    connection.execute(
        "INSERT INTO attempts (task_id, number, started_usec, duration_usec, status, reason, service, excerpt)"
        " SELECT id, 1, created_usec, 1000, 500, 'status 500', 'default', randomblob(400) FROM tasks"
        " WHERE state = 'failed'"
    )
    connection.execute("INSERT INTO counts SELECT queue, state, count(*) FROM tasks GROUP BY queue, state")
    connection.commit()
    connection.close()


def _row(n: int, now: int, number: int) -> tuple[object, ...]:
    kind = n % 10
    state = "failed" if kind < 3 else "succeeded" if kind == 3 else "ready"
    queue = "later" if state == "ready" else f"q{n % 5}"
    created = now - (number - n) * 1000
    return (
        n + 1,
        queue,
        f"{n:016d}",
        state,
        now + 86_400_000_000 + n if state == "ready" else created,
        created,
        None if state == "ready" else created,
        f"/_cb/deferred/mail/send_{n % FUNCTIONS}",
        0 if state == "ready" else 1,
        None if state == "ready" else 500 if state == "failed" else 200,
        n % GROUPS + 1 if state == "failed" else None,
    )


class Server:
    """A server on a directory, with an app."""

    def __init__(self, directory: Path) -> None:
        ready = directory / "ready.json"
        (directory / "queue.yaml").write_text(
            "queue:\n- name: busy\n  rate: 100000/s\n  bucket_size: 100000\n- name: later\n  rate: 5/s\n"
        )
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "deferred_middleware", "serve", "dashboard_app:app", "--port", "0",
                "--admin-port", "0", "--data-dir", str(directory / "data"), "--ready-file", str(ready),
                "--queue-yaml", str(directory / "queue.yaml"), "--history-tasks", "2000000", "--no-task-lines",
            ],
            env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip
        while not ready.exists():
            if self._process.poll() is not None:
                raise RuntimeError("the server did not start")
            time.sleep(0.1)
        found = json.loads(ready.read_text())
        self.admin = found["admin"].removeprefix("http://")
        self.app = next(iter(found["services"].values())).removeprefix("http://")
        self.token = json.loads((directory / "data" / "server.json").read_text())["token"]

    def stop(self) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def add(self, number: int) -> None:
        """Enqueue tasks."""
        request(self.app, "GET", f"/?n={number}")

    def post(self, path: str) -> None:
        """Use the JSON API."""
        request(self.admin, "POST", f"/api/v1/{path}", {"X-Deferred-Admin-Token": self.token})

    def busy(self) -> dict[str, int]:
        """Return the numbers of the queue whose tasks run."""
        headers = {"X-Deferred-Admin-Token": self.token}
        queues = json.loads(request(self.admin, "GET", "/api/v1/queues", headers))["queues"]
        return next(queue for queue in queues if queue["name"] == "busy")


def request(host: str, method: str, path: str, headers: dict[str, str] | None = None) -> bytes:
    """Return the body of an answer."""
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status >= 400:
        raise RuntimeError(f"{method} {path}: {answer.status} {body[:300]!r}")
    return body


@contextlib.contextmanager
def load(server: Server) -> Iterator[list[int]]:
    """Enqueue :data:`_RATE` tasks a second; the list has the number of those that were added."""
    ending = threading.Event()
    added = [0]

    def run() -> None:
        began = time.monotonic()
        while not ending.is_set():
            due = int((time.monotonic() - began) * _RATE) - added[0]
            if due >= 50:
                server.add(min(due, 500))
                added[0] += min(due, 500)
            else:
                ending.wait(0.02)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield added
    finally:
        ending.set()
        thread.join()


class OpenPage:
    """An open page, as its script keeps it up to date. ``shows`` is the content that it shows."""

    def __init__(self, server: Server, path: str = "/") -> None:
        self.shows = b""
        self.loads = 0
        self._server = server
        self._path = path
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> OpenPage:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ending.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ending.is_set():
            connection = http.client.HTTPConnection(self._server.admin, timeout=10)
            connection.request("GET", "/live")
            stream = connection.getresponse()
            while not self._ending.is_set() and (line := stream.readline()):
                if line.startswith(b"event: changed"):
                    began = time.monotonic()
                    self.shows = request(self._server.admin, "GET", self._path)
                    self.loads += 1
                    self._ending.wait(min(0.7, max(0.4, 30 * (time.monotonic() - began))))
            connection.close()


def measure_pages(server: Server, seconds: float) -> dict[str, list[float]]:
    """Load the pages in turn, while tasks run; return how long each took."""
    times: dict[str, list[float]] = {path: [] for path in PAGES}
    until = time.monotonic() + seconds
    while time.monotonic() < until or min(map(len, times.values())) < 10:
        for path in PAGES:
            began = time.perf_counter()
            request(server.admin, "GET", path)
            times[path].append(time.perf_counter() - began)
            time.sleep(0.05)
    return times


def measure_change(server: Server, rounds: int) -> list[float]:
    """Return how long it takes until an open page shows that a queue was paused."""
    times = []
    with OpenPage(server) as page:
        for number in range(rounds):
            time.sleep(0.37 + 0.31 * number % 1)
            action, shown = ("pause", True) if number % 2 == 0 else ("resume", False)
            began = time.perf_counter()
            server.post(f"queues/later/{action}")
            while (b"/queues/later/resume" in page.shows) != shown:
                if time.perf_counter() - began > 20:
                    raise RuntimeError("the page never showed the change")
                time.sleep(0.005)
            times.append(time.perf_counter() - began)
        if rounds % 2:
            server.post("queues/later/resume")
    return times


def execute(server: Server, tasks: int) -> float:
    """Return how many tasks a second are executed from a backlog."""
    server.post("queues/busy/pause")
    for _ in range(tasks // 500):
        server.add(500)
    done = server.busy()["succeeded"] + tasks // 500 * 500
    began = time.perf_counter()
    server.post("queues/busy/resume")
    while server.busy()["succeeded"] < done:
        time.sleep(0.05)
    return tasks / (time.perf_counter() - began)


def measure_cost(server: Server, tasks: int, rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Return the tasks a second with an open page and without, and the part that the page costs in each round."""
    found: dict[str, list[float]] = {"no page open": [], "a page open": []}
    costs = []
    for number in range(rounds):
        rates = {}
        for is_open in (True, False) if number % 2 else (False, True):
            with OpenPage(server) if is_open else contextlib.nullcontext():
                time.sleep(0.5)
                rates[is_open] = execute(server, tasks)
        costs.append(1 - rates[True] / rates[False])
        found["no page open"].append(rates[False])
        found["a page open"].append(rates[True])
    return found, costs


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> int:
    """Print the figures, and return 1 if a goal is missed."""
    options = Arguments(
        __doc__, tasks=(1_000_000, 50_000), seconds=(20.0, 5.0), rounds=(21, 2), backlog=(10_000, 2000)
    ).parse()
    recording = Recording()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "data").mkdir()
        fill(place / "data" / "tasks.sqlite", options.tasks)
        server = Server(place)
        try:
            with load(server) as added:
                began, before = time.monotonic(), added[0]
                times = measure_pages(server, options.seconds)
                changes = measure_change(server, 10)
                rate = (added[0] - before) / (time.monotonic() - began)
            rates, costs = measure_cost(server, options.backlog, options.rounds)
        finally:
            server.stop()
    print(f"{options.tasks:,} stored tasks, {rate:,.0f} tasks a second enqueued and executed meanwhile")
    recording.table(
        f"Load a page with {options.tasks:,} tasks stored",
        "ms",
        {path: [seconds * 1000 for seconds in taken] for path, taken in times.items()},
        ours=times,
    )
    change = {"a queue is paused or resumed": changes}
    recording.table("Until an open page shows a change", "s", change, ours=change)
    recording.table("Executed from a backlog", "tasks/s", rates, ours=rates, reference="no page open")
    slowest = max(times, key=lambda path: percentile(times[path], 95))
    what = f"the slowest page ({slowest}), 95th percentile"
    recording.goal(what, percentile(times[slowest], 95) * 1000, at_most=PAGE_MS, unit="ms")
    recording.goal("a change shows, 95th percentile", percentile(changes, 95), at_most=SHOWN_SECONDS, unit="s")
    what = "what an open page costs of the execution, median of the rounds"
    recording.goal(what, statistics.median(costs) * 100, at_most=COST_PERCENT, unit="%")
    return recording.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
