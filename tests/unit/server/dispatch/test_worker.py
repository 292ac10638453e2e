"""The thread that delivers a service's tasks over the channel of an app process, whose end it handles."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.delivery import frames
from deferred_middleware.server.delivery.attempt_result import AttemptEvent, ProcessEnd
from deferred_middleware.server.delivery.begun import Begun
from deferred_middleware.server.delivery.channel_socket import ChannelSocket
from deferred_middleware.server.delivery.http_attempt import Deliverer
from deferred_middleware.server.delivery.runners import Permits, TaskRunners
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.delivery.url_attempt import UrlDeliverer
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.planning import Destinations
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.dispatch.worker import Links, ServiceWorker
from deferred_middleware.server.store.records import ClaimedTask
from tests.support.storing import TASK

CONCURRENCY = 2
WAIT_SECONDS = 20.0


class Work:
    """The worker of a service, and what it tells of the attempts."""

    def __init__(self, *, concurrency: int = CONCURRENCY) -> None:
        self.happened = threading.Condition()
        self.begun: list[int] = []
        self.events: list[tuple[str, int]] = []
        self.ends: list[ProcessEnd | None] = []
        self.released: list[ClaimedTask] = []
        self.kill_reasons: list[str] = []
        service = Service(name="default", version="local", host="127.0.0.1", port=1, concurrency=concurrency)
        requests = TaskRequests()
        self.slots = ServiceSlots(concurrency, Quarantine(), lambda: math.inf)
        links = Links(
            requests=requests,
            destinations=Destinations(QueueRegistry(), ServiceDirectory([service])),
            deliverer=Deliverer(requests),
            url_deliverer=UrlDeliverer(),
        )
        self.worker = ServiceWorker(service, self.slots, self, WakeUp(), links)
        self.worker.start()

    def begin(self, task: ClaimedTask, service: Service) -> None:
        """Note a task that is delivered."""
        self.begun.append(task.id)

    def conclude(self, service: Service, events: Sequence[AttemptEvent], end: ProcessEnd | None = None) -> None:
        """Note what has happened."""
        with self.happened:
            self.events += [(event.kind, event.task.id) for event in events]
            self.ends += [end for _event in events]
            self.happened.notify_all()

    def release(self, tasks: Sequence[ClaimedTask]) -> None:
        """Note the tasks that were handed back at the end."""
        with self.happened:
            self.released += tasks
            self.happened.notify_all()

    def assign(self, *ids: int, queue: str = "default", url: str = "/") -> None:
        """Assign tasks."""
        self.worker.assign([dataclasses.replace(TASK, id=one, queue=queue, url=url, body=b"") for one in ids])

    def serve(self, channel: ChannelSocket) -> None:
        """Tell the worker of a process."""
        self.worker.process_serves(channel, self.kill_reasons.append)

    def end(self, channel: ChannelSocket, *, intended: bool = False) -> None:
        """Tell the worker of the end of a process."""
        self.worker.process_ended(channel, ProcessEnd(service="default", number=1, how="ended", intended=intended))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true."""
        until = time.monotonic() + WAIT_SECONDS
        with self.happened:
            while not condition():
                assert time.monotonic() < until, (self.events, self.begun, self.kill_reasons)
                self.happened.wait(0.01)

    def claimable(self, *, ahead: bool) -> int:
        """Return how many tasks of the queue may be claimed."""
        return self.slots.claimable("default", ["default"], {}, ahead=ahead)

    def close(self) -> None:
        """End the worker's thread."""
        self.worker.stop()
        self.worker.cut_off()
        self.worker.join(time.monotonic() + WAIT_SECONDS)


@pytest.fixture
def work() -> Iterator[Work]:
    """A worker without tasks."""
    work = Work()
    yield work
    work.close()


