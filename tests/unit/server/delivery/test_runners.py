"""The app process's end of the channel: which tasks run when, in which thread, and how their results are sent."""

from __future__ import annotations

import collections
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

from deferred_middleware.server.delivery import frames
from deferred_middleware.server.delivery.begun import ENDED, NOT_BEGUN, SUCCEEDED, Begun, open_memory
from deferred_middleware.server.delivery.frames import DeliveryResult
from deferred_middleware.server.delivery.runners import GATHERED, Permits, TaskRunners

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

WAIT_SECONDS = 20.0
SLOTS = 600


class Queue:
    """The queue process's end: it sends deliveries as bytes, and collects what comes back."""

    def __init__(self, app: WSGIApplication, *, permits: int = 8) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(WAIT_SECONDS)
        memory = open_memory(SLOTS)
        self.begun = Begun(os.dup(memory))
        self.failures: list[None] = []
        environ = {"SERVER_NAME": "localhost", "SERVER_PORT": "1", "SERVER_SOFTWARE": "test"}
        self._theirs = theirs
        self.runners = TaskRunners(
            app,
            theirs,
            Begun(memory),
            permits=Permits(permits),
            environ=environ,
            on_failure=lambda: self.failures.append(None),
        )
        self._reader = frames.FrameReader()
        self._messages: collections.deque[tuple[int, bytes]] = collections.deque()
        self.runners.start()

    def deliver(
        self,
        *numbers: int,
        limit: int = 6,
        first: bool = True,
        path: str = "/",
        method: str = "POST",
        body: bytes = b"",
    ) -> None:
        """Deliver tasks in one message. Their numbers are also their slots."""
        environ = {
            "REQUEST_METHOD": method,
            "REQUEST_URI": path,
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "CONTENT_LENGTH": str(len(body)),
        }
        message = [(number, first, environ, body) for number in numbers]
        self.connection.sendall(frames.deliver_frame(limit, message))

    def next(self) -> tuple[int, bytes]:
        """Wait for the next message."""
        while not self._messages:
            data = self.connection.recv(1 << 20)
            assert data
            self._messages += self._reader.feed(data)
        return self._messages.popleft()

    def results(self, number: int) -> list[DeliveryResult]:
        """Wait for so many results."""
        found: list[DeliveryResult] = []
        while len(found) < number:
            kind, content = self.next()
            assert kind == frames.RESULTS
            found += frames.read_results(content)
        return found

    def handed_back(self) -> list[int]:
        """Wait for what is handed back."""
        kind, content = self.next()
        assert kind == frames.HANDED_BACK
        return frames.read_handed_back(content)

    def withdraw(self, what: bytes = frames.WITHDRAW_ALL) -> None:
        """Ask back what has not begun."""
        self.connection.sendall(frames.frame(frames.WITHDRAW, what))

    def close(self) -> None:
        """Close the channel."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


@pytest.fixture
def queue() -> Iterator[Callable[..., Queue]]:
    """Return a function that runs an app until the end of the test."""
    made: list[Queue] = []

    def run(app: WSGIApplication, **options: Any) -> Queue:
        made.append(Queue(app, **options))
        return made[-1]

    yield run
    for one in made:
        one.close()


def answering(handle: Callable[[WSGIEnvironment], object]) -> WSGIApplication:
    """Return an app that calls ``handle`` and answers 200."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        handle(environ)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []

    return app


class Held:
    """An app whose tasks wait to be let on; it counts those that run."""

    def __init__(self) -> None:
        self.began: threading.Semaphore = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.running = self.most = 0
        self._lock = threading.Lock()
        self.app = answering(self.run)

    def run(self, environ: WSGIEnvironment) -> None:
        """Run a task."""
        if environ["PATH_INFO"] == "/quick":
            return
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.began.release()
        assert self.may_end.acquire(timeout=WAIT_SECONDS)
        with self._lock:
            self.running -= 1

    def wait(self, number: int) -> None:
        """Wait until so many tasks have begun."""
        for _ in range(number):
            assert self.began.acquire(timeout=WAIT_SECONDS)


def test_the_app_gets_a_valid_environment(queue: Callable[..., Queue]) -> None:
    """The environment passes the validator, and the body can be read."""
    bodies: list[bytes] = []
    app = validator(answering(lambda environ: bodies.append(environ["wsgi.input"].read(5))))
    held = queue(app)
    held.deliver(1, body=b"hello")
    (result,) = held.results(1)
    assert (result.number, result.status, bodies) == (1, 200, [b"hello"])


