"""What is configured about a queue.

The values come from ``queue.yaml`` (:mod:`~deferred_middleware.server.config.queue_yaml`); which queues there are at
the moment
is for a :class:`~deferred_middleware.server.config.queueregistry.QueueRegistry` to say.

Which queues there are now.

A :class:`QueueRegistry` is a mapping from names to :class:`~deferred_middleware.server.config.queues.QueueConfig`,
which
can be replaced as a whole while others read it:

    registry = QueueRegistry([QueueConfig(name="mail", rate_per_second=10)])
    registry["mail"], sorted(registry)          # and "default", which is always there
    registry.on_change(scheduler.queues_changed)
    registry.replace(parse_queue_yaml(text, path="queue.yaml"))

A queue that was there and isn't any more takes no new tasks, so the mapping doesn't have it; its tasks are kept, and
run as it was configured last. :meth:`QueueRegistry.config_of` says how.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from deferred_middleware.server.store.records import RetryPolicy

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


_log = logging.getLogger(__name__)


class QueueRegistry(Mapping[str, QueueConfig]):
    """The queues that take tasks, by name; ``default`` is among them whether ``queues`` has it or not.

    It may be used by any thread. What is read in one call belongs together; between two calls it may be replaced.
    """

    def __init__(self, queues: Iterable[QueueConfig] = ()) -> None:
        self._queues = _by_name(queues)
        self._removed: dict[str, QueueConfig] = {}
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    def __getitem__(self, name: str) -> QueueConfig:
        return self._queues[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._queues)

    def __len__(self) -> int:
        return len(self._queues)

    @property
    def removed(self) -> Mapping[str, QueueConfig]:
        """The queues that were there since the start and take no tasks any more, as they were configured last."""
        return dict(self._removed)

    def config_of(self, name: str) -> QueueConfig:
        """Return how to run the tasks of a queue, also of one that isn't there any more.

        A queue that has never been there, whose tasks an earlier server may have left, is run as an unlisted
        ``default`` is.
        """
        found = self._queues.get(name) or self._removed.get(name)
        return found if found is not None else dataclasses.replace(IMPLICIT_DEFAULT, name=name)

    def replace(self, queues: Iterable[QueueConfig]) -> None:
        """Have these queues from now on, and tell the listeners if that is a change."""
        new = _by_name(queues)
        with self._lock:
            old = self._queues
            if new == old:
                return
            gone = {name: config for name, config in old.items() if name not in new}
            # Before the queues: whoever doesn't find a queue there has to find it here.
            self._removed = {
                name: config for name, config in {**self._removed, **gone}.items() if name not in new
            } | gone
            self._queues = new
            listeners = list(self._listeners)
        for name in sorted(gone):
            _log.warning(
                "Queue %s is not in the configuration any more: it takes no new tasks; those that it has are kept, and"
                " run as it was configured last.",
                name,
            )
        for listener in listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each change, in the thread that made it."""
        with self._lock:
            self._listeners.append(listener)


def _by_name(queues: Iterable[QueueConfig]) -> dict[str, QueueConfig]:
    return {DEFAULT_QUEUE: IMPLICIT_DEFAULT, **{queue.name: queue for queue in queues}}
