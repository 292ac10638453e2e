"""Attempts of tasks over HTTP, for services whose apps run elsewhere. ``http.client`` speaks to them.

Each attempt runs in a thread of its own, which waits for the response however long it takes. The dispatch deadline is
watched from outside (:meth:`HttpAttempts.proceed`): it decides the attempt's result, and the end of the handler is
awaited all the same. An attempt must count exactly if the service got it, so a connection that the service closed while
it was idle is not used again.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.attempt_result import (
    EXCERPT_BYTES,
    AttemptEvent,
    AttemptResult,
    cut_off,
    redirect_reason,
)
from deferred_middleware.server.delivery.channel import AheadBudget, ToDeliver
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.store.records import ClaimedTask
from deferred_middleware.wire import protocol

logger: Final = get_logger(__name__)

# Servers close idle connections: waitress after 120 s, gunicorn after 2 s. Close ours long before that, so that no
# request is sent while the service closes the connection.
_IDLE_SECONDS = 0.5
_READ_BYTES = 64 * 1024


class Deliverer:
    """Sends tasks to services that run elsewhere, over persistent connections. ``requests`` makes the requests."""

    def __init__(self, requests: TaskRequests) -> None:
        self.requests = requests
        # Guards the other three.
        self._lock = threading.Lock()
        self._busy: set[socket.socket] = set()
        # Keyed by the service's address, each with the time since when it is idle; the last one is used next.
        self._idle: dict[str, list[tuple[http.client.HTTPConnection, float]]] = {}
        self._closed = False

    def close(self) -> None:
        """Close all connections. Running attempts end without a response."""
        with self._lock:
            self._closed = True
            for busy in self._busy:
                shut_down(busy)
            for idle in self._idle.values():
                for connection, _since in idle:
                    connection.close()
            self._idle.clear()

    @property
    def is_closed(self) -> bool:
        """Whether no attempt begins any more."""
        with self._lock:
            return self._closed

    def connect(self, service: Service, timeout_seconds: float) -> http.client.HTTPConnection:
        """Return a usable connection to a service, idle or new. The caller has to end its use."""
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the server is stopping")
            idle = self._idle.get(service.address, [])
            found = None
            while idle and found is None:
                connection, since = idle.pop()
                if time.monotonic() - since <= _IDLE_SECONDS and not _is_readable(connection.sock):
                    found = connection
                else:
                    connection.close()
        if found is None:
            found = http.client.HTTPConnection(service.host.strip("[]"), service.port, timeout=timeout_seconds)
            found.connect()
        with self._lock:
            self._busy.add(found.sock)
        if self.is_closed:
            shut_down(found.sock)
        return found

    def end_use(
        self, connection: http.client.HTTPConnection, used: socket.socket, service: Service, *, keep: bool
    ) -> None:
        """Take back a connection, whose socket is ``used``; keep it for the next attempt, or close it."""
        with self._lock:
            self._busy.discard(used)
            if keep and connection.sock is used and not self._closed:
                self._idle.setdefault(service.address, []).append((connection, time.monotonic()))
                return
        connection.close()


class HttpAttempt:
    """An attempt at a service: :meth:`run` makes it, in one thread, and :meth:`cut_off` may interrupt it in another."""

    def __init__(self, deliverer: Deliverer, task: ClaimedTask, service: Service, host: str) -> None:
        self.task = task
        self._deliverer = deliverer
        self._service = service
        self._host = host
        seconds: float = protocol.DEFAULT_DISPATCH_DEADLINE_SECONDS
        if task.dispatch_deadline_usec is not None:
            seconds = task.dispatch_deadline_usec / 1e6
        self._deadline_seconds = seconds
        self._began = time.monotonic()
        self.deadline: float = self._began + seconds
        self._socket: socket.socket | None = None
        self._is_sent = False
        self._is_overdue = False

    def run(self) -> AttemptEvent:
        """Send the task, read the response to its end, and return what has happened."""
        reason: str | None = None
        broken_off = False
        try:
            return AttemptEvent("answered", self.task, self._exchange())
        except TimeoutError:
            self._is_overdue = True
        except http.client.RemoteDisconnected:
            reason = "the service closed the connection without a response"
            broken_off = True
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, ConnectionRefusedError):
                reason = f"nothing answers at {self._service.url}; is the app running there?"
            broken_off = isinstance(error, ConnectionResetError | BrokenPipeError | http.client.IncompleteRead)
        if self._is_overdue:
            return AttemptEvent("answered", self.task, cut_off(self._deadline_seconds, self._duration_usec()))
        result = AttemptResult(status=None, duration_usec=self._duration_usec(), reason=reason)
        return AttemptEvent("died" if broken_off else "answered", self.task, result)

    def cut_off(self) -> AttemptEvent | None:
        """End the attempt at its deadline. Return the event if the service has the request, and may still work."""
        if self._is_sent:
            return AttemptEvent("cut off", self.task, cut_off(self._deadline_seconds, self._duration_usec()))
        self._is_overdue = True
        if self._socket is not None:
            shut_down(self._socket)
        return None

    def _exchange(self) -> AttemptResult:
        headers = self._deliverer.requests.headers(self.task, self._service, self._host)
        connection = self._deliverer.connect(self._service, max(0.001, self.deadline - time.monotonic()))
        self._socket = used = connection.sock
        keep = False
        try:
            used.settimeout(max(0.001, self.deadline - time.monotonic()))
            connection.putrequest(self.task.method, self.task.url, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(self.task.body or None)
            self._is_sent = True
            used.settimeout(None)
            with connection.getresponse() as response:
                excerpt = read_to_end(response)
            keep = True
        finally:
            self._deliverer.end_use(connection, used, self._service, keep=keep)
        status = response.status
        return AttemptResult(
            status=status,
            duration_usec=self._duration_usec(),
            reason=redirect_reason(status, response.headers.get("Location")) if 300 <= status < 400 else None,
            outcome=response.headers.get(protocol.OUTCOME_HEADER),
            excerpt=excerpt,
        )

    def _duration_usec(self) -> int:
        return int((time.monotonic() - self._began) * 1e6)


class HttpAttempts:
    """The attempts in flight of one service. ``begin`` returns a new one; ``on_event`` is called by any thread.

    An attempt is an :class:`HttpAttempt`, or a function that makes one and ends at its deadline by itself.
    """

    next_check: float

    def __init__(
        self,
        begin: Callable[[ClaimedTask], HttpAttempt | Callable[[], AttemptEvent]],
        on_event: Callable[[], object],
    ) -> None:
        self._begin = begin
        self._on_event = on_event
        # Any thread appends.
        self._events: deque[AttemptEvent] = deque()
        # Only the thread that owns this object uses these two: the attempts that may have to be cut off, and when to
        # look for them.
        self._in_flight: dict[int, HttpAttempt] = {}
        self.next_check = math.inf
        # The threads that wait for an attempt, each by a queue of its own. Any thread appends and pops.
        self._spare: list[queue.SimpleQueue[Callable[[], AttemptEvent]]] = []

    def ahead_budget(self) -> AheadBudget | None:
        """Return None: each attempt has a request of its own, so nothing is delivered ahead."""
        return None

    def deliver(self, tasks: Sequence[ToDeliver], *, limit: int, now: float) -> list[AttemptEvent]:
        """Begin attempts; return those that have ended at once."""
        failed: list[AttemptEvent] = []
        for one in tasks:
            attempt = self._begin(one.task)
            if isinstance(attempt, HttpAttempt):
                self._in_flight[one.task.id] = attempt
                self.next_check = min(self.next_check, attempt.deadline)
                run: Callable[[], AttemptEvent] = attempt.run
            else:
                run = attempt
            try:
                self._start(run, one.task)
            except RuntimeError as error:
                self._in_flight.pop(one.task.id, None)
                failed.append(_failed(one.task, error))
        return failed

    def not_begun(self) -> list[int]:
        """Return nothing: each delivered task begins at once."""
        return []

    def fileno(self) -> int:
        """Return -1: events are announced by ``on_event``."""
        return -1

    @property
    def awaited(self) -> int:
        """The events of the descriptor to wait for: none."""
        return 0

    def proceed(self, events: list[AttemptEvent], now: float) -> None:
        """Append what has happened to ``events``; cut off the attempts whose deadline has come."""
        while self._events:
            event = self._events.popleft()
            self._in_flight.pop(event.task.id, None)
            events.append(event)
        if now >= self.next_check:
            late = [attempt for attempt in self._in_flight.values() if attempt.deadline <= now]
            for attempt in late:
                # The event of its end follows.
                del self._in_flight[attempt.task.id]
                if (event_now := attempt.cut_off()) is not None:
                    events.append(event_now)
            self.next_check = min((attempt.deadline for attempt in self._in_flight.values()), default=math.inf)

    def _start(self, run: Callable[[], AttemptEvent], task: ClaimedTask) -> None:
        def attempt() -> AttemptEvent:
            try:
                return run()
            except Exception as error:  # a defect here must not keep the task from being retried
                logger.exception("Task %s of queue %s could not be delivered.", task.name, task.queue)
                return _failed(task, error)

        try:
            self._spare.pop().put(attempt)
        except IndexError:
            calls: queue.SimpleQueue[Callable[[], AttemptEvent]] = queue.SimpleQueue()
            threading.Thread(target=self._work, args=(calls,), name="deliver-http", daemon=True).start()
            calls.put(attempt)

    def _work(self, calls: queue.SimpleQueue[Callable[[], AttemptEvent]]) -> None:
        while True:
            self._events.append(calls.get()())
            self._spare.append(calls)
            self._on_event()


def read_to_end(response: http.client.HTTPResponse) -> bytes:
    """Read a response to its end, because an app may still work while it is read; return the beginning of its body.

    Raises :class:`http.client.IncompleteRead` if the connection ends too early.
    """
    excerpt = b""
    while part := response.read1(_READ_BYTES):
        excerpt += part[: EXCERPT_BYTES - len(excerpt)]
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return excerpt


def shut_down(connection: socket.socket) -> None:
    """End a connection while another thread may be using it."""
    # It may be closed already.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _is_readable(connection: socket.socket | None) -> bool:
    """Return whether an idle connection has something to read, such as its end."""
    if connection is None:
        return True
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _failed(task: ClaimedTask, error: Exception) -> AttemptEvent:
    reason = f"{type(error).__name__}: {error}"
    return AttemptEvent("answered", task, AttemptResult(status=None, duration_usec=0, reason=reason))
