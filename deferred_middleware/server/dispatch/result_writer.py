"""Writes the results of attempts to the store.

Many results come in while earlier ones are being written. They are gathered, and one transaction writes them together:

    results = ResultWriter(store, wake_up, clock)
    results.submit(completion)     # returns at once

If the server is killed, tasks whose results are not stored run again. So a service begins no more tasks while too many
of its results wait: :data:`MOST_UNSTORED`, or :data:`MOST_UNSTORED_SLOW` while the disk is slow.

A result that can't be written is kept in memory, and the scheduler has it written again. Its task stays claimed in the
meantime, so it isn't run again before the next start of the server.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.wake_up import WakeUp
from deferred_middleware.server.store.records import Completion
from deferred_middleware.server.store.store import TaskStore

logger: Final = logging.getLogger(__name__)

MOST_UNSTORED: Final = 512
"""How many tasks of a service, beyond its slots, may be on their way or have ended without a stored result."""
MOST_UNSTORED_SLOW: Final = 32
SLOW_SECONDS: Final = 0.05
"""The disk is slow during and after a commit that takes longer than this."""

_RETRY_SECONDS = 1.0
_NOTHING_TO_RETRY_SECONDS = 3600.0


class ResultWriter:
    """Writes results to ``store``. Any thread may call any method.

    It wakes the scheduler by ``wake_up`` when a task is due again, and calls ``on_stored`` when results were stored.
    """

    def __init__(
        self,
        store: TaskStore,
        wake_up: WakeUp,
        clock: WatchedClock,
        on_stored: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._wake_up = wake_up
        self._clock = clock
        self._on_stored = on_stored
        # By the ID of the service: how many results are not stored yet. Read without the lock.
        self._unstored: Counter[str] = Counter()
        # Guards the other three, and changes of _unstored. is_slow() reads _unwritten without it.
        self._lock = threading.Lock()
        # The batch that was announced to the store and that the store has not taken yet.
        self._gathered: list[Completion] = []
        self._unwritten: list[Completion] = []
        self._retry_at = 0.0

    def submit(self, completion: Completion) -> None:
        """Have a result written, together with others."""
        with self._lock:
            batch = self._gathered
            batch.append(completion)
            is_first = len(batch) == 1
            self._unstored[completion.attempt.service] += 1
        if is_first:
            self._submit(batch)

    def room(self, service: str) -> int:
        """Return how many more results of a service may wait to be stored; less than 0 if there are too many."""
        return (MOST_UNSTORED_SLOW if self.is_slow() else MOST_UNSTORED) - self._unstored[service]

    def is_slow(self) -> bool:
        """Return whether the disk is slow, as far as is known: at first it is."""
        return bool(self._unwritten) or self._store.commit_seconds() > SLOW_SECONDS

    def submit_alone(self, completion: Completion) -> None:
        """Have a result written in an operation of its own, so that no other result fails with it."""
        self._submit([completion])

    def retry_unwritten(self) -> float:
        """Submit the results that could not be written again; return in how many seconds to call this again."""
        now = self._clock.monotonic()
        with self._lock:
            if not self._unwritten:
                return _NOTHING_TO_RETRY_SECONDS
            if now < self._retry_at:
                return self._retry_at - now
            self._retry_at = now + _RETRY_SECONDS
            unwritten, self._unwritten = self._unwritten, []
        for completion in unwritten:
            self.submit_alone(completion)
        return _RETRY_SECONDS

    def take_unwritten(self) -> list[Completion]:
        """Return the results that could not be written, and forget them."""
        with self._lock:
            unwritten, self._unwritten = self._unwritten, []
            return unwritten

    def _submit(self, batch: list[Completion]) -> None:
        try:
            future = self._store.complete_later(functools.partial(self._take, batch))
        except ServerError as error:
            self._fail(batch, error)
        else:
            future.add_done_callback(functools.partial(self._done, batch))

    def _take(self, batch: list[Completion]) -> list[Completion]:
        """Return a batch, to which nothing is added from now on."""
        with self._lock:
            if self._gathered is batch:
                self._gathered = []
        return batch

    def _done(self, batch: list[Completion], future: Future[list[bool]]) -> None:
        error = future.exception()
        if error is not None:
            self._fail(batch, error)
            return
        stored = Counter(completion.attempt.service for completion in batch)
        with self._lock:
            self._unstored.subtract(stored)
        self._on_stored()
        for completion, stood in zip(batch, future.result(), strict=True):
            self._written(completion, stood)

    def _fail(self, batch: list[Completion], error: BaseException) -> None:
        for completion in self._take(batch):
            self._failed(completion, error)

    def _written(self, completion: Completion, stood: bool) -> None:
        """Take note that the store has a result; ``stood`` is false if the task's claim was void by then."""
        if not stood:
            logger.info("A task was deleted or released while it ran; its result is dropped.")
        elif completion.state == "ready":
            self._wake_up.wake()

    def _failed(self, completion: Completion, error: BaseException) -> None:
        """Keep a result that the store could not write."""
        logger.error("The result of a task could not be written: %s. The server tries again.", error)
        with self._lock:
            self._unwritten.append(completion)
        self._wake_up.wake()
