"""``kill -9`` of the emulator under load, and many tasks: every acknowledged task runs."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
from google.api_core import exceptions
from google.cloud import tasks_v2

from tests.support.cloud_clients import python_client
from tests.support.emulator import PARENT, Emulator, ask
from tests.support.http_target import HttpTarget, Reply, Seen
from tests.support.killing.forked import Forked

SOAK = bool(os.environ.get("DEFERRED_SOAK"))
KILLS = 300 if SOAK else 10
TASKS = 100_000 if SOAK else 2_000
ADDERS = 3
QUEUE = f"{PARENT}/queues/load"


class Runs:
    """How often each task has run. Some attempts fail, so that tasks are also killed while they wait for a retry."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._chance = random.Random(1)

    def __call__(self, seen: Seen) -> Reply:
        """Count a run."""
        with self._changed:
            self.runs[seen.task] += 1
            self._changed.notify_all()
            return Reply(status=500 if self._chance.random() < 0.1 else 200)

    def wait_for_more(self, number: int) -> None:
        """Wait until ``number`` more runs have happened."""
        with self._changed:
            goal = self.runs.total() + number
            assert self._changed.wait_for(lambda: self.runs.total() >= goal, 60)


class Adder:
    """A thread that creates tasks until the server dies, and lists the names of those that were acknowledged."""

    def __init__(self, prefix: str, address: str, url: str) -> None:
        self.acknowledged: set[str] = set()
        self._prefix = prefix
        self._url = url
        self._client = python_client(address)
        self._enough = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Stop adding."""
        self._enough.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._client.transport.close()  # type: ignore[no-untyped-call]
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            for number in range(1_000_000):
                if self._enough.is_set():
                    return
                names = [f"{self._prefix}-{number}-{each}" for each in range(10 if number % 5 == 0 else 1)]
                self._add(names)
                self.acknowledged.update(names)
        except (exceptions.ServiceUnavailable, exceptions.Unknown, exceptions.InternalServerError, grpc.RpcError):
            return  # the server was killed, and the last call was not acknowledged
        except BaseException as error:  # noqa: BLE001 - the test raises it in its own thread
            self._failure = error

    def _add(self, names: list[str]) -> None:
        tasks = [
            tasks_v2.Task(name=f"{QUEUE}/tasks/{name}", http_request=tasks_v2.HttpRequest(url=self._url))
            for name in names
        ]
        if len(tasks) == 1:
            self._client.create_task(parent=QUEUE, task=tasks[0], retry=None)
            return
        requests = [tasks_v2.CreateTaskRequest(parent=QUEUE, task=task) for task in tasks]
        operation = self._client.batch_create_tasks(
            request=tasks_v2.BatchCreateTasksRequest(parent=QUEUE, requests=requests), retry=None
        )
        assert len(operation.result(timeout=0).tasks) == len(names)  # type: ignore[no-untyped-call]


def wait_until_empty(address: str) -> None:
    """Wait as long as tasks are done. A single request would take longer than the tests let one take."""
    left = None
    while True:
        status, answer = ask(address, "POST", "/emulator/v1/wait", b'{"timeout_seconds": 20}')
        assert status == 200
        if answer["empty"]:
            return
        assert left is None or answer["tasks"] < left
        left = answer["tasks"]


def test_killing_the_emulator(tmp_path: Path) -> None:
    """No acknowledged task is lost, and a task runs again only if it was in flight at a kill or its attempt failed."""
    runs = Runs()
    acknowledged: set[str] = set()
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    emulator = Forked(tmp_path, "emulate", "--port=0", "--admin-port=0", "--history-tasks=1000000", "--no-task-lines")
    with HttpTarget(runs) as target, contextlib.closing(emulator):
        for kill in range(KILLS):
            emulator.start()
            with python_client(emulator.cloud_tasks) as client:
                if kill == 0:
                    retry = {"min_backoff": {"nanos": 1_000_000}, "max_backoff": {"seconds": 1}, "max_attempts": -1}
                    client.create_queue(parent=PARENT, queue=tasks_v2.Queue(name=QUEUE, retry_config=retry))
                assert client.get_queue(name=QUEUE).retry_config.max_attempts == -1
            adders = [Adder(f"{kill}-{number}", emulator.cloud_tasks, target.url) for number in range(ADDERS)]
            runs.wait_for_more(chance.randrange(1, 100))
            time.sleep(chance.random() * 0.05)
            emulator.kill()
            for adder in adders:
                adder.stop()
                acknowledged |= adder.acknowledged
        emulator.start()
        wait_until_empty(emulator.cloud_tasks)
        emulator.stop()
    lost = acknowledged - runs.runs.keys()
    assert not lost, f"with seed {seed}, these were acknowledged and did not run: {sorted(lost)}"
    # With fewer tasks there was no real load, and the test would prove nothing.
    assert len(acknowledged) > 10 * KILLS


def test_many_tasks_by_batches(tmp_path: Path) -> None:
    """Each task of many batches runs once."""
    runs: Counter[str] = Counter()
    lock = threading.Lock()

    def count(seen: Seen) -> Reply:
        with lock:
            runs[seen.task] += 1
        return Reply()

    emulator = Emulator(tmp_path, f"--queue={QUEUE}", "--no-task-lines")
    with HttpTarget(count) as target, contextlib.ExitStack() as stack:
        stack.callback(emulator.discard)
        emulator.start()
        created: set[str] = set()
        with python_client(emulator.cloud_tasks) as client:
            client.pause_queue(name=QUEUE)
            request = tasks_v2.CreateTaskRequest(
                parent=QUEUE, task=tasks_v2.Task(http_request=tasks_v2.HttpRequest(url=target.url, body=b"work"))
            )
            batch = tasks_v2.BatchCreateTasksRequest(parent=QUEUE, requests=[request] * 100)
            for _ in range(TASKS // 100):
                done = client.batch_create_tasks(request=batch).result(timeout=0)  # type: ignore[no-untyped-call]
                created.update(task.name for task in done.tasks)
            assert len(created) == TASKS
            assert {task.name for task in client.list_tasks(parent=QUEUE)} == created
            client.resume_queue(name=QUEUE)
        wait_until_empty(emulator.cloud_tasks)
        assert emulator.stop() == 0
    assert {f"{QUEUE}/tasks/{name}" for name in runs} == created
    assert set(runs.values()) == {1}