class Process:
    """The other end of a channel, which a test moves by hand."""

    def __init__(self) -> None:
        self.channel = ChannelSocket(CONCURRENCY)
        ends = self.channel.ends
        self.connection: socket.socket = ends.connection.dup()
        self.connection.settimeout(WAIT_SECONDS)
        self.begun = Begun(os.dup(ends.memory))
        ends.close()
        self._reader = frames.FrameReader()
        self.waiting: list[frames.Delivered] = []

    def receive(self, number: int) -> list[frames.Delivered]:
        """Wait for so many deliveries, begin none of them, and return them."""
        while len(self.waiting) < number:
            for kind, content in self._reader.feed(self.connection.recv(100_000)):
                if kind == frames.DELIVER:
                    self.waiting += frames.read_deliver(content)[1]
        found, self.waiting = self.waiting[:number], self.waiting[number:]
        return found

    def begin(self, delivered: frames.Delivered) -> None:
        """Begin a task."""
        self.begun.slots[delivered.number & frames.SLOT_MASK] = time.monotonic()

    def answer(self, *delivered: frames.Delivered, usec: int = 5) -> None:
        """Answer tasks."""
        for one in delivered:
            self.begin(one)
        results = [frames.DeliveryResult(one.number, 200, None, "", usec, None) for one in delivered]
        self.connection.sendall(frames.results_frame(results))


@pytest.fixture
def process(work: Work) -> Iterator[Process]:
    """A process that serves."""
    process = Process()
    work.serve(process.channel)
    yield process
    work.end(process.channel)
    process.connection.close()


def test_without_a_process_tasks_wait(work: Work) -> None:
    """Nothing is claimed or begun while no process serves; the next process gets what waits."""
    assert work.claimable(ahead=True) == 0
    work.assign(1)
    process = Process()
    assert work.begun == []
    work.serve(process.channel)
    process.answer(*process.receive(1))
    work.wait_for(lambda: work.events == [("answered", 1)] and not work.slots.running())
    assert work.claimable(ahead=True) == CONCURRENCY
    process.connection.close()
    work.end(process.channel)


def test_only_short_tasks_go_ahead(work: Work, process: Process) -> None:
    """Until tasks are known to be short, a process gets no more of them than it may run at a time."""
    work.assign(*range(100))
    assert [delivered.is_first for delivered in process.receive(CONCURRENCY)] == [True] * CONCURRENCY
    process.connection.settimeout(0.1)
    with pytest.raises(TimeoutError):
        process.receive(1)


def test_short_tasks_go_ahead(work: Work, process: Process) -> None:
    """When tasks are short, a process gets more than it may run at a time, and they all end."""
    work.assign(*range(300))
    ahead = 0
    for _ in range(300):
        (delivered,) = process.receive(1)
        ahead += not delivered.is_first
        process.answer(delivered)
    work.wait_for(lambda: len(work.events) == 300)
    assert ahead > 100
    assert sorted(work.begun) == list(range(300))
    work.wait_for(lambda: not work.slots.running())
    assert work.slots.occupied == 0
    assert work.claimable(ahead=True) == 32 * CONCURRENCY
    assert work.claimable(ahead=False) == CONCURRENCY


def test_short_tasks_are_claimed_when_half_of_them_are_left(work: Work, process: Process) -> None:
    """Short tasks are claimed again only when at most half of the previous ones are left, so that claims are large."""
    work.assign(*range(100))
    for _ in range(100):
        process.answer(*process.receive(1))
    work.wait_for(lambda: len(work.events) == 100 and not work.slots.running())
    work.slots.suspend(True)
    half = 16 * CONCURRENCY
    work.assign(*range(half))
    work.slots.suspend(False)
    assert work.claimable(ahead=True) == half
    work.assign(half + 1)
    assert work.claimable(ahead=True) == 0


