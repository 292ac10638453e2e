"""The thread that makes the attempts of one service.

An attempt does little but wait for a response, so one thread makes all attempts of a service. With several threads the
attempts of short tasks would spend more time waiting for each other's locks than for responses.
"""

from __future__ import annotations

import logging
import math
import select
import socket
import threading
import time
from collections.abc import Iterable
from typing import Final, Protocol

from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.connections import milliseconds_until
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.records import ClaimedTask

logger: Final = logging.getLogger(__name__)


class InFlight(Protocol):
    """An attempt in flight, such as :class:`~deferred_middleware.server.dispatch.attempts.TaskAttempt`.

    At its end it calls :meth:`ServiceWorker.attempt_ended`, by any thread. :meth:`proceed` raises only because of a
    defect; the attempt's slot is then free, and its task runs again at the next start of the server.
    """

    @property
    def task(self) -> ClaimedTask:
        """The task that it runs."""

    @property
    def awaited(self) -> int:
        """The events that its descriptor waits for, as :mod:`select` defines them."""

    @property
    def deadline(self) -> float:
        """When to call :meth:`proceed` in any case, by the monotonic clock."""

    def fileno(self) -> int:
        """Return the descriptor that it waits for."""

    def proceed(self) -> bool:
        """Do what can be done without waiting; return whether the worker is done with the attempt."""


class AttemptMaker(Protocol):
    """What makes attempts, such as :class:`~deferred_middleware.server.dispatch.attempts.AttemptRunner`."""

    def begin(self, task: ClaimedTask, worker: ServiceWorker) -> InFlight:
        """Return a new attempt of ``task`` for ``worker``; nothing has been sent yet."""


class ServiceWorker:
    """Makes the attempts of ``service`` with ``runner``, one for each task that gets a slot of ``slots``.

    It wakes the scheduler by ``wake_up`` when it can take more tasks than it has.
    """

    def __init__(self, service: Service, slots: ServiceSlots, runner: AttemptMaker, wake_up: WakeUp) -> None:
        self.service = service
        self.slots = slots
        self._runner = runner
        self._wake_up = wake_up
        self._thread = threading.Thread(target=self._run, name=f"deliver-{service.id}", daemon=True)
        # Only the worker's own thread uses these three: the attempts in flight by their descriptors, what waits for
        # the descriptors, and the earliest of the attempts' deadlines.
        self._in_flight: dict[int, InFlight] = {}
        self._poll = select.poll()
        self._next_deadline = math.inf
        # Whether the thread waits, or is about to. The thread itself sets it before it looks for tasks; any thread
        # clears it, and then wakes the thread by a byte. A byte too many does no harm.
        self._asleep = False
        # The lock guards the socket, which exists as long as the thread runs.
        self._waker_lock = threading.Lock()
        self._waker: socket.socket | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def assign(self, tasks: Iterable[ClaimedTask], *, forced: bool = False) -> None:
        """Take over claimed tasks; see :meth:`ServiceSlots.assign`."""
        if self.slots.assign(tasks, forced=forced):
            self._wake()

    def suspend(self, suspended: bool) -> None:
        """While ``suspended`` is true, begin no attempt; attempts in flight continue."""
        self.slots.suspend(suspended)
        self._wake()

    def stop(self) -> list[ClaimedTask]:
        """Have the thread end after the attempts in flight; return the tasks that were not begun."""
        withdrawn = self.slots.close()
        self._wake()
        return withdrawn

    def join(self, until: float) -> None:
        """Wait for the thread to end, at most until ``until`` on the monotonic clock."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until - time.monotonic()))

    def attempt_ended(self, task: ClaimedTask, seconds: float) -> None:
        """Free the slot of a task whose attempt took so many seconds, and ask for more tasks if that is useful."""
        claim_more = self.slots.end(task, seconds)
        self._wake()
        if claim_more:
            self._wake_up.wake()

    def _wake(self) -> None:
        """Have the thread look for attempts that may begin."""
        if self._asleep:
            with self._waker_lock:
                if self._asleep and self._waker is not None:
                    self._asleep = False
                    self._waker.send(b"w")

    def _run(self) -> None:
        woken, waker = socket.socketpair()
        with woken, waker:
            self._poll.register(woken, select.POLLIN)
            self._waker = waker
            self._asleep = True
            while (tasks := self.slots.begin()) is not None:
                for task in tasks:
                    self._start(task)
                ready = self._poll.poll(milliseconds_until(self._next_deadline))
                self._asleep = False
                for descriptor, _event in ready:
                    if descriptor in self._in_flight:
                        self._proceed(descriptor)
                    elif descriptor == woken.fileno():
                        woken.recv(4096)
                if time.monotonic() >= self._next_deadline:
                    self._proceed_with_late()
                # Before looking for tasks: a thread that assigns one after that look wakes this thread.
                self._asleep = True
            with self._waker_lock:
                self._waker = None

    def _start(self, task: ClaimedTask) -> None:
        try:
            attempt = self._runner.begin(task, self)
            if not attempt.proceed():
                descriptor = attempt.fileno()
                self._poll.register(descriptor, attempt.awaited)
                self._in_flight[descriptor] = attempt
                self._next_deadline = min(self._next_deadline, attempt.deadline)
        except Exception:  # the thread has to survive for the other tasks
            logger.exception("Task %s of queue %s could not be run.", task.name, task.queue)
            self.attempt_ended(task, 0.0)

    def _proceed(self, descriptor: int) -> None:
        attempt = self._in_flight[descriptor]
        try:
            if not attempt.proceed():
                self._poll.modify(descriptor, attempt.awaited)
                return
        except Exception:  # the thread has to survive for the other tasks
            logger.exception("An attempt of service %s failed because of a defect.", self.service.id)
            self.attempt_ended(attempt.task, 0.0)
        del self._in_flight[descriptor]
        self._poll.unregister(descriptor)

    def _proceed_with_late(self) -> None:
        """Proceed with the attempts whose deadline has come, and find the next deadline."""
        for descriptor, attempt in list(self._in_flight.items()):
            if time.monotonic() >= attempt.deadline:
                self._proceed(descriptor)
        self._next_deadline = min((attempt.deadline for attempt in self._in_flight.values()), default=math.inf)
