"""Results of attempts, on their way to the store.

Many come while earlier ones are being written. They are gathered, and written together as soon as it is their turn:

    results = Results(store, written=…, failed=…)
    results.hand_in(completion)     # returns at once
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.records import Completion
from deferred_middleware.server.store.store import TaskStore


class Results:
    """Hands results in to ``store``.

    Of each either ``written`` is called, with whether its claim still stood, or ``failed`` with the reason, by any
    thread.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        written: Callable[[Completion, bool], None],
        failed: Callable[[Completion, BaseException], None],
    ) -> None:
        self._store = store
        self._written = written
        self._failed = failed
        self._lock = threading.Lock()
        # What the store has been told of, and has not taken yet.
        self._gathered: list[Completion] = []

    def hand_in(self, completion: Completion) -> None:
        """Have a result written, together with others."""
        with self._lock:
            batch = self._gathered
            batch.append(completion)
            is_first = len(batch) == 1
        if is_first:
            self._submit(batch)

    def hand_in_alone(self, completion: Completion) -> None:
        """Have a result written that shares nothing with others, not even that they fail."""
        self._submit([completion])

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
        for completion, stood in zip(batch, future.result(), strict=True):
            self._written(completion, stood)

    def _fail(self, batch: list[Completion], error: BaseException) -> None:
        for completion in self._take(batch):
            self._failed(completion, error)