def test_short_tasks_run_one_after_another_in_one_thread(queue: Callable[..., Queue]) -> None:
    """Short tasks take no hand-over between threads, and their results share messages."""
    threads: collections.Counter[int] = collections.Counter()
    channel = queue(answering(lambda environ: threads.update([threading.get_ident()])))
    channel.deliver(*range(500), first=False)
    messages: list[int] = []
    while sum(messages) < 500:
        kind, content = channel.next()
        assert kind == frames.RESULTS
        messages.append(len(frames.read_results(content)))
    # Another thread may add results while one is about to send them.
    assert max(messages) <= 2 * GATHERED
    assert len(messages) < 250
    # Other programs may hold this one up, which looks like a task that waits.
    assert threads.most_common(1)[0][1] > 250


def test_waiting_tasks_run_at_the_same_time(queue: Callable[..., Queue]) -> None:
    """As soon as tasks wait, more threads run them, up to the limit and no more."""
    held = Held()
    channel = queue(held.app)
    channel.deliver(*range(10), limit=4, first=False)
    held.wait(4)
    assert not held.began.acquire(timeout=0.1)
    for _ in range(10):
        held.may_end.release()
    assert {result.number for result in channel.results(10)} == set(range(10))
    assert held.most == 4


def test_tasks_that_wait_for_a_millisecond_run_at_the_same_time(queue: Callable[..., Queue]) -> None:
    """Tasks that are short but wait, such as for a network, don't wait for each other."""
    channel = queue(answering(lambda environ: time.sleep(0.001)))
    began = time.monotonic()
    channel.deliver(*range(SLOTS), first=False)
    channel.results(SLOTS)
    # One after another they would take 0.6 s at least.
    assert time.monotonic() - began < 0.45


def test_a_task_with_a_place_does_not_wait_for_those_ahead(queue: Callable[..., Queue]) -> None:
    """What was delivered ahead begins after what has a place to run."""
    held = Held()
    order: list[str] = []

    def run(environ: WSGIEnvironment) -> None:
        order.append(environ["PATH_INFO"])
        held.run(environ)

    channel = queue(answering(run))
    channel.deliver(0, limit=1, path="/running")
    held.wait(1)
    channel.deliver(1, 2, limit=1, first=False, path="/ahead")
    channel.deliver(3, limit=1, path="/first")
    channel.deliver(4, limit=1, path="/last", body=bytes(10))
    for _ in range(5):
        held.may_end.release()
    channel.results(5)
    assert order == ["/running", "/first", "/last", "/ahead", "/ahead"]


def test_a_result_does_not_wait_for_a_long_task(queue: Callable[..., Queue]) -> None:
    """A gathered result is sent although its thread runs the next, long task."""
    held = Held()
    channel = queue(held.app)
    channel.deliver(1, path="/quick")
    channel.deliver(2)
    assert [result.number for result in channel.results(1)] == [1]
    held.may_end.release()
    assert [result.number for result in channel.results(1)] == [2]


def test_what_has_begun_and_ended_is_known(queue: Callable[..., Queue]) -> None:
    """The shared memory has the time of each begin, and afterwards whether the task succeeded."""
    held = Held()
    channel = queue(held.app)
    before = time.monotonic()
    channel.deliver(1, 2, limit=1)
    held.wait(1)
    slots = channel.begun.slots
    assert before <= slots[1] <= time.monotonic()
    assert slots[2] == NOT_BEGUN
    held.may_end.release()
    held.may_end.release()
    channel.results(2)
    assert (slots[1], slots[2]) == (SUCCEEDED, SUCCEEDED)


