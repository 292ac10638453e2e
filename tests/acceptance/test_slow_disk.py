"""``kill -9`` while the disk needs half a second for each sync: few tasks run again."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.dispatch.result_writer import MOST_UNSTORED_SLOW
from tests.support.killing.load import App, Events
from tests.support.running import WAIT_SECONDS, Serve
from tests.support.shims import compile_shim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")

SYNC_MILLISECONDS = 500
CONCURRENCY = 6
TASKS = 1000
KILLS = 50 if os.environ.get("DEFERRED_SOAK") else 2

SOURCE = """
import json, os
from google.appengine.api import taskqueue, wrap_wsgi_app

log = os.open(os.environ["RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/add":
        wanted = json.loads(body)
        for start in range(0, wanted["number"], 100):
            taskqueue.Queue().add([taskqueue.Task(url="/work", target=wanted["target"]) for _ in range(100)])
    else:
        os.write(log, environ["HTTP_X_APPENGINE_TASKNAME"].encode() + b"\\n")
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]

app = wrap_wsgi_app(app)
"""


@pytest.fixture
def elsewhere() -> Iterator[App]:
    """Run an app that outlives the servers."""
    app = App(Events())
    yield app
    app.close()


@pytest.mark.parametrize("target", [None, "far"])
def test_few_tasks_run_again(tmp_path: Path, make_server: Serve, elsewhere: App, target: str | None) -> None:
    """A kill repeats no more tasks of a service than run at a time, and 32; wherever the app runs. None is lost."""
    log, slow = tmp_path / "runs", tmp_path / "slow"
    environ = {
        "RUNS": str(log),
        "LD_PRELOAD": str(compile_shim("killing/slow_sync.c", tmp_path)),
        "SLOW_SYNC_FILE": str(slow),
        "SLOW_SYNC_MILLISECONDS": str(SYNC_MILLISECONDS),
    }
    server = make_server(
        SOURCE,
        services=["default", f"far={elsewhere.url}"],
        arguments=[f"--threads={CONCURRENCY + 2}", "--history-tasks=1000000"],
        environ=environ,
    ).start()

    def runs() -> Counter[str]:
        return Counter(log.read_text().split()) if target is None else elsewhere.runs.copy()

    server.command("pause", "default")
    server.post("/add", {"number": TASKS, "target": target})
    slow.touch()
    server.command("resume", "default")
    before: Counter[str] = runs()
    begun: list[set[str]] = []
    for number in range(KILLS):
        until = time.monotonic() + WAIT_SECONDS
        while runs() == before:
            assert time.monotonic() < until, server.output
            # No portable event announces that a file has grown.
            time.sleep(0.005)
        # The first kill comes before any result can be stored, the others at a random moment of a few commits.
        time.sleep(random.uniform(0.0, 2.0 if number else 0.2) * SYNC_MILLISECONDS / 1000)
        server.kill()
        after = runs()
        begun.append(set(after - before))
        before = after
        server.start()
    slow.unlink()
    drained = server.command("drain", "--timeout=50")
    assert drained.returncode == 0, drained.stdout + drained.stderr
    begun.append(set(runs() - before))
    assert server.stop() == 0
    assert len(runs()) == TASKS
    again = [len(names & set().union(*begun[number:])) for number, names in enumerate(begun[:-1], 1)]
    assert max(again) <= CONCURRENCY + MOST_UNSTORED_SLOW
    # A disk that isn't slow would prove nothing.
    assert sum(again) > 0
    assert len(begun[0]) < TASKS
