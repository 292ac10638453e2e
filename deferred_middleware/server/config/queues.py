"""What is configured about a queue.

The values come from ``queue.yaml`` (:mod:`~deferred_middleware.server.config.queue_yaml`); which queues there are at
the moment
is for a :class:`~deferred_middleware.server.config.queueregistry.QueueRegistry` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deferred_middleware.server.store.retry import RetryPolicy

DEFAULT_QUEUE = "default"
"""The queue that exists without being configured, as on the platform."""

PLATFORM_RATE_PER_SECOND = 5.0
"""The rate of a push queue of ``queue.yaml`` that gives none (SDK: ``api/taskqueue/taskqueue_stub.py``)."""
PLATFORM_BUCKET_SIZE = 5
"""https://cloud.google.com/appengine/docs/standard/reference/queueref#bucket_size"""


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """One queue.

    ``rate_per_second`` is how many attempts may begin in a second on average, ``bucket_size`` how many at once after a
    quiet time; a rate of 0 pauses the queue, None is no limit. ``max_concurrent_requests`` is how many attempts may be
    under way, None is no limit. ``target``, which is ``[version.]service``, wins over the tasks' own where there is
    one. ``retry`` holds for tasks that bring no retry options. The other fields mean nothing for a pull queue.
    """

    name: str
    mode: Literal["push", "pull"] = "push"
    rate_per_second: float | None = None
    bucket_size: int = PLATFORM_BUCKET_SIZE
    max_concurrent_requests: int | None = None
    target: str | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    @property
    def paused(self) -> bool:
        """Whether its configuration pauses it, by a rate of 0."""
        return self.rate_per_second == 0


IMPLICIT_DEFAULT = QueueConfig(name=DEFAULT_QUEUE)
"""The queue ``default`` where ``queue.yaml`` doesn't list it.

On the platform it runs 5 tasks a second. Here it runs them as fast as the services take them: nobody asked for a limit,
and on one's own machine nobody wants to wait. A ``queue.yaml`` that lists ``default`` is obeyed.
"""
