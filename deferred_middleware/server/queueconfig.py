"""What is configured about each queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deferred_middleware.server.retry import RetryPolicy

DEFAULT_QUEUE = "default"
"""The queue that exists without being configured, as on the platform."""


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """One push queue. ``retry`` holds for its tasks that bring no retry options of their own."""

    name: str
    retry: RetryPolicy = field(default_factory=RetryPolicy)


def default_queues() -> Mapping[str, QueueConfig]:
    """Return the queues of an app that configures none."""
    return {DEFAULT_QUEUE: QueueConfig(name=DEFAULT_QUEUE)}
