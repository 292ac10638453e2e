"""Measure the time to enqueue a call, of 1,000 at once or in a loop, with a server that has 0, 5 and 20 ms of latency.

Run ``python benchmarks/enqueue.py``. All times are per call. With latency, a loop makes only 200 calls, because each
call takes as long as any other. Each round measures these contenders in turn:
``google.appengine.ext.deferred.defer`` in a loop; our ``defer`` in a loop, with validation and signature;
``defer_many``; and the ceiling. The ceiling is ten parallel ``add_async`` of the SDK, with 100 prepared tasks each.
There are two ceilings. One adds the same tasks as ``defer_many``, named and signed. The other adds plain tasks, which
are half as many bytes. Contenders that take a few hundredths of the loops' time are measured several times in a round,
in alternation, so that none of them always follows a long loop.

The goals: ``defer_many`` is at least 80 times as fast as the older loop at 5 ms and 200 times at 20 ms, and reaches at
least 0.8 of the ceiling with the same tasks. Our ``defer`` is within 5 % of the older one.

Further rows are for Cloud Tasks with 5 and 20 ms of latency: a loop of Google's client (``create_task``), our ``defer``
in a loop, and ``defer_many``, which must be at least 50 times as fast as the loop of Google's client.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from api_server import work
from google.appengine.api import apiproxy_stub_map, taskqueue
from google.appengine.ext import deferred
from google.appengine.runtime import default_api_stub
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks import transports
from recording import Arguments, Recording

from deferred_middleware import Settings, call, defer, defer_many
from deferred_middleware.config.process import install_settings
from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
from deferred_middleware.enqueue.prepare import prepare

LATENCIES_MS = (0, 5, 20)
CLOUD_TASKS_LATENCIES_MS = (5, 20)
CLOUD_TASKS_GOAL = 50
OURS = ("our defer", "defer_many")
TURNS = 6
"""How often each fast contender is measured in a round."""


def older(count: int) -> None:
    """Enqueue in a loop with the older library."""
    for number in range(count):
        deferred.defer(work, number, text="a few words")


def ours(count: int) -> None:
    """Enqueue in a loop with our library."""
    for number in range(count):
        defer(work, number, text="a few words")


def many(count: int) -> None:
    """Enqueue all calls with one ``defer_many``."""
    defer_many(call(work, number, text="a few words") for number in range(count))


def ceiling(tasks: list[list[taskqueue.Task]]) -> None:
    """Add prepared tasks with the SDK alone."""
    rpcs = [taskqueue.Queue("default").add_async(some) for some in tasks]
    for rpc in rpcs:
        rpc.get_result()


def plain_tasks(count: int) -> list[list[taskqueue.Task]]:
    """Return tasks that have only a payload and a URL."""
    body = deferred.serialize(work, 1, text="a few words")
    return _hundreds([taskqueue.Task(payload=body, url="/_cb/deferred/main/work") for _ in range(count)])


def same_tasks(count: int) -> list[list[taskqueue.Task]]:
    """Return the tasks that ``defer_many`` would add."""
    return _hundreds(
        [_task_of_the_sdk(prepare(call(work, number, text="a few words")).task) for number in range(count)]
    )


def _task_of_the_sdk(task: EnqueuedTask) -> taskqueue.Task:
    return taskqueue.Task(
        name=task.name, payload=task.payload, url=task.url, headers=dict(task.headers), target=task.target
    )


def _hundreds(tasks: list[taskqueue.Task]) -> list[list[taskqueue.Task]]:
    return [tasks[start : start + 100] for start in range(0, len(tasks), 100)]


def timed(function: Callable[[], object], count: int) -> float:
    """Return the duration of each of the ``count`` calls that ``function`` enqueues, in microseconds."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e6 / count


def measure(count: int, looped: int, rounds: int) -> dict[str, list[float]]:
    """Return the time of a call in each round, of ``count`` calls at once and of ``looped`` calls in a loop."""
    times: dict[str, list[float]] = {
        name: [] for name in ("older defer", "our defer", "defer_many", "ceiling", "ceiling, plain tasks")
    }
    loops = [("older defer", older), ("our defer", ours)]
    for number in range(rounds):
        for name, loop in loops if number % 2 else loops[::-1]:
            times[name].append(timed(lambda loop=loop: loop(looped), looped))  # type: ignore[misc] # of a default
        many(count)
        for turn in range(TURNS):
            same, plain = same_tasks(count), plain_tasks(count)
            short: list[tuple[str, Callable[[], object]]] = [
                ("defer_many", lambda: many(count)),
                ("ceiling", lambda same=same: ceiling(same)),  # type: ignore[misc] # of a default
                ("ceiling, plain tasks", lambda plain=plain: ceiling(plain)),  # type: ignore[misc] # of a default
            ]
            for name, contender in short[turn % 3 :] + short[: turn % 3]:
                times[name].append(timed(contender, count))
    return times


