"""A task that a test captured, and the clock that decides when it is due."""

from __future__ import annotations

import dataclasses
import datetime
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deferred_middleware.calls.call import Call
from deferred_middleware.calls.callables import AnyCallable, Label
from deferred_middleware.errors.text import shortened


class Clock:
    """The wall clock of captured tasks: the time of the process, which a test can advance.

    If a library such as freezegun or time-machine has stopped the time, this clock is stopped too, and moves with it.
    ``source`` returns seconds since 1970; by default it is ``time.time()``.
    """

    def __init__(self, source: Callable[[], float] | None = None) -> None:
        self._source = source
        self._ahead_seconds = 0.0

    def __call__(self) -> float:
        """Return the time in seconds since 1970."""
        return (time.time() if self._source is None else self._source()) + self._ahead_seconds

    @property
    def now(self) -> datetime.datetime:
        """The time, in UTC."""
        return datetime.datetime.fromtimestamp(self(), datetime.timezone.utc)

    def advance(self, seconds: float | datetime.timedelta) -> None:
        """Advance the clock by seconds or a timedelta, so that tasks with a later ETA become due."""
        if isinstance(seconds, datetime.timedelta):
            seconds = seconds.total_seconds()
        if seconds < 0:
            raise ValueError(f"a clock can only be advanced, not by {seconds} s")
        self._ahead_seconds += seconds


_NO_DELAY = datetime.timedelta(milliseconds=1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CapturedTask:
    """A task as it was enqueued.

    ``func``, ``args`` and ``kwargs`` are read from the payload: the arguments are equal to the deferred ones, but not
    the same objects. A task that was not enqueued with ``defer`` has no call.
    """

    queue: str
    name: str
    """The task's name, chosen by the caller or by the queue."""
    method: str
    url: str
    headers: Mapping[str, str]
    """The headers of the task's request: ours and the caller's, without those that the platform adds."""
    body: bytes
    eta: datetime.datetime
    """The earliest time of the first attempt, in UTC."""
    enqueued: datetime.datetime
    """The time when the task was enqueued, in UTC."""
    due_posix: float
    """The ETA by the test's clock, in seconds since 1970."""
    target: str | None
    """The service that runs the task, such as ``v1.background``; None if the task has no target."""
    host: str
    """The host of the request that delivers the task."""
    call: Call | None
    call_error: Exception | None = None
    """The error of reading a call from the body, if there was one."""

    @property
    def func(self) -> AnyCallable | None:
        """The callable."""
        return None if self.call is None else self.call.func

    @property
    def args(self) -> tuple[Any, ...]:
        """The callable's positional arguments."""
        return () if self.call is None else self.call.args

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The callable's keyword arguments."""
        return {} if self.call is None else self.call.kwargs

    @property
    def label(self) -> Label | None:
        """The callable's label."""
        return None if self.call is None else self.call.label

    def is_due(self, clock: Clock) -> bool:
        """Return whether ``clock`` has reached the task's ETA. A task that was enqueued without delay is always due."""
        has_delay = self.eta - self.enqueued > _NO_DELAY
        return not has_delay or self.due_posix <= clock()

    def __str__(self) -> str:
        what = self.url if self.call is None else describe(self.call.func, self.args, self.kwargs)
        where = f"queue {self.queue}" + (f", target {self.target}" if self.target else "")
        return f"{what}  [{where}, task {self.name}]"


def describe(func: AnyCallable, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """Return a call as Python source, with long values shortened."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 120
    parts = [shortened(value, shown) for value in args]
    parts += [f"{name}={shortened(value, shown)}" for name, value in kwargs.items()]
    return f"{Call(func=func).label}({', '.join(parts)})"


EnqueuedTask = CapturedTask
"""The public name of :class:`CapturedTask`."""