def test_a_death_is_only_about_what_had_begun(work: Work, process: Process) -> None:
    """Of the tasks that a process had when it died, the one that had begun is told; the other one goes elsewhere."""
    work.assign(1, 2)
    first, second = process.receive(2)
    process.begin(first)
    process.connection.close()
    work.end(process.channel)
    work.wait_for(lambda: len(work.events) == 2)
    assert work.events == [("died", 1), ("handed back", 2)]
    assert work.ends[0] is not None
    other = Process()
    work.serve(other.channel)
    other.answer(*other.receive(1))
    work.wait_for(lambda: work.events[2:] == [("answered", 2)])
    assert second.number != first.number
    other.connection.close()
    work.end(other.channel)


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        (lambda process, first: process.connection.sendall(b"\1\4\0"), None),
        (lambda process, first: process.connection.sendall(b"\x09\4\0\0\0\0"), "version 9"),
        (lambda process, first: process.connection.sendall(b"\1\4\xff\0\0\0"), "was announced"),
        (lambda process, first: process.answer(first, first), "twice"),
        (lambda process, first: (process.answer(first), process.answer(first)), "doesn't have any more"),
        (lambda process, first: process.answer(first._replace(number=77 << 16)), "never given"),
        (lambda process, first: process.connection.sendall(frames.frame(frames.DELIVER, b"")), "only the queue"),
    ],
)
def test_a_process_that_breaks_the_rules_is_ended(
    work: Work, process: Process, misbehave: Callable[[Process, frames.Delivered], object], reason: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A bad message ends the process, the log says why, and each of its tasks has one end and runs again."""
    work.assign(1, 2)
    first, second = process.receive(2)
    process.begin(second)
    misbehave(process, first)
    if reason is None:
        process.connection.shutdown(socket.SHUT_WR)
        reason = "cut off"
    work.wait_for(lambda: bool(work.kill_reasons))
    assert reason in work.kill_reasons[0]
    assert f"The app process of service 'default' is ended: {work.kill_reasons[0]}." in caplog.text
    assert work.claimable(ahead=True) == 0
    work.end(process.channel)
    work.wait_for(lambda: len(work.events) == 2)
    assert sorted(number for _kind, number in work.events) == [1, 2]
    assert {number: kind for kind, number in work.events}[2] == "died"


def test_an_end_of_the_channel_without_an_end_of_the_process(
    work: Work, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that closes its end of the channel and goes on is ended after a while."""
    monkeypatch.setattr("deferred_middleware.server.dispatch.worker._PATIENCE_AFTER_EOF_SECONDS", 0.05)
    work.assign(1)
    process.receive(1)
    process.connection.close()
    work.wait_for(lambda: bool(work.kill_reasons))
    assert "closed its end" in work.kill_reasons[0]


def test_a_stop_asks_back_what_has_not_begun(work: Work, process: Process) -> None:
    """At a stop, deliveries that have not begun are released; what runs is awaited."""
    work.assign(1, 2, 3)
    first, second = process.receive(2)
    process.begin(first)
    assert [task.id for task in work.worker.stop()] == [3]
    process.connection.sendall(frames.handed_back_frame([second.number]))
    work.wait_for(lambda: [task.id for task in work.released] == [2])
    assert work.worker._thread.is_alive()
    process.answer(first)
    work.worker.join(time.monotonic() + WAIT_SECONDS)
    assert not work.worker._thread.is_alive()
    assert ("answered", 1) in work.events


def test_a_task_that_is_no_request_fails_alone(work: Work, process: Process) -> None:
    """A task that gives no valid request ends with a reason, and the tasks behind it run."""
    work.assign(1, url="/a b")
    work.assign(2)
    process.answer(*process.receive(1))
    work.wait_for(lambda: len(work.events) == 2)
    assert work.events == [("answered", 1), ("answered", 2)]


def test_a_large_task_does_not_hold_up_small_ones() -> None:
    """Small tasks run while the body of a large one is on its way."""
    work = Work()
    channel = ChannelSocket(CONCURRENCY)
    order: list[str] = []

    def app(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
        order.append(str(environ["PATH_INFO"]))
        start_response("200 OK", [])
        return []

    ends = channel.ends
    runners = TaskRunners(
        app, ends.connection.dup(), Begun(os.dup(ends.memory)), permits=Permits(8), environ={}, on_failure=lambda: None
    )
    ends.close()
    large = dataclasses.replace(TASK, id=1, url="/large", body=bytes(32 << 20))
    work.worker.assign([large, dataclasses.replace(TASK, id=2, url="/small")])
    work.serve(channel)
    runners.start()
    work.wait_for(lambda: len(work.events) == 2)
    assert order == ["/small", "/large"]
    work.close()
    channel.close()
