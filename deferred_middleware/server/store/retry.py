"""When a task that failed is tried again.

The arithmetic of App Engine's push queues, and nothing else: no clock, no store. A *retry number* counts from 1, so
that the first attempt of a task is followed by retry 1.

Source: https://cloud.google.com/appengine/docs/standard/services/task-queue/rest ("RetryParameters") and
``Retry`` in the SDK's ``google/appengine/api/taskqueue/taskqueue_stub.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deferred_middleware.wire import protocol

_MAX_EXPONENT = 1023  # 2.0 ** 1024 overflows a float


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a failed task is tried again.

    ``retry_limit`` is a number of retries, ``age_limit_seconds`` counts from the first attempt; None is no limit. The
    back-off doubles ``max_doublings`` times and grows linearly after that. Raises :class:`ValueError` for a value that
    is negative or not finite.
    """

    retry_limit: int | None = None
    age_limit_seconds: float | None = None
    min_backoff_seconds: float = protocol.DEFAULT_MIN_BACKOFF_SECONDS
    max_backoff_seconds: float = protocol.DEFAULT_MAX_BACKOFF_SECONDS
    max_doublings: int = protocol.DEFAULT_MAX_DOUBLINGS

    def __post_init__(self) -> None:
        for name, value in (
            ("retry_limit", self.retry_limit),
            ("age_limit_seconds", self.age_limit_seconds),
            ("min_backoff_seconds", self.min_backoff_seconds),
            ("max_backoff_seconds", self.max_backoff_seconds),
            ("max_doublings", self.max_doublings),
        ):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value!r} is not a number from 0 up")

    def backoff_seconds(self, retry_number: int) -> float:
        """Return how long to wait before retry ``retry_number``, which counts from 1."""
        if retry_number < 1:
            raise ValueError(f"retry_number={retry_number!r}: retries count from 1")
        doublings = min(retry_number - 1, self.max_doublings)
        linear_steps = max(1, retry_number - doublings)
        grown = self.min_backoff_seconds * 2.0 ** min(doublings, _MAX_EXPONENT) * linear_steps
        return min(self.max_backoff_seconds, grown)

    def allows(self, retry_number: int, age_seconds: float) -> bool:
        """Tell whether retry ``retry_number`` may take place, ``age_seconds`` after the first attempt.

        With both limits set a task is given up only when it is past both of them.
        """
        permissions = []
        if self.retry_limit is not None:
            permissions.append(retry_number <= self.retry_limit)
        if self.age_limit_seconds is not None:
            permissions.append(age_seconds <= self.age_limit_seconds)
        return any(permissions) if permissions else True
