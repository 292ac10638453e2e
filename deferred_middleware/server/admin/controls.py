"""What the tests of an app do to the server: wait until queues are empty, reset it, and move its clock.

    POST wait   {"queue": "mail", "timeout_seconds": 30, "due_only": true}
    POST reset  {}
    POST clock  {"advance_seconds": 3600}, {"frozen": true} or {"frozen": false}
    GET  clock

The JSON API has them below ``/api/v1/``, and the port of the emulator below ``/emulator/v1/``.
"""

from __future__ import annotations

import datetime
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from deferred_middleware.server.config.virtual_clock import VirtualClock
from deferred_middleware.server.store.store import TaskStore

NAMES: Final = ("wait", "reset", "clock")
CHANGES: Final = ("reset", "clock")
"""Those that change something, if they are posted."""
MAX_WAIT_SECONDS: Final = 600.0
DEFAULT_WAIT_SECONDS: Final = 60.0
MAX_ADVANCE_SECONDS: Final = 10 * 366 * 24 * 3600.0

_LOOK_SECONDS: Final = 0.02


class ControlError(ValueError):
    """A request that is wrong; the message says what is."""


class TestControls:
    """Answers the requests of tests.

    ``wake_scheduler`` is called when tasks may be due. ``forget_queues`` is called by a reset, before the tasks are
    deleted. ``name_of`` returns the store's name of a queue that a client has named, None if there is no such queue.
    """

    # It is no test, though pytest would take it for one.
    __test__ = False

    def __init__(
        self,
        store: TaskStore,
        clock: VirtualClock,
        wake_scheduler: Callable[[], None],
        *,
        forget_queues: Callable[[], object],
        name_of: Callable[[str], str | None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._wake_scheduler = wake_scheduler
        self._forget_queues = forget_queues
        self._name_of = name_of
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End all waits."""
        self._stopping.set()

    def answer(self, name: str, content: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the answer to a request; ``content`` is None for GET. Raises :class:`ControlError`."""
        if name == "clock":
            return self._move_clock(content or {})
        if content is None:
            raise ControlError("Use POST.")
        return self._wait(content) if name == "wait" else self._reset(content)

    def _wait(self, content: Mapping[str, Any]) -> dict[str, Any]:
        _check_names(content, "queue", "timeout_seconds", "due_only")
        timeout_seconds = _number(content, "timeout_seconds", DEFAULT_WAIT_SECONDS, MAX_WAIT_SECONDS)
        due_only = content.get("due_only", False)
        given = content.get("queue")
        if not isinstance(due_only, bool) or not isinstance(given, str | None):
            raise ControlError("due_only must be true or false, and queue a text.")
        queue = None
        if given is not None:
            queue = self._name_of(given)
            if queue is None:
                raise ControlError(f"There is no queue {given[:200]!r}.")
        until = time.monotonic() + timeout_seconds
        was_empty = False
        while True:
            left = self._left(queue, due_only=due_only)
            # The numbers are read one after the other, and a task may change its state in between.
            if not left and was_empty:
                return {"empty": True, "tasks": 0}
            was_empty = not left
            if time.monotonic() >= until or self._stopping.wait(_LOOK_SECONDS):
                return {"empty": False, "tasks": left}

    def _left(self, queue: str | None, *, due_only: bool) -> int:
        """Return how many tasks a queue, or all queues, has that are not finished."""
        left = 0
        for name, states in self._store.queries.counts().items():
            if queue in (None, name):
                ready, running = states.get("ready", 0), states.get("running", 0)
                if due_only and ready:
                    backlog = self._store.queries.backlog(name)
                    ready = backlog.due + backlog.retrying
                left += ready + running
        return left

    def _reset(self, content: Mapping[str, Any]) -> dict[str, Any]:
        _check_names(content)
        self._forget_queues()
        deleted = self._store.operations.reset()
        self._wake_scheduler()
        return {"deleted": deleted}

    def _move_clock(self, content: Mapping[str, Any]) -> dict[str, Any]:
        _check_names(content, "advance_seconds", "frozen")
        frozen = content.get("frozen")
        if not isinstance(frozen, bool | None):
            raise ControlError("frozen must be true or false.")
        seconds = _number(content, "advance_seconds", 0.0, MAX_ADVANCE_SECONDS)
        if frozen is not None:
            (self._clock.freeze if frozen else self._clock.run)()
        if seconds:
            self._clock.advance(seconds)
        if content:
            self._wake_scheduler()
        now = self._clock.time()
        try:
            text = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).isoformat()
        except (OverflowError, ValueError):
            text = "in many years"
        return {"now": text, "now_seconds": now, "ahead_seconds": now - time.time(), "frozen": self._clock.is_frozen}


def _check_names(content: Mapping[str, Any], *names: str) -> None:
    unknown = sorted(set(content) - set(names))
    if unknown:
        raise ControlError(f"{unknown[0][:80]!r} is not known here; {', '.join(names) or 'nothing'} is.")


def _number(content: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = content.get(name, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 <= value <= most
    ):
        raise ControlError(f"{name} must be a number from 0 to {most:g}.")
    return float(value)
