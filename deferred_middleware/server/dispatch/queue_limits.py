"""Whether a queue may begin another attempt: its rate, its concurrency, its being paused, and 503s.

One :class:`QueueGates` for all queues of a server. The scheduler asks :meth:`~QueueGates.allowance` before it claims,
says what it claimed, and the workers say how the attempts ended.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deferred_middleware.server.config.queueregistry import QueueRegistry
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.dispatch.ratelimit import TokenBucket
from deferred_middleware.server.dispatch.throttle import Throttle

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
