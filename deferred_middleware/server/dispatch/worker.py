"""The thread that delivers the tasks of one service.

It does little but move messages, so one thread serves all attempts of a service. What it delivers over is a
:class:`Link`: the channel to the app process, or HTTP to an app that runs elsewhere.
"""

from __future__ import annotations

import logging
import math
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.attempt_result import AttemptEvent, AttemptResult, ProcessEnd
from deferred_middleware.server.delivery.channel import AheadBudget, ChannelError, ToDeliver
from deferred_middleware.server.delivery.channel_socket import ChannelSocket
from deferred_middleware.server.delivery.http_attempt import Deliverer, HttpAttempt, HttpAttempts
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.delivery.url_attempt import UrlDeliverer
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.planning import Destinations
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.records import ClaimedTask

logger: Final = logging.getLogger(__name__)

_PATIENCE_AFTER_EOF_SECONDS = 10.0  # how long a process may go on after it has closed its end of the channel


class Link(Protocol):
    """A way to deliver tasks. Only the worker's thread uses it, except for :meth:`not_begun`."""

    @property
    def awaited(self) -> int:
        """The events that its descriptor waits for, as :mod:`select` defines them."""

    @property
    def next_check(self) -> float:
        """When to call :meth:`proceed` in any case, by the monotonic clock."""

    def fileno(self) -> int:
        """Return the descriptor that it waits for, -1 if there is none."""

    def ahead_budget(self) -> AheadBudget | None:
        """Return what may be delivered before there is a slot for it."""

    def deliver(self, tasks: Sequence[ToDeliver], *, limit: int, now: float) -> list[AttemptEvent]:
        """Deliver tasks, of which ``limit`` may run at a time; return the events of those that can't be delivered."""

    def proceed(self, events: list[AttemptEvent], now: float) -> None:
        """Do what can be done without waiting, and append what has happened. Raises :class:`ChannelError`."""

    def not_begun(self) -> list[int]:
        """Return the IDs of the delivered tasks that have not begun. Any thread may call it."""


class AttemptFollower(Protocol):
    """Who follows attempts, such as :class:`~deferred_middleware.server.dispatch.attempts.AttemptRunner`."""

    def begin(self, task: ClaimedTask, service: Service) -> None:
        """Take note that a task is being delivered."""

    def conclude(self, service: Service, events: Sequence[AttemptEvent], end: ProcessEnd | None = None) -> None:
        """Take note of what has happened to delivered tasks."""

    def release(self, tasks: Sequence[ClaimedTask]) -> None:
        """Take over tasks that were handed back when no more attempts begin."""


class ChannelLink:
    """The channel to an app process. ``environ_of`` returns the environment of a task's request."""

    def __init__(self, channel: ChannelSocket, environ_of: Callable[[ClaimedTask], dict[str, str]]) -> None:
        self.channel = channel
        self._environ_of = environ_of
        self.fileno: Callable[[], int] = channel.fileno
        self.ahead_budget: Callable[[], AheadBudget | None] = channel.ahead_budget
        self.proceed: Callable[[list[AttemptEvent], float], None] = channel.proceed
        self.not_begun: Callable[[], list[int]] = channel.not_begun

    @property
    def awaited(self) -> int:
        """The events that the socket waits for."""
        return self.channel.awaited

    @property
    def next_check(self) -> float:
        """When to look at the deliveries in any case."""
        return self.channel.next_check

    def deliver(self, tasks: Sequence[ToDeliver], *, limit: int, now: float) -> list[AttemptEvent]:
        """Deliver tasks; return the events of those that give no valid request."""
        failed: list[AttemptEvent] = []
        delivered = []
        for one in tasks:
            try:
                delivered.append((one, self._environ_of(one.task)))
            except Exception as error:
                if not isinstance(error, ValueError):
                    logger.exception("Task %s of queue %s could not be delivered.", one.task.name, one.task.queue)
                reason = f"{type(error).__name__}: {error}"
                result = AttemptResult(status=None, duration_usec=0, reason=reason)
                failed.append(AttemptEvent("answered", one.task, result))
        if delivered:
            self.channel.deliver(delivered, limit=limit, now=now)
        return failed


class Links:
    """Makes the links. Tasks are sent to their ``destinations``; ``requests`` makes their requests.

    ``deliverer`` sends those for services that run elsewhere, and ``url_deliverer`` those that have complete URLs.
    """

    def __init__(
        self, *, requests: TaskRequests, destinations: Destinations, deliverer: Deliverer, url_deliverer: UrlDeliverer
    ) -> None:
        self._requests = requests
        self._destinations = destinations
        self._deliverer = deliverer
        self._url_deliverer = url_deliverer

    def to_process(self, service: Service, channel: ChannelSocket) -> Link:
        """Return the link to an app process."""
        return ChannelLink(
            channel, lambda task: self._requests.environ(task, service, self._destinations.host_of(task))
        )

    def to_elsewhere(self, service: Service, on_event: Callable[[], object]) -> Link:
        """Return the link to a service that runs elsewhere; ``on_event`` is called when it has something to say."""

        def begin(task: ClaimedTask) -> HttpAttempt | Callable[[], AttemptEvent]:
            if task.is_http:
                return lambda: AttemptEvent("answered", task, self._url_deliverer.deliver(task))
            return HttpAttempt(self._deliverer, task, service, self._destinations.host_of(task))

        return HttpAttempts(begin, on_event)

    def close(self) -> None:
        """Close the connections to services that run elsewhere."""
        self._deliverer.close()
        self._url_deliverer.close()


