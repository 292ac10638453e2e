"""The parts of benchmarks/local_queue.py that use the package: the enqueues, and the deliveries to a bare app."""

from __future__ import annotations

import http.client
import math
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from google.appengine.api import apiproxy_stub_map
from google.appengine.runtime import default_api_stub
from local_queue_tasks import ping, work

from deferred_middleware import call, defer, defer_many
from deferred_middleware.server.apps.spawn import AppProcessConfig, SpawnedApp
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.delivery.attempt_result import AttemptEvent, ProcessEnd
from deferred_middleware.server.delivery.channel_socket import ChannelSocket
from deferred_middleware.server.delivery.http_attempt import Deliverer
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.delivery.url_attempt import UrlDeliverer
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.planning import Destinations
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.dispatch.worker import Links, ServiceWorker
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


def bare(address: str, count: int, *, threads: int) -> float:
    """Return how many requests per second the bare app at ``address`` answers over HTTP, as to any client."""
    host, _, port = address.removeprefix("http://").partition(":")
    share = count // threads

    def ask() -> None:
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        for number in range(share):
            connection.request("POST", "/bare", _task(number).body)
            assert connection.getresponse().read() == b""
        connection.close()

    clients = [threading.Thread(target=ask) for _ in range(threads)]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return share * threads / (time.perf_counter() - began)


def bare_deliveries(place: Path, count: int, *, threads: int) -> float:
    """Return how many deliveries per second the bare app answers over the channel, in an app process of its own.

    The store and the scheduler are left out.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        app = SpawnedApp(
            AppProcessConfig(
                app="local_queue_app:app",
                directory=place,
                service="default",
                threads=threads + 2,
                concurrency=threads,
                listener=listener,
                environ=os.environ,
                delivery_token="none",
                api_ticket="none",
                default_hostname=f"{host}:{port}",
            )
        )
        with app.process:
            try:
                app.send_config()
                start = app.wait_until_ready()
                assert start.failure is None, start
                service = Service(name="default", version="local", host=host, port=port, concurrency=threads)
                return _deliver(service, app.channel, count)
            finally:
                app.process.kill()


def _deliver(service: Service, channel: ChannelSocket, count: int) -> float:
    requests, queues = TaskRequests(), QueueRegistry()
    destinations = Destinations(queues, ServiceDirectory([service]))
    links = Links(
        requests=requests,
        destinations=destinations,
        deliverer=Deliverer(requests),
        url_deliverer=UrlDeliverer(),
    )
    attempts = _Attempts(count)
    slots = ServiceSlots(service.concurrency, Quarantine(), lambda: math.inf)
    worker = ServiceWorker(service, slots, attempts, WakeUp(), links)
    tasks = [_task(number) for number in range(count)]
    worker.start()
    worker.process_serves(channel, lambda reason: None)
    began = time.perf_counter()
    worker.assign(tasks)
    assert attempts.over.wait(60)
    seconds = time.perf_counter() - began
    worker.stop()
    worker.join(time.monotonic() + 60)
    channel.close()
    return count / seconds


class _Attempts:
    """Counts the attempts that ended, in place of what writes their results."""

    def __init__(self, total: int) -> None:
        self.over = threading.Event()
        self._left = total

    def begin(self, task: ClaimedTask, service: Service) -> None:
        """Do nothing."""

    def conclude(self, service: Service, events: Sequence[AttemptEvent], end: ProcessEnd | None = None) -> None:
        """Count what was answered."""
        for event in events:
            if event.kind == "answered":
                assert event.result is not None
                assert event.result.status == 200
                self._left -= 1
        if not self._left:
            self.over.set()

    def release(self, tasks: Sequence[ClaimedTask]) -> None:
        """Do nothing."""


def _task(number: int) -> ClaimedTask:
    """Return a task for the bare app, of the same size as the tasks that are run."""
    return ClaimedTask(
        id=number, queue="default", name=f"{number:020d}", state="running", eta_usec=1, created_usec=1,
        first_attempt_usec=None, finished_usec=None, method="POST", url="/bare", target="", retry=None,
        dispatch_deadline_usec=None, retry_count=0, execution_count=0, previous_response=None, retry_reason=None,
        headers=(("Content-Type", "application/octet-stream"), ("X-Deferred-Signature", "v1." + "0" * 150)),
        body=bytes(60), claim_token=1,
    )  # fmt: skip
