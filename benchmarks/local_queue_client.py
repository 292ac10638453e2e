"""The parts of benchmarks/local_queue.py that use the package: the enqueues, and the HTTP client for deliveries."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from pathlib import Path

from google.appengine.api import apiproxy_stub_map
from google.appengine.runtime import default_api_stub
from local_queue_tasks import ping, work

from deferred_middleware import call, defer, defer_many
from deferred_middleware.server.apps.spawn import AppProcessConfig, SpawnedApp
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.http_attempt import Deliverer, HttpAttempt
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.dispatch.worker import ServiceWorker
from deferred_middleware.server.store.records import ClaimedTask


def connect() -> None:
    """Connect the SDK to the server that the environment names."""
    stub = default_api_stub.DefaultApiStub()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    stub.SetUseRequestSecurityTicketForThread(True)


def add(count: int, total: int) -> None:
    """Enqueue calls one at a time."""
    for number in range(count):
        defer(work, number, total)


def add_many(count: int, total: int) -> None:
    """Enqueue 100 calls at a time, in one RPC after the other, as the other queues do."""
    for start in range(0, count, 100):
        defer_many(call(work, number, total) for number in range(start, min(count, start + 100)))


def ping_once() -> None:
    """Enqueue a task that reports when it started."""
    defer(ping, time.monotonic(), "ping")


def bare(address: str, count: int, *, threads: int, token: str) -> float:
    """Return how many requests per second the bare app at ``address`` answers to the code that delivers tasks.

    The store is left out. Without the ``token`` of its process, the requests reach the app as those of any client.
    """
    host, _, port = address.removeprefix("http://").partition(":")
    service = Service(name="default", version="local", host=host, port=int(port), concurrency=threads)
    deliverer = Deliverer(delivery_token=token)
    requests = _Requests(deliverer, host)
    worker = ServiceWorker(service, ServiceSlots(threads, Quarantine()), requests, WakeUp())
    tasks = [_task(number) for number in range(count)]
    worker.start()
    began = time.perf_counter()
    worker.assign(tasks)
    for _ in range(count):
        assert requests.over.acquire(timeout=60)
    seconds = time.perf_counter() - began
    worker.stop()
    worker.join(time.monotonic() + 60)
    deliverer.close()
    return count / seconds


def bare_deliveries(place: Path, count: int, *, threads: int) -> float:
    """Return how many deliveries per second the bare app answers, in an app process that is started for it."""
    token = secrets.token_urlsafe(32)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "{}:{}".format(*listener.getsockname())
        app = SpawnedApp(
            AppProcessConfig(
                app="local_queue_app:app",
                directory=place,
                service="default",
                threads=threads + 2,
                listener=listener,
                environ=os.environ,
                delivery_token=token,
                api_ticket="none",
                default_hostname=address,
            )
        )
        with app.process:
            try:
                app.send_config()
                start = app.wait_until_ready()
                assert start.failure is None, start
                return bare(address, count, threads=threads, token=token)
            finally:
                app.process.terminate()


class _Requests:
    """Makes the requests to the bare app in place of attempts. ``over`` counts the answered requests."""

    def __init__(self, deliverer: Deliverer, host: str) -> None:
        self._deliverer = deliverer
        self._host = host
        self.over = threading.Semaphore(0)

    def begin(self, task: ClaimedTask, worker: ServiceWorker) -> _Request:
        return _Request(self, worker, task, self._deliverer.begin(task, worker.service, host=self._host))


class _Request:
    """A request to the bare app, in the form in which the worker sees an attempt."""

    def __init__(self, requests: _Requests, worker: ServiceWorker, task: ClaimedTask, attempt: HttpAttempt) -> None:
        self.task = task
        self._requests = requests
        self._worker = worker
        self._attempt = attempt
        self._began = time.monotonic()

    @property
    def awaited(self) -> int:
        return self._attempt.awaited

    @property
    def deadline(self) -> float:
        return self._attempt.deadline

    def fileno(self) -> int:
        return self._attempt.fileno()

    def proceed(self) -> bool:
        result = self._attempt.proceed()
        if result is None:
            return False
        self._worker.attempt_ended(self.task, time.monotonic() - self._began)
        if result.status == 200:
            self._requests.over.release()
        return True


def _task(number: int) -> ClaimedTask:
    """Return a task for the bare app, of the same size as the tasks that are run."""
    return ClaimedTask(
        id=number, queue="default", name=f"{number:020d}", state="running", eta_usec=1, created_usec=1,
        first_attempt_usec=None, finished_usec=None, method="POST", url="/bare", target="", retry=None,
        dispatch_deadline_usec=None, retry_count=0, execution_count=0, previous_response=None, retry_reason=None,
        headers=(("Content-Type", "application/octet-stream"), ("X-Deferred-Signature", "v1." + "0" * 150)),
        body=bytes(60), claim_token=1,
    )  # fmt: skip
