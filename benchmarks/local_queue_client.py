"""What benchmarks/local_queue.py has of the package itself: who enqueues, and the HTTP client that delivers."""

from __future__ import annotations

import threading
import time

from google.appengine.api import apiproxy_stub_map
from google.appengine.runtime import default_api_stub
from local_queue_tasks import ping, work

from deferred_middleware import call, defer, defer_many
from deferred_middleware.server.delivery import Deliverer
from deferred_middleware.server.records import ClaimedTask
from deferred_middleware.server.services import Service


def connect() -> None:
    """Have the SDK talk to the server that the environment names."""
    stub = default_api_stub.DefaultApiStub()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    stub.SetUseRequestSecurityTicketForThread(True)


def add(count: int, total: int) -> None:
    """Enqueue one at a time."""
    for number in range(count):
        defer(work, number, total)


def add_many(count: int, total: int) -> None:
    """Enqueue 100 at a time, one RPC after the other as the others do."""
    for start in range(0, count, 100):
        defer_many(call(work, number, total) for number in range(start, min(count, start + 100)))


def ping_once() -> None:
    """Enqueue a task that tells when it began."""
    defer(ping, time.monotonic(), "ping")


def bare(address: str, count: int, *, threads: int) -> float:
    """Return how many requests a second the bare app at ``address`` answers to so many threads."""
    host, _, port = address.removeprefix("http://").partition(":")
    service = Service(name="default", version="local", host=host, port=int(port), concurrency=threads)
    deliverer = Deliverer(delivery_token="none")
    numbers = iter(range(count))
    lock = threading.Lock()

    def send() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            result = deliverer.deliver(_task(number), service, host=host)
            assert result.status == 200, result

    senders = [threading.Thread(target=send) for _ in range(threads)]
    began = time.perf_counter()
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    seconds = time.perf_counter() - began
    deliverer.close()
    return count / seconds


def _task(number: int) -> ClaimedTask:
    """Return a task for the bare app, as large as those that are run."""
    return ClaimedTask(
        id=number, queue="default", name=f"{number:020d}", state="running", eta_usec=1, created_usec=1,
        first_attempt_usec=None, finished_usec=None, method="POST", url="/bare", target="", retry=None,
        dispatch_deadline_usec=None, retry_count=0, execution_count=0, previous_response=None, retry_reason=None,
        headers=(("Content-Type", "application/octet-stream"), ("X-Deferred-Signature", "v1." + "0" * 150)),
        body=bytes(60), claim_token=1,
    )  # fmt: skip