@pytest.mark.parametrize(("status", "outcome"), [("500 Oh", None), ("200 OK", "permanent-failure")])
def test_another_end_is_no_success(queue: Callable[..., Queue], status: str, outcome: str | None) -> None:
    """Only a plain success is noted as such in the shared memory."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, [("X-Deferred-Outcome", outcome)] if outcome else [])
        return [b"why"]

    channel = queue(app)
    channel.deliver(1)
    (result,) = channel.results(1)
    assert (result.status, result.outcome, result.excerpt) == (int(status[:3]), outcome, "why")
    assert channel.begun.slots[1] == ENDED


def test_what_has_not_begun_is_handed_back(queue: Callable[..., Queue]) -> None:
    """A withdrawal is answered while all threads are busy; what runs is finished."""
    held = Held()
    channel = queue(held.app)
    channel.deliver(1, 2, 3, 4, limit=2)
    channel.deliver(5, 6, limit=2, first=False)
    held.wait(2)
    channel.withdraw(frames.WITHDRAW_AHEAD)
    assert sorted(channel.handed_back()) == [5, 6]
    channel.withdraw()
    assert sorted(channel.handed_back()) == [3, 4]
    channel.withdraw()
    assert channel.handed_back() == []
    held.may_end.release()
    held.may_end.release()
    assert {result.number for result in channel.results(2)} == {1, 2}


def test_a_large_body_does_not_hold_up_small_tasks(queue: Callable[..., Queue]) -> None:
    """While a body arrives in parts, other tasks run; the parts become one body."""
    bodies: dict[str, bytes] = {}
    channel = queue(answering(lambda environ: bodies.update({environ["PATH_INFO"]: environ["wsgi.input"].read()})))
    large = os.urandom(32 << 20)
    channel.deliver(1, path="/large", body=large)
    parts = list(frames.body_frames(1, large))
    for head, part in parts[:-1]:
        channel.connection.sendall(head)
        channel.connection.sendall(part)
    channel.deliver(2, path="/small", body=b"small")
    assert [result.number for result in channel.results(1)] == [2]
    channel.connection.sendall(parts[-1][0] + bytes(parts[-1][1]))
    assert [result.number for result in channel.results(1)] == [1]
    assert bodies == {"/small": b"small", "/large": large}


def test_a_part_for_a_task_that_was_handed_back_is_ignored(queue: Callable[..., Queue]) -> None:
    """Parts that were on their way when a task was handed back change nothing."""
    channel = queue(answering(lambda environ: None))
    body = bytes(600_000)
    channel.deliver(1, body=body)
    channel.withdraw()
    assert channel.handed_back() == [1]
    for head, part in frames.body_frames(1, body):
        channel.connection.sendall(head + bytes(part))
    channel.deliver(2)
    assert [result.number for result in channel.results(1)] == [2]


def test_a_stop_finishes_what_runs_and_hands_back_the_rest(queue: Callable[..., Queue]) -> None:
    """After a stop nothing begins any more, and running tasks end."""
    held = Held()
    channel = queue(held.app)
    channel.deliver(1, 2, limit=1)
    held.wait(1)
    assert channel.runners.is_busy
    channel.runners.request_stop()
    assert channel.handed_back() == [2]
    channel.deliver(3)
    assert channel.handed_back() == [3]
    held.may_end.release()
    assert [result.number for result in channel.results(1)] == [1]
    until = time.monotonic() + WAIT_SECONDS
    while channel.runners.is_busy:
        assert time.monotonic() < until


def test_requests_and_tasks_share_the_permits(queue: Callable[..., Queue]) -> None:
    """A task that can't run yet because of other requests has not begun."""
    held = Held()
    channel = queue(held.app, permits=1)
    channel.deliver(1, 2, limit=2)
    held.wait(1)
    assert not held.began.acquire(timeout=0.05)
    assert channel.begun.slots[2] == NOT_BEGUN
    held.may_end.release()
    held.may_end.release()
    channel.results(2)


@pytest.mark.parametrize(
    "data",
    [
        b"\2\1\0\0\0\0",
        frames.frame(frames.RESULTS, b"[]"),
        frames.frame(frames.DELIVER, b"\0\0\0\1{"),
        frames.frame(frames.BODY, b"1234"),
    ],
)
def test_what_the_queue_process_would_not_send_ends_the_process(
    queue: Callable[..., Queue], data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Another version and other messages are logged, and the process can't go on."""
    channel = queue(answering(lambda environ: None))
    channel.connection.sendall(data)
    until = time.monotonic() + WAIT_SECONDS
    while not channel.failures:
        assert time.monotonic() < until
        time.sleep(0.001)
    assert "The queue process has sent what can't be read" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_process_of_a_task_does_not_answer(queue: Callable[..., Queue]) -> None:
    """A task that forks is answered once, also if its child returns from the app."""
    channel = queue(answering(lambda environ: os.fork()))
    channel.deliver(1)
    assert len(channel.results(1)) == 1
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
    channel.deliver(2, path="/quick")
    assert [result.number for result in channel.results(1)] == [2]
    os.wait()


def test_an_idle_process_sleeps(queue: Callable[..., Queue]) -> None:
    """Without tasks, no thread wakes."""
    channel = queue(answering(lambda environ: None))
    channel.deliver(*range(10))
    channel.results(10)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.02
