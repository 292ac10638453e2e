"""The queues that benchmarks/local_queue.py measures, each with its own processes."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from local_queue_tasks import ping, work

HERE = Path(__file__).parent
THREADS = 6
_WAIT_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Contender:
    """A queue with its processes, which use ``directory``. It will run ``total`` tasks."""

    name = ""

    def __init__(self, directory: Path, total: int) -> None:
        self.directory = directory
        self.total = total
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start to accept tasks without running any."""

    def add(self, count: int) -> None:
        """Enqueue ``count`` tasks one at a time."""
        raise NotImplementedError

    def add_many(self, count: int) -> bool:
        """Enqueue ``count`` tasks 100 at a time. Return whether the queue supports that."""
        return False

    def run(self) -> None:
        """Start to run tasks."""

    def ping(self) -> None:
        """Enqueue a task that reports when it started."""
        raise NotImplementedError

    def launch(self, *command: str, **environ: str) -> None:
        """Start a process of the queue."""
        process = subprocess.Popen(
            command,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", **environ},
            stdin=subprocess.DEVNULL,
            stdout=(self.directory / "output").open("ab"),
            stderr=subprocess.STDOUT,
        )
        self.processes.append(process)

    def stop(self) -> None:
        """End all processes."""
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def output(self) -> str:
        """Return the end of the processes' output."""
        return (self.directory / "output").read_text()[-5000:]

    def cpu_seconds(self) -> float:
        """Return the CPU time of the processes and their descendants so far."""
        total = 0.0
        for pid in _family([process.pid for process in self.processes]):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS
        return total


class Ours(Contender):
    """``deferred-middleware serve``, with the SDK's client in this process."""

    name = "deferred_middleware"

    def start(self) -> None:
        """Start the server and pause its queue."""
        ready = self.directory / "ready.json"
        options = ["--port=0", "--admin-port=0", f"--ready-file={ready}", f"--threads={THREADS + 2}"]
        # Without this, each server would generate another key, and this process reads its own key only once.
        os.environ.setdefault("DEFERRED_SECRET_KEYS", secrets.token_urlsafe(48))
        self.launch(sys.executable, "-m", "deferred_middleware", "serve", "local_queue_app:app", *options)
        wait_for(ready.exists)
        told = json.loads(ready.read_text())
        self._address, self._admin = told["services"]["default"], told["admin"]
        with urllib.request.urlopen(self._address) as response:
            environ = json.load(response)
        for name, value in environ.items():
            if name.startswith(("API_", "GAE_", "HTTP_X_")) or name in ("APPLICATION_ID", "DEFAULT_VERSION_HOSTNAME"):
                os.environ[name] = value
        os.environ["HTTP_HOST"] = environ["DEFAULT_VERSION_HOSTNAME"]
        # The package reads the environment when it is imported.
        self._client: Any = importlib.import_module("local_queue_client")
        self._client.connect()
        self.pause()

    def add(self, count: int) -> None:
        """Enqueue with ``defer``."""
        self._client.add(count, self.total)

    def add_many(self, count: int) -> bool:
        """Enqueue with ``defer_many``."""
        self._client.add_many(count, self.total)
        return True

    def run(self) -> None:
        """Resume the queue."""
        self._command("resume")

    def ping(self) -> None:
        """Enqueue with ``defer``."""
        self._client.ping_once()

    def pause(self) -> None:
        """Pause the queue."""
        self._command("pause")

    def addresses(self) -> list[tuple[str, int]]:
        """Return where the app and the queue process accept connections."""
        urls = [urllib.parse.urlsplit(url) for url in (self._address, self._admin)]
        return [(url.hostname or "", url.port or 0) for url in urls]

    def bare(self, count: int) -> float:
        """Return how many requests per second the bare app answers over HTTP, as to any client."""
        requests_per_second: float = self._client.bare(self._address, count, threads=THREADS)
        return requests_per_second

    def bare_deliveries(self, count: int) -> float:
        """Return how many deliveries per second the bare app answers over the channel: the ceiling."""
        requests_per_second: float = self._client.bare_deliveries(HERE, count, threads=THREADS)
        return requests_per_second

    def _command(self, verb: str) -> None:
        command = [sys.executable, "-m", "deferred_middleware", verb, "default"]
        subprocess.run(command, cwd=self.directory, check=True, stdout=subprocess.DEVNULL)