def measure_cloud_tasks(count: int, looped: int, rounds: int, address: str) -> dict[str, list[float]]:
    """Return the time of a call for each way to enqueue in Cloud Tasks."""
    os.environ |= {
        "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE": "true",
        "CLOUD_TASKS_EMULATOR_HOST": address,
        "GOOGLE_CLOUD_PROJECT": "app",
        "LOCATION_ID": "europe-west1",
    }
    transport = transports.CloudTasksGrpcTransport(channel=grpc.insecure_channel(address))
    client = tasks_v2.CloudTasksClient(transport=transport)
    parent = client.queue_path("app", "europe-west1", "default")

    def plain(count: int) -> None:
        for number in range(count):
            body = deferred.serialize(work, number, text="a few words")
            request = tasks_v2.AppEngineHttpRequest(relative_uri="/_cb/deferred/main/work", body=body)
            client.create_task(parent=parent, task=tasks_v2.Task(app_engine_http_request=request))

    times: dict[str, list[float]] = {"create_task": [], "our defer": [], "defer_many": []}
    try:
        plain(1)
        many(count)
        for _ in range(rounds):
            times["create_task"].append(timed(lambda: plain(looped), looped))
            times["our defer"].append(timed(lambda: ours(looped), looped))
            for _turn in range(TURNS):
                times["defer_many"].append(timed(lambda: many(count), count))
    finally:
        del os.environ["APPENGINE_USE_CLOUDTASK_PUSH_QUEUE"]
    return times


def compare_cloud_tasks(recording: Recording, count: int, looped: int, rounds: int) -> None:
    """Record the rows of Cloud Tasks."""
    for latency in CLOUD_TASKS_LATENCIES_MS:
        program = [sys.executable, str(Path(__file__).with_name("cloud_tasks_server.py")), f"--latency-ms={latency}"]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            samples = measure_cloud_tasks(count, looped, rounds, f"127.0.0.1:{server.stdout.readline().strip()}")
            server.stdin.close()
        title = f"Enqueue a call in Cloud Tasks, {latency} ms of latency"
        medians = recording.table(title, "µs", samples, ours=OURS, reference="create_task")
        faster = medians["create_task"] / medians["defer_many"]
        what = f"defer_many against a loop of create_task, at {latency} ms"
        recording.goal(what, faster, at_least=CLOUD_TASKS_GOAL, unit="times as fast")


def main() -> int:
    """Print the tables, and return 1 if a goal is missed."""
    parser = Arguments(__doc__, calls=(1000, 1000), looped=(200, 50), rounds=(5, 1))
    parser.add_argument("--only", choices=("app-engine", "cloud-tasks"), help="measure one engine")
    options = parser.parse()
    recording = Recording()

    os.environ |= {
        "API_HOST": "127.0.0.1",
        "HTTP_X_APPENGINE_API_TICKET": "ticket",
        "DEFAULT_VERSION_HOSTNAME": "app.example.com",
        "HTTP_HOST": "app.example.com",
        "APPLICATION_ID": "app",
    }
    install_settings(Settings(secret_keys=("0123456789abcdef" * 4,)))  # type: ignore[arg-type]
    for latency in LATENCIES_MS if options.only != "cloud-tasks" else ():
        program = [sys.executable, str(Path(__file__).with_name("api_server.py")), f"--latency-ms={latency}"]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            os.environ["API_PORT"] = server.stdout.readline().strip()
            stub = default_api_stub.DefaultApiStub()
            apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
            stub.SetUseRequestSecurityTicketForThread(True)
            samples = measure(options.calls, options.looped if latency else options.calls, options.rounds)
            server.stdin.close()
        title = f"Enqueue a call on App Engine, {latency} ms of latency"
        medians = recording.table(title, "µs", samples, ours=OURS, reference="older defer")
        if latency:
            ceiling_reached, faster = (medians[name] / medians["defer_many"] for name in ("ceiling", "older defer"))
            what = f"defer_many against the ceiling, at {latency} ms"
            recording.goal(what, ceiling_reached, at_least=0.8, unit="of its speed")
            what, bar = f"defer_many against a loop of the older defer, at {latency} ms", {5: 80, 20: 200}[latency]
            recording.goal(what, faster, at_least=bar, unit="times as fast")
        what, speed = f"our defer against the older one, at {latency} ms", medians["older defer"] / medians["our defer"]
        recording.goal(what, speed, at_least=0.95, unit="of its speed")
    if options.only != "app-engine":
        compare_cloud_tasks(recording, options.calls, options.looped, options.rounds)
    return recording.end(options.json)


if __name__ == "__main__":
    sys.exit(main())
