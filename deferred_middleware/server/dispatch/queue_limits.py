"""The token bucket that a queue's ``rate`` and ``bucket_size`` describe. Pure arithmetic: the clock is injected.

A token is what an attempt costs. A bucket holds ``size`` of them at most and is filled at a steady rate, so that in any
span of time no more than ``size`` and what the rate gives in that time can begin. Source:
https://cloud.google.com/appengine/docs/standard/reference/queueref#bucket_size .

How a queue slows down when its service says 503, and how it recovers. Pure arithmetic: the clock is injected.

On App Engine a 503 means that the service can't take more, and throttles the whole queue; how much is not documented
(https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers). Here the queue begins nothing
for :data:`FIRST_PAUSE_SECONDS`, then one attempt at a time. Each attempt that is answered with anything but 503 doubles
how many may be under way, up to :data:`RECOVERED`, from where on there is no limit. The next 503 begins it anew, with
twice the pause, up to :data:`LONGEST_PAUSE_SECONDS`, unless the queue has recovered in between.

Whether a queue may begin another attempt: its rate, its concurrency, its being paused, and 503s.

One :class:`QueueGates` for all queues of a server. The scheduler asks :meth:`~QueueGates.allowance` before it claims,
says what it claimed, and the workers say how the attempts ended.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry

# A wait for a token ends at a clock's next tick, where a sum of floats may be a hair short of a whole token.
_HAIR = 1e-6


class TokenBucket:
    """A bucket that is full at first. ``clock`` returns seconds that never go back. Not for several threads at once."""

    def __init__(self, rate_per_second: float, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_second = rate_per_second
        self._size = size
        self._clock = clock
        self._tokens = float(size)
        self._filled_at = clock()

    def available(self) -> int:
        """Return how many tokens there are."""
        self._fill()
        return int(self._tokens + _HAIR)

    def take(self, number: int) -> None:
        """Take tokens out; whoever takes more than there are is paid back by the following wait."""
        self._fill()
        self._tokens -= number

    def wait_seconds(self) -> float:
        """Return how long it takes until there is a token: 0 if there is one, infinity if there will be none."""
        if self.available() >= 1:
            return 0.0
        return (1 - self._tokens) / self._rate_per_second if self._rate_per_second > 0 else math.inf

    def change(self, rate_per_second: float, size: int) -> None:
        """Have another rate and size from now on. What was saved up stays, as far as there is room."""
        self._fill()
        self._rate_per_second = rate_per_second
        self._size = size
        self._tokens = min(self._tokens, float(size))

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._size, self._tokens + (now - self._filled_at) * self._rate_per_second)
        self._filled_at = now


FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
RECOVERED = 64


class Throttle:
    """What 503s mean for one queue. ``clock`` returns seconds that never go back. Not for several threads at once."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit: int | None = None
        self._pause_seconds = 0.0
        self._until = 0.0

    @property
    def limit(self) -> int | None:
        """How many attempts may be under way once the pause is over; None is no limit."""
        return self._limit

    def wait_seconds(self) -> float:
        """Return how long nothing may begin."""
        return max(0.0, self._until - self._clock()) if self._limit is not None else 0.0

    def answered(self, status: int | None, began_at: float) -> bool:
        """Take note of how an attempt that began at ``began_at`` ended; return whether the queue was slowed down.

        Attempts that were under way when it was slowed down say nothing new. No answer (None) says nothing either.
        """
        if status == 503:
            if self._limit is not None and began_at < self._until:
                return False
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds))
            self._until = self._clock() + self._pause_seconds
            self._limit = 1
            return True
        if status is not None and self._limit is not None and began_at >= self._until:
            self._limit *= 2
            if self._limit > RECOVERED:
                self._limit = None
                self._pause_seconds = 0.0
        return False


UNLIMITED = 1_000_000
"""More than anybody claims at once."""


@dataclass(frozen=True)
class Allowance:
    """How many attempts may begin now, and for how many seconds that can't change unless an attempt ends."""

    number: int
    wait_seconds: float = math.inf


@dataclass
class _Gate:
    config: QueueConfig
    throttle: Throttle
    bucket: TokenBucket | None = None
    in_flight: int = 0
    # Whether it was refused because of what is in flight, so that the end of an attempt is worth a wake-up.
    waiting: bool = field(default=False)


class QueueGates:
    """The gates of the queues in ``queues``; ``paused`` says which of them people have paused.

    ``clock`` returns seconds that never go back. It may be used by any thread.
    """

    def __init__(
        self,
        queues: QueueRegistry,
        paused: Callable[[], frozenset[str]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queues = queues
        self._paused = paused
        self._clock = clock
        self._lock = threading.Lock()
        self._gates: dict[str, _Gate] = {}

    def allowance(self, queue: str) -> Allowance:
        """Return how many attempts of a queue may begin."""
        paused = self._paused()
        with self._lock:
            gate = self._gate(queue)
            gate.waiting = False
            if gate.config.paused or queue in paused:
                return Allowance(0)
            wait_seconds = gate.throttle.wait_seconds()
            if wait_seconds:
                return Allowance(0, wait_seconds)
            limits = [
                limit for limit in (gate.config.max_concurrent_requests, gate.throttle.limit) if limit is not None
            ]
            number = max(0, min(limits) - gate.in_flight) if limits else UNLIMITED
            gate.waiting = bool(limits)
            if number and gate.bucket is not None:
                tokens = gate.bucket.available()
                if tokens < number:
                    # The next token may be waited for whether or not there are some already.
                    return Allowance(max(0, tokens), gate.bucket.wait_seconds() if tokens < 1 else math.inf)
            return Allowance(number)

    def is_rated(self, queue: str) -> bool:
        """Tell whether a queue has a rate, or is slowed down, so that nothing is to be claimed before it may begin."""
        with self._lock:
            gate = self._gate(queue)
            return gate.bucket is not None or gate.throttle.limit is not None

    def claimed(self, queue: str, number: int, *, forced: bool = False) -> None:
        """Take note that tasks are about to be attempted; those that a person forces cost the queue nothing."""
        with self._lock:
            gate = self._gate(queue)
            gate.in_flight += number
            if gate.bucket is not None and not forced:
                gate.bucket.take(number)

    def given_back(self, queue: str, number: int) -> None:
        """Take note that claimed tasks are not attempted after all."""
        with self._lock:
            gate = self._gate(queue)
            gate.in_flight -= number
            if gate.bucket is not None:
                gate.bucket.take(-number)

    def ended(self, queue: str, status: int | None, began_at: float) -> tuple[bool, bool]:
        """Take note that an attempt ended; return whether the queue may now begin one more, and whether it slowed down.

        ``status`` is None without a response; ``began_at`` is when it began, by this object's clock.
        """
        with self._lock:
            gate = self._gate(queue)
            gate.in_flight -= 1
            return gate.waiting, gate.throttle.answered(status, began_at)

    def _gate(self, queue: str) -> _Gate:
        config = self._queues.config_of(queue)
        gate = self._gates.get(queue)
        if gate is None:
            gate = self._gates[queue] = _Gate(config, Throttle(clock=self._clock), self._bucket(config))
        elif gate.config is not config and gate.config != config:
            if gate.bucket is not None and config.rate_per_second is not None:
                gate.bucket.change(config.rate_per_second, config.bucket_size)
            else:
                gate.bucket = self._bucket(config)
            gate.config = config
        return gate

    def _bucket(self, config: QueueConfig) -> TokenBucket | None:
        if config.rate_per_second is None:
            return None
        return TokenBucket(config.rate_per_second, config.bucket_size, clock=self._clock)
