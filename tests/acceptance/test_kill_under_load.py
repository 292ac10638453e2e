"""``kill -9`` at random moments under load: every acknowledged task runs, and none runs too often."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.killing.forked import Forked
from tests.support.killing.found import look
from tests.support.killing.load import Adder, App, Events
from tests.support.repository import ROOT
from tests.support.running import WAIT_SECONDS, Serve

SOAK = bool(os.environ.get("DEFERRED_SOAK"))
# Each store survives this many kills; then the test starts a new store, because it checks all of it after each kill.
KILLS = 20
ROUNDS = 50 if SOAK else 3
ADDERS = 3
MOST_EVENTS = 120


class Killed(Forked):
    """A server that the test kills and starts again, and the ticket of its app."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        super().__init__(directory, "serve", *arguments)
        self.ticket = ""

    def start(self) -> None:
        """Start a server and wait until it is ready."""
        super().start()
        exported = shlex.split((self.data_dir / "default.env").read_text())
        self.ticket = dict(word.split("=", 1) for word in exported if "=" in word)["HTTP_X_APPENGINE_API_TICKET"]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[random.Random]:
    """Yield a random generator, and print its seed if the test fails."""
    try:
        yield random.Random(seed)
    except AssertionError as error:
        raise AssertionError(f"with seed {seed}: {error}") from error


def drain(directory: Path) -> None:
    """Run ``deferred-middleware drain`` to its end."""
    command = [sys.executable, "-m", "deferred_middleware", "drain", "--timeout=120"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    drained = subprocess.run(
        command, cwd=directory, env=environ, capture_output=True, text=True, timeout=4 * WAIT_SECONDS
    )
    assert drained.returncode == 0, drained.stdout + drained.stderr


@pytest.fixture
def events() -> Events:
    """Count what the app and the adders do."""
    return Events()


@pytest.fixture
def app(events: Events) -> Iterator[App]:
    """Run an app that outlives the servers."""
    app = App(events)
    yield app
    app.close()


@pytest.mark.parametrize("number", range(ROUNDS))
def test_killing_the_queue_process(tmp_path: Path, app: App, events: Events, number: int) -> None:
    """After each kill the store is intact, no acknowledged task is lost, and only tasks in flight run again."""
    server = Killed(tmp_path, f"--service=default={app.url}", "--port=0", "--admin-port=0", "--history-tasks=1000000")
    acknowledged: set[str] = set()
    asked: set[str] = set()
    # How often each task was in flight at a kill.
    in_flight: Counter[str] = Counter()
    with contextlib.closing(server), seeded(random.randrange(1 << 30)) as chance:
        for kill in range(KILLS):
            server.start()
            adders = [
                Adder(f"{kill}-{index}", server.admin, server.ticket, random.Random(chance.random()), events.note)
                for index in range(ADDERS)
            ]
            assert events.wait_for_more(chance.randrange(1, MOST_EVENTS), WAIT_SECONDS)
            server.kill()
            for adder in adders:
                adder.stop()
                acknowledged.update(adder.acknowledged)
                asked.update(adder.asked)
            found = look(server.data_dir, tmp_path / "found")
            there = found.running | found.waiting | found.finished
            assert acknowledged <= there <= asked
            in_flight.update(found.running)
            # A task whose result was stored must not run again.
            assert all(runs <= 1 + in_flight[name] for name, runs in app.runs.copy().items())
            assert found.finished <= app.runs.keys()
        server.start()
        drain(tmp_path)
        server.stop()
        found = look(server.data_dir, tmp_path / "found")
        assert (found.running, found.waiting) == (frozenset(), frozenset())
        assert acknowledged <= found.finished <= app.runs.keys()
        assert all(runs <= 1 + in_flight[name] for name, runs in app.runs.items())
        assert sum(app.runs.values()) - len(app.runs) <= sum(in_flight.values())
        # With fewer tasks there was no real load, and the test would prove nothing.
        assert len(acknowledged) > KILLS
        assert in_flight


APP = """
import os, random, time

log = os.open(os.environ["RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        os.write(log, b"%d %s\\n" % (os.getpid(), environ["HTTP_X_APPENGINE_TASKNAME"].encode()))
        environ["wsgi.input"].read()
        # It has work to do, or else it would hardly ever be killed meanwhile.
        time.sleep(random.random() * 0.008)
        body = b""
    else:
        body = os.environ["HTTP_X_APPENGINE_API_TICKET"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

# The server's command, without the pause before a restart of an app process. The real pause would follow each kill, and
# takes ten seconds.
HASTY = """
import runpy
from deferred_middleware.server.apps import process

process.MIN_PAUSE_SECONDS = process.MAX_PAUSE_SECONDS = 0.01
runpy.run_module("deferred_middleware", run_name="__main__", alter_sys=True)
"""
THREADS = 6
MOST_SECONDS_OF_LIFE = 0.1


def runs(log: Path) -> list[tuple[int, str]]:
    """Return the process and the task of each run, in order."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(int(pid), name) for pid, name in lines]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_killing_the_app_process(tmp_path: Path, make_server: Serve, number: int) -> None:
    """After each kill of an app process the tasks that were in flight run again, no others do, and none is lost."""
    log = tmp_path / "runs"
    log.touch()
    arguments = [f"--threads={THREADS + 2}", "--history-tasks=1000000"]
    files = {"main.py": APP, "hasty.py": HASTY}
    server = make_server(files, arguments=arguments, environ={"RUNS": str(log)}, program=["hasty.py"]).start()
    ticket = server.get("/")
    events = Events()
    acknowledged: set[str] = set()
    killed: list[int] = []
    with seeded(random.randrange(1 << 30)) as chance:
        for kill in range(KILLS):
            adder = Adder(str(kill), server.admin, ticket, random.Random(chance.random()), events.note)
            until = time.monotonic() + WAIT_SECONDS
            while (latest := [pid for pid, _name in runs(log)[-1:]]) in ([], killed[-1:]):
                assert time.monotonic() < until, server.output
                # No portable event announces that a file has grown.
                time.sleep(0.005)
            # The kill comes at a random moment.
            time.sleep(chance.uniform(0, MOST_SECONDS_OF_LIFE))
            os.kill(latest[0], signal.SIGKILL)
            killed += latest
            adder.stop()
            acknowledged.update(adder.acknowledged)
        drained = server.command("drain", "--timeout=50")
        assert drained.returncode == 0, drained.stdout + drained.stderr
        assert server.stop() == 0
        found = look(server.data_dir, tmp_path / "found")
        assert (found.running, found.waiting) == (frozenset(), frozenset())
        assert acknowledged == found.finished
        # The process of the last run of each task.
        last: dict[str, int] = {}
        repeated: Counter[int] = Counter()
        for pid, name in runs(log):
            if name in last:
                repeated[last[name]] += 1
            last[name] = pid
        assert acknowledged == last.keys()
        assert repeated.keys() <= set(killed)
        assert all(times <= THREADS for times in repeated.values())
        assert repeated