class LinkMaker(Protocol):
    """What makes a worker's links, such as :class:`Links`."""

    def to_process(self, service: Service, channel: ChannelSocket) -> Link:
        """Return the link to an app process."""

    def to_elsewhere(self, service: Service, on_event: Callable[[], object]) -> Link:
        """Return the link to a service that runs elsewhere; ``on_event`` is called when it has something to say."""


class ServiceWorker:
    """Delivers the tasks of ``service`` that get a slot of ``slots``; ``runner`` follows the attempts.

    It wakes the scheduler by ``wake_up`` when it can take more tasks than it has. ``links`` makes its links. A service
    that runs here has one while its process serves, which
    :class:`~deferred_middleware.server.apps.process.AppProcess` tells.
    """

    def __init__(
        self,
        service: Service,
        slots: ServiceSlots,
        runner: AttemptFollower,
        wake_up: WakeUp,
        links: LinkMaker,
    ) -> None:
        self.service: Service = service
        self.slots: ServiceSlots = slots
        self._runner = runner
        self._wake_up = wake_up
        self._links = links
        self._thread = threading.Thread(target=self._run, name=f"deliver-{service.id}", daemon=True)
        # Any thread appends; the worker's thread takes them out.
        self._news: deque[Callable[[], object]] = deque()
        # Only the worker's thread uses these: the link and its channel, how to kill the process, and what is polled.
        self._link: Link | None = None
        self._channel: ChannelSocket | None = None
        self._kill: Callable[[str], None] | None = None
        self._kill_at = math.inf
        self._poll = select.poll()
        self._polled: tuple[int, int] | None = None
        # Whether the thread waits, or is about to. The thread itself sets it before it looks for tasks; any thread
        # clears it, and then wakes the thread by a byte. A byte too many does no harm.
        self._asleep = False
        # The lock guards the socket, which exists as long as the thread runs, and whether the thread has ended.
        self._waker_lock = threading.Lock()
        self._waker: socket.socket | None = None
        self._is_over = False
        # Set by cut_off(), in any thread.
        self._is_cut_off = False
        if service.external:
            self._link = links.to_elsewhere(service, self.wake)
        else:
            slots.set_down(True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def assign(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        """Take over claimed tasks; see :meth:`ServiceSlots.assign`."""
        self.slots.assign(tasks, forced=forced)
        self.wake()

    def wake(self) -> None:
        """Have the thread look for attempts that may begin."""
        if self._asleep:
            with self._waker_lock:
                if self._asleep and self._waker is not None:
                    self._asleep = False
                    self._waker.send(b"w")

    def suspend(self, suspended: bool) -> None:
        """While ``suspended`` is true, begin no attempt; attempts in flight continue."""
        self.slots.suspend(suspended)
        self.wake()

    def not_begun(self) -> list[int]:
        """Return the IDs of the tasks that were assigned and have not begun. Any thread may call it."""
        return [*self.slots.waiting(), *(link.not_begun() if (link := self._link) is not None else ())]

    def process_serves(self, channel: ChannelSocket, kill: Callable[[str], None]) -> None:
        """Deliver over ``channel`` from now on. If the process can't be trusted, ``kill`` is called with a reason."""
        self._tell(lambda: self._opened(channel, kill))

    def process_ended(self, channel: ChannelSocket, end: ProcessEnd) -> None:
        """Find out what became of the deliveries of a process, and close its channel."""
        if not self._tell(lambda: self._ended(channel, end)):
            channel.close()

    def stop(self) -> list[ClaimedTask]:
        """Have the thread end after the attempts in flight; return the tasks that were not begun."""
        withdrawn = self.slots.close()
        self._tell(self._withdraw)
        return withdrawn

    def cut_off(self) -> None:
        """Have the thread end without waiting for the attempts in flight."""
        self._is_cut_off = True
        self.wake()

    def join(self, until: float) -> None:
        """Wait for the thread to end, at most until ``until`` on the monotonic clock."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until - time.monotonic()))

    def _tell(self, news: Callable[[], object]) -> bool:
        """Have the thread call ``news``; return false if it has ended."""
        with self._waker_lock:
            if self._is_over:
                return False
            self._news.append(news)
        self.wake()
        return True

    def _run(self) -> None:
        woken, waker = socket.socketpair()
        with woken, waker:
            self._poll.register(woken, select.POLLIN)
            self._waker = waker
            self._asleep = True
            while not self._is_cut_off:
                try:
                    if not self._turn(woken):
                        break
                except Exception:  # the thread has to survive for the other tasks
                    logger.exception("The delivery of tasks to service %s failed.", self.service.id)
                    time.sleep(0.1)
            with self._waker_lock:
                self._waker = None
                self._is_over = True
        while self._news:
            self._news.popleft()()

    def _turn(self, woken: socket.socket) -> bool:
        """Deliver what may begin, wait, and handle what has happened; return false at the end."""
        while self._news:
            self._news.popleft()()
        link = self._link
        tasks = self.slots.begin(link.ahead_budget() if link is not None else None)
        if tasks is None:
            return False
        if tasks and link is not None:
            self._deliver(link, tasks)
        self._watch(link)
        until = min(self._kill_at, link.next_check if link is not None else math.inf)
        ready = self._poll.poll(milliseconds_until(until))
        self._asleep = False
        for descriptor, _event in ready:
            if descriptor == woken.fileno():
                woken.recv(4096)
        if link is not None:
            self._proceed(link)
        # Before looking for tasks: a thread that assigns one after that look wakes this thread.
        self._asleep = True
        return True

    def _deliver(self, link: Link, tasks: Sequence[ToDeliver]) -> None:
        for one in tasks:
            self._runner.begin(one.task, self.service)
        failed = link.deliver(tasks, limit=self.slots.occupied, now=time.monotonic())
        if failed:
            self._conclude(failed)

    def _watch(self, link: Link | None) -> None:
        """Poll the link's descriptor for what the link waits for."""
        wanted = None
        if link is not None and link.fileno() >= 0 and link.awaited:
            wanted = link.fileno(), link.awaited
        if wanted != self._polled:
            if self._polled is not None:
                self._poll.unregister(self._polled[0])
            if wanted is not None:
                self._poll.register(*wanted)
            self._polled = wanted

    def _proceed(self, link: Link) -> None:
        events: list[AttemptEvent] = []
        now = time.monotonic()
        try:
            link.proceed(events, now)
            if self._channel is not None and not self._channel.is_open and self._kill_at == math.inf:
                self._kill_at = now + _PATIENCE_AFTER_EOF_SECONDS
            if now >= self._kill_at:
                raise ChannelError("it has closed its end of the channel")
        except ChannelError as error:
            self._give_up(str(error))
        self._conclude(events)

    def _give_up(self, reason: str) -> None:
        """End a process that can't be trusted. Its end says what becomes of its tasks."""
        logger.error("The app process of service %r is ended: %s.", self.service.id, reason)
        self._drop_link()
        if self._kill is not None:
            self._kill(reason)

    def _drop_link(self) -> None:
        self._watch(None)
        self._link = None
        self._kill_at = math.inf
        self.slots.set_down(True)

    def _conclude(self, events: Sequence[AttemptEvent], end: ProcessEnd | None = None) -> None:
        if not events:
            return
        self._runner.conclude(self.service, events, end)
        claim_more = False
        handed_back = []
        for event in events:
            if event.kind == "handed back":
                handed_back.append(event.task)
            elif event.kind != "cut off":
                seconds = event.result.duration_usec / 1e6 if event.result is not None else 0.0
                claim_more |= self.slots.end(event.task, seconds)
        if handed_back:
            self._runner.release(self.slots.give_back(handed_back))
        if claim_more:
            self._wake_up.wake()

    def _opened(self, channel: ChannelSocket, kill: Callable[[str], None]) -> None:
        self._drop_link()
        self._channel, self._kill = channel, kill
        self._link = self._links.to_process(self.service, channel)
        self.slots.set_down(False)
        self._wake_up.wake()

    def _ended(self, channel: ChannelSocket, end: ProcessEnd) -> None:
        if self._channel is channel:
            self._drop_link()
            self._channel = self._kill = None
        events: list[AttemptEvent] = []
        try:
            channel.ended(events, time.monotonic())
        except ChannelError as error:
            # Another process takes its place anyway.
            logger.error("The app process of service %r has ended: %s.", self.service.id, error)
        self._conclude(events, end)
        self._wake_up.wake()

    def _withdraw(self) -> None:
        if self._channel is not None and self._link is not None:
            self._channel.withdraw(time.monotonic())


def milliseconds_until(until: float) -> int | None:
    """Return the timeout for :meth:`select.poll.poll` that ends at ``until`` on the monotonic clock."""
    if until == math.inf:
        return None
    # Round up, so that the caller doesn't poll repeatedly in the last millisecond. The maximum fits into a C int.
    return max(0, min(math.ceil((until - time.monotonic()) * 1000), 1_000_000_000))