class HueyQueue(Contender):
    """Huey's consumer on a SQLite file, with ``fsync=True``. A task that it has taken is no longer in the file."""

    name = "Huey, SqliteHuey(fsync=True)"

    def start(self) -> None:
        """Create the file."""
        os.environ["LOCAL_QUEUE_HUEY"] = str(self.directory / "huey.sqlite")
        # The module creates its queue on import, and each round uses another file.
        sys.modules.pop("local_queue_huey", None)
        self._tasks: Any = importlib.import_module("local_queue_huey")

    def add(self, count: int) -> None:
        """Call the task, which enqueues it."""
        for number in range(count):
            self._tasks.work_task(number, self.total)

    def run(self) -> None:
        """Start the consumer."""
        consumer = [sys.executable, "-m", "huey.bin.huey_consumer", "local_queue_huey.huey"]
        self.launch(*consumer, "--workers", str(THREADS), "--worker-type", "thread", "--quiet")

    def ping(self) -> None:
        """Call the task."""
        self._tasks.ping_task(time.monotonic(), "ping")


class OnRedis(Contender):
    """The common part of the two queues on Redis: their own server, which syncs each write."""

    def start(self) -> None:
        """Start a Redis server."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = os.environ["LOCAL_QUEUE_REDIS"] = f"redis://127.0.0.1:{port}/0"
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self.launch("redis-server", "--bind", "127.0.0.1", "--port", str(port), *durable)
        wait_for(lambda: _accepts(port))


class DramatiqQueue(OnRedis):
    """Dramatiq's workers on Redis: one process with threads."""

    name = "Dramatiq, Redis (appendfsync always)"

    def start(self) -> None:
        """Start a Redis server, and create the actors."""
        super().start()
        sys.modules.pop("local_queue_dramatiq", None)
        self._actors: Any = importlib.import_module("local_queue_dramatiq")

    def add(self, count: int) -> None:
        """Send messages."""
        for number in range(count):
            self._actors.work_actor.send(number, self.total)

    def run(self) -> None:
        """Start the workers."""
        workers = [sys.executable, "-m", "dramatiq", "local_queue_dramatiq"]
        self.launch(*workers, "--processes", "1", "--threads", str(THREADS))

    def ping(self) -> None:
        """Send a message."""
        self._actors.ping_actor.send(time.monotonic(), "ping")


class RqQueue(OnRedis):
    """RQ's simple worker on Redis. It runs one job after the other in one process, and doesn't fork for each job."""

    name = "RQ, Redis (appendfsync always)"

    def start(self) -> None:
        """Start a Redis server, and connect."""
        super().start()
        redis: Any = importlib.import_module("redis")
        self._rq: Any = importlib.import_module("rq")
        self._queue = self._rq.Queue(connection=redis.Redis.from_url(self.url))

    def add(self, count: int) -> None:
        """Enqueue jobs one by one."""
        for number in range(count):
            self._queue.enqueue(work, number, self.total, result_ttl=0)

    def add_many(self, count: int) -> bool:
        """Enqueue 100 jobs in one pipeline."""
        for start in range(0, count, 100):
            numbers = range(start, min(count, start + 100))
            prepared = [
                self._rq.Queue.prepare_data(work, args=(number, self.total), result_ttl=0) for number in numbers
            ]
            self._queue.enqueue_many(prepared)
        return True

    def run(self) -> None:
        """Start a worker."""
        worker = [str(Path(sys.executable).with_name("rq")), "worker", "--url", self.url, "--quiet"]
        self.launch(*worker, "--worker-class", "rq.worker.SimpleWorker")

    def ping(self) -> None:
        """Enqueue one job."""
        self._queue.enqueue(ping, time.monotonic(), "ping", result_ttl=0)


def found() -> tuple[list[type[Contender]], dict[str, str]]:
    """Return the contenders that can run on this machine, and the names of the others with the reason."""
    contenders: list[type[Contender]] = [Ours]
    missing: dict[str, str] = {}
    for kind, modules, programs in (
        (HueyQueue, ("huey",), ()),
        (DramatiqQueue, ("dramatiq", "redis"), ("redis-server",)),
        (RqQueue, ("rq", "redis"), ("redis-server",)),
    ):
        lacking = [name for name in modules if find_spec(name) is None]
        lacking += [name for name in programs if shutil.which(name) is None]
        if lacking:
            missing[kind.name] = f"{' and '.join(lacking)} not installed"
        else:
            contenders.append(kind)
    return contenders, missing


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` is true."""
    until = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not so after {_WAIT_SECONDS} s")
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _family(pids: Iterable[int]) -> list[int]:
    """Return processes and all their descendants."""
    everybody = list(pids)
    for pid in everybody:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            everybody += map(int, children.read_text().split())
    return everybody
