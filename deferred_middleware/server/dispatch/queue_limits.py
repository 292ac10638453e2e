"""How many attempts of a queue may begin: the limits by its rate, its concurrency, a pause, and 503 responses.

One :class:`QueueLimits` holds the limits of all queues of a server. The scheduler asks for the
:meth:`~QueueLimits.allowance` of a queue before it claims tasks, and reports what it claimed; the attempts report how
they ended. All of it is arithmetic: the clock is injected.

Rate
    A queue's ``rate`` and ``bucket_size`` describe a token bucket. Each attempt costs a token, which is taken when it
    begins. A task that is claimed before that has its token reserved, so that as many may be claimed ahead as there are
    tokens. The bucket holds at most
    ``bucket_size`` tokens and is refilled at the rate, so in any span of time no more attempts begin than the size and
    what the rate adds in that time. Source:
    https://cloud.google.com/appengine/docs/standard/reference/queueref#bucket_size .

503 responses
    On App Engine a 503 means that the service is overloaded, and throttles the whole queue; how much is not documented
    (https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers). Here the queue begins
    nothing for :data:`FIRST_PAUSE_SECONDS`, and then one attempt at a time. Each attempt that gets any other status
    doubles how many may be in flight, up to :data:`RECOVERED`; from there on there is no limit. The next 503 starts
    over, with twice the pause, up to :data:`LONGEST_PAUSE_SECONDS`, unless the queue has recovered in between.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from deferred_middleware.server.admin.reading.standing import QueueStanding
from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry

# When the wait for a token ends, the sum of floats may be a little short of a whole token.
_ROUNDING = 1e-6


class TokenBucket:
    """A bucket that starts full. ``clock`` returns seconds that never go back. Its owner guards it with a lock."""

    def __init__(self, rate_per_second: float, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_second = rate_per_second
        self._size = size
        self._clock = clock
        self._tokens = float(size)
        self._filled_at = clock()

    def available(self) -> int:
        """Return how many tokens there are."""
        self._fill()
        return int(self._tokens + _ROUNDING)

    def take(self, number: int) -> None:
        """Take tokens out. More than there are may be taken; the next wait is longer then."""
        self._fill()
        self._tokens -= number

    def wait_seconds(self, number: int = 1) -> float:
        """Return how long it takes until there are so many tokens: 0 if there are, infinity if there never will be."""
        if self.available() >= number:
            return 0.0
        if self._rate_per_second <= 0 or number > self._size:
            return math.inf
        return (number - self._tokens) / self._rate_per_second

    def change(self, rate_per_second: float, size: int) -> None:
        """Change the rate and the size. The tokens stay, as far as the new size allows."""
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
    """What 503s do to one queue. ``clock`` returns seconds that never go back. Its owner guards it with a lock."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit: int | None = None
        self._pause_seconds = 0.0
        self._until = 0.0

    @property
    def limit(self) -> int | None:
        """How many attempts may be in flight once the pause is over; None is no limit."""
        return self._limit

    def wait_seconds(self) -> float:
        """Return how long no attempt may begin."""
        return max(0.0, self._until - self._clock()) if self._limit is not None else 0.0

    def answered(self, status: int | None, began_at: float) -> bool:
        """Take note of the status of an attempt that began at ``began_at``; return whether the queue slows down now.

        Attempts that were in flight when the queue was slowed down change nothing, and neither does a missing response
        (None).
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
"""More tasks than are ever claimed at once."""


@dataclass(frozen=True)
class Allowance:
    """How many attempts may begin now, and for how many seconds that stays so unless an attempt ends."""

    number: int
    wait_seconds: float = math.inf


class AttemptEffect(NamedTuple):
    """What the end of an attempt changes: whether one more of its queue may begin, and whether the queue slows down."""

    may_begin: bool
    slowed_down: bool


@dataclass
class _QueueState:
    config: QueueConfig
    throttle: Throttle
    bucket: TokenBucket | None = None
    in_flight: int = 0
    # How many claimed tasks have not begun: those whose tokens are reserved, and those that people force.
    reserved: int = 0
    forced: int = 0
    # Whether the last allowance depended on what is in flight, so that the end of an attempt may raise it.
    waiting: bool = False
    # Whether it depended on reserved tokens, so that the begin of an attempt may raise it.
    waiting_for_begin: bool = False


class QueueLimits:
    """The limits of all queues, configured by ``queues``. Any thread may call any method.

    ``clock`` returns seconds that never go back.
    """

    def __init__(self, queues: QueueRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._queues = queues
        self._clock = clock
        # Guards the states, each with its bucket and its throttle.
        self._lock = threading.Lock()
        self._states: dict[str, _QueueState] = {}

    def allowance(self, queue: str, paused: frozenset[str]) -> Allowance:
        """Return how many attempts of a queue may begin; ``paused`` are the queues that people have paused."""
        with self._lock:
            state = self._state(queue)
            state.waiting = state.waiting_for_begin = False
            if state.config.paused or queue in paused:
                return Allowance(0)
            wait_seconds = state.throttle.wait_seconds()
            if wait_seconds:
                return Allowance(0, wait_seconds)
            limits = [
                limit for limit in (state.config.max_concurrent_requests, state.throttle.limit) if limit is not None
            ]
            number = max(0, min(limits) - state.in_flight) if limits else UNLIMITED
            state.waiting = bool(limits)
            if number and state.bucket is not None:
                tokens = state.bucket.available() - state.reserved
                if tokens < number:
                    state.waiting_for_begin = state.reserved > 0
                    wait_seconds = state.bucket.wait_seconds(1 + state.reserved) if tokens < 1 else math.inf
                    return Allowance(max(0, tokens), wait_seconds)
            return Allowance(number)

    def standing(self, queue: str) -> QueueStanding:
        """Return what limits a queue at this moment, for people."""
        with self._lock:
            state = self._state(queue)
            tokens = None if state.bucket is None else max(0, state.bucket.available() - state.reserved)
            return QueueStanding(
                in_flight=state.in_flight,
                tokens=tokens,
                token_seconds=0.0 if state.bucket is None else state.bucket.wait_seconds(1 + state.reserved),
                slowed_down_seconds=state.throttle.wait_seconds(),
                slowed_down_limit=state.throttle.limit,
            )

    def is_slowed_down(self, queue: str) -> bool:
        """Tell whether 503s have slowed a queue down: its tasks are claimed only when they may begin."""
        with self._lock:
            return self._state(queue).throttle.limit is not None

    def claimed(self, queue: str, number: int, *, forced: bool = False) -> None:
        """Take note that tasks were claimed to run; those that a person forces cost no tokens."""
        with self._lock:
            state = self._state(queue)
            state.in_flight += number
            if forced:
                state.forced += number
            else:
                state.reserved += number

    def began(self, queue: str) -> bool:
        """Take note that an attempt of a claimed task begins; return whether more tasks may be claimed because of it.

        Forced tasks go first, so the first to begin are taken for these.
        """
        with self._lock:
            state = self._state(queue)
            if state.forced:
                state.forced -= 1
                return False
            state.reserved -= 1
            if state.bucket is not None:
                state.bucket.take(1)
            may_claim, state.waiting_for_begin = state.waiting_for_begin, False
            return may_claim

    def handed_back(self, queue: str) -> None:
        """Take note that an attempt did not begin after all; its task is still claimed."""
        with self._lock:
            state = self._state(queue)
            state.reserved += 1
            if state.bucket is not None:
                state.bucket.take(-1)

    def released(self, queue: str, number: int) -> None:
        """Take note that claimed tasks were released without an attempt."""
        with self._lock:
            state = self._state(queue)
            state.in_flight -= number
            reserved = min(number, state.reserved)
            state.reserved -= reserved
            state.forced -= number - reserved

    def ended(self, queue: str, status: int | None, began_at: float) -> AttemptEffect:
        """Take note that an attempt ended.

        ``status`` is None without a response; ``began_at`` is when the attempt began, by this object's clock.
        """
        with self._lock:
            state = self._state(queue)
            state.in_flight -= 1
            return AttemptEffect(state.waiting, state.throttle.answered(status, began_at))

    def _state(self, queue: str) -> _QueueState:
        config = self._queues.config_of(queue)
        state = self._states.get(queue)
        if state is None:
            state = self._states[queue] = _QueueState(config, Throttle(clock=self._clock), self._bucket(config))
        elif state.config is not config and state.config != config:
            if state.bucket is not None and config.rate_per_second is not None:
                state.bucket.change(config.rate_per_second, config.bucket_size)
            else:
                state.bucket = self._bucket(config)
            state.config = config
        return state

    def _bucket(self, config: QueueConfig) -> TokenBucket | None:
        if config.rate_per_second is None:
            return None
        return TokenBucket(config.rate_per_second, config.bucket_size, clock=self._clock)
