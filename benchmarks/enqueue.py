"""Measure the time to enqueue 1,000 calls over HTTP, with a server that has 0, 5 and 20 ms of latency.

Run ``python benchmarks/enqueue.py``. Each round measures these contenders in turn:
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

import argparse
import os
import statistics
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

from deferred_middleware import Settings, call, defer, defer_many
from deferred_middleware.config.process import install_settings
from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
from deferred_middleware.enqueue.prepare import prepare

LATENCIES_MS = (0, 5, 20)
CLOUD_TASKS_LATENCIES_MS = (5, 20)
CLOUD_TASKS_GOAL = 50
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


def timed(function: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(count: int, rounds: int) -> dict[str, float]:
    """Return each contender's median time."""
    times: dict[str, list[float]] = {
        name: [] for name in ("older defer", "our defer", "defer_many", "ceiling", "ceiling, plain tasks")
    }
    loops = [("older defer", older), ("our defer", ours)]
    for number in range(rounds):
        for name, loop in loops if number % 2 else loops[::-1]:
            times[name].append(timed(lambda loop=loop: loop(count)))  # type: ignore[misc] # of a default
        many(count)
        for turn in range(TURNS):
            same, plain = same_tasks(count), plain_tasks(count)
            short: list[tuple[str, Callable[[], object]]] = [
                ("defer_many", lambda: many(count)),
                ("ceiling", lambda same=same: ceiling(same)),  # type: ignore[misc] # of a default
                ("ceiling, plain tasks", lambda plain=plain: ceiling(plain)),  # type: ignore[misc] # of a default
            ]
            for name, contender in short[turn % 3 :] + short[: turn % 3]:
                times[name].append(timed(contender))
    return {name: statistics.median(values) for name, values in times.items()}


def measure_cloud_tasks(count: int, rounds: int, address: str) -> dict[str, float]:
    """Return the median time of each way to enqueue in Cloud Tasks."""
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
            times["create_task"].append(timed(lambda: plain(count)))
            times["our defer"].append(timed(lambda: ours(count)))
            for _turn in range(TURNS):
                times["defer_many"].append(timed(lambda: many(count)))
    finally:
        del os.environ["APPENGINE_USE_CLOUDTASK_PUSH_QUEUE"]
    return {name: statistics.median(values) for name, values in times.items()}


def compare_cloud_tasks(count: int, rounds: int) -> int:
    """Print the rows of Cloud Tasks, and return the number of missed goals."""
    missed = 0
    for latency in CLOUD_TASKS_LATENCIES_MS:
        program = [sys.executable, str(Path(__file__).with_name("cloud_tasks_server.py")), f"--latency-ms={latency}"]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            medians = measure_cloud_tasks(count, rounds, f"127.0.0.1:{server.stdout.readline().strip()}")
            server.stdin.close()
        print(f"{count:,} calls to Cloud Tasks, {latency} ms of latency")
        for name, seconds in medians.items():
            print(f"  {name:20} {seconds * 1000:9.1f} ms   {medians['create_task'] / seconds:7.2f} times")
        faster = medians["create_task"] / medians["defer_many"]
        verdict = "met" if faster >= CLOUD_TASKS_GOAL else "missed"
        missed += faster < CLOUD_TASKS_GOAL
        print(f"  times a loop of create_task: {faster:.2f}, goal {CLOUD_TASKS_GOAL}: {verdict}")
    return missed


def main() -> int:
    """Print the tables, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("app-engine", "cloud-tasks"), help="measure one engine")
    options = parser.parse_args()

    os.environ |= {
        "API_HOST": "127.0.0.1",
        "HTTP_X_APPENGINE_API_TICKET": "ticket",
        "DEFAULT_VERSION_HOSTNAME": "app.example.com",
        "HTTP_HOST": "app.example.com",
        "APPLICATION_ID": "app",
    }
    install_settings(Settings(secret_keys=("0123456789abcdef" * 4,)))  # type: ignore[arg-type]
    missed = 0
    for latency in LATENCIES_MS if options.only != "cloud-tasks" else ():
        program = [sys.executable, str(Path(__file__).with_name("api_server.py")), f"--latency-ms={latency}"]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            os.environ["API_PORT"] = server.stdout.readline().strip()
            stub = default_api_stub.DefaultApiStub()
            apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
            stub.SetUseRequestSecurityTicketForThread(True)
            medians = measure(options.calls, options.rounds)
            server.stdin.close()
        print(f"{options.calls:,} calls, {latency} ms of latency")
        for name, seconds in medians.items():
            print(f"  {name:20} {seconds * 1000:9.1f} ms   {medians['older defer'] / seconds:7.2f} times")
        faster = medians["older defer"] / medians["defer_many"]
        goals = [(medians["ceiling"] / medians["defer_many"], 0.8, "of the ceiling")] if latency else []
        print(f"  of the ceiling with plain tasks: {medians['ceiling, plain tasks'] / medians['defer_many']:.2f}")
        goals += [(faster, {5: 80, 20: 200}[latency], "times the older loop")] if latency else []
        goals.append((medians["older defer"] / medians["our defer"], 0.95, "of the older defer's speed"))
        for value, goal, what in goals:
            verdict = "met" if value >= goal else "missed"
            missed += value < goal
            print(f"  {what}: {value:.2f}, goal {goal}: {verdict}")
    if options.only != "app-engine":
        missed += compare_cloud_tasks(options.calls, options.rounds)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
