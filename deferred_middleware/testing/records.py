"""A task that a test captured, and the clock by which it is due."""

from __future__ import annotations

import dataclasses
import datetime
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deferred_middleware.calls.call import Call
from deferred_middleware.calls.callables import AnyCallable, Label


class Clock:
    """The wall clock of captured tasks: the real one, which a test can set forward.

    ``source`` returns seconds since 1970; a test that stops time gives its own.
    """

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source = source
        self._ahead_seconds = 0.0

    def __call__(self) -> float:
        """Return the time in seconds since 1970."""
        return self._source() + self._ahead_seconds

    @property
    def now(self) -> datetime.datetime:
        """The time, in UTC."""
        return datetime.datetime.fromtimestamp(self(), datetime.timezone.utc)

    def advance(self, seconds: float | datetime.timedelta) -> None:
        """Set the clock forward, so that what was deferred for later becomes due."""
        if isinstance(seconds, datetime.timedelta):
            seconds = seconds.total_seconds()
        if seconds < 0:
            raise ValueError(f"a clock is set forward, not by {seconds} s")
        self._ahead_seconds += seconds


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EnqueuedTask:
    """A task as it was enqueued.

    ``func``, ``args`` and ``kwargs`` are what the task will call: unpickled, so that arguments are equal to those that
    were deferred, not the same objects. A task of another origin than ``defer`` has no call.
    """

    queue: str
    name: str
    """The task's name, chosen by the caller or by the queue."""
    method: str
    url: str
    headers: Mapping[str, str]
    """The headers of the task's request; ours and the caller's, without those that the platform sets."""
    body: bytes
    eta: datetime.datetime
    """When the task may run at the earliest, in UTC."""
    enqueued: datetime.datetime
    """When it was enqueued, in UTC."""
    due_posix: float
    """The same by the test's clock, in seconds since 1970."""
    target: str | None
    """The service that the task is for, such as ``v1.background``; None for the one that gets what has no target."""
    call: Call | None
    call_error: Exception | None = None
    """Why the body is no call, if it isn't."""

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
        """Tell whether the task may run by ``clock``."""
        return self.due_posix <= clock()

    def __str__(self) -> str:
        what = self.url if self.call is None else describe(self.call.func, self.args, self.kwargs)
        where = f"queue {self.queue}" + (f", target {self.target}" if self.target else "")
        return f"{what}  [{where}, task {self.name}]"


def describe(func: AnyCallable, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """Return a call as one would write it, its values shortened."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 120
    parts = [shown.repr(value) for value in args]
    parts += [f"{name}={shown.repr(value)}" for name, value in kwargs.items()]
    return f"{Call(func=func).label}({', '.join(parts)})"
