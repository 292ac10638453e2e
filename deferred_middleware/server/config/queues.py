"""The queues, and how they are configured.

The values come from ``queue.yaml`` (:mod:`~deferred_middleware.server.config.queue_yaml`). A :class:`QueueRegistry` is
a mapping from names to :class:`QueueConfig`. It can be replaced as a whole while other threads read it:

    registry = QueueRegistry([QueueConfig(name="mail", rate_per_second=10)])
    registry["mail"], sorted(registry)          # "default" is always in it
    registry.on_change(scheduler.queues_changed)
    registry.replace(parse_queue_yaml(text, path="queue.yaml"))

The Cloud Tasks API makes, changes and deletes queues too. What it says of a queue holds until the entry of that queue
in ``queue.yaml`` changes, as on the platform:

    registry.override("mail", QueueConfig(name="mail", rate_per_second=20))     # None: the queue is deleted
    registry.listed("mail")                                                     # the entry of queue.yaml

A queue that is removed from the configuration takes no new tasks, so it is not in the mapping any more. The tasks that
it has are kept, and run with the queue's last configuration, which :meth:`QueueRegistry.config_of` returns.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from deferred_middleware.server.store.records import RetryPolicy

DEFAULT_QUEUE = "default"
"""The queue that exists without configuration, as on the platform."""

PLATFORM_RATE_PER_SECOND = 5.0
"""The rate of a push queue whose entry in ``queue.yaml`` has none (SDK: ``api/taskqueue/taskqueue_stub.py``)."""
PLATFORM_BUCKET_SIZE = 5
"""https://cloud.google.com/appengine/docs/standard/reference/queueref#bucket_size"""


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """The configuration of one queue.

    ``rate_per_second`` is the average number of attempts that may start per second; 0 pauses the queue, None is no
    limit. ``bucket_size`` is how many attempts may start at once after a quiet time. ``max_concurrent_requests`` is how
    many attempts may run at the same time; None is no limit. ``target``, ``[version.]service``, replaces the tasks' own
    targets. ``retry`` is for tasks without retry options. For a pull queue, only ``name``, ``mode`` and ``retry``
    count.
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
        """Whether the configuration pauses the queue, with a rate of 0."""
        return self.rate_per_second == 0


def queue_id(queue: str) -> str:
    """Return the name of a queue as its tasks see it.

    A queue of the Cloud Tasks API may be called ``QUEUE@LOCATION.PROJECT`` here.
    """
    return queue.partition("@")[0]


IMPLICIT_DEFAULT = QueueConfig(name=DEFAULT_QUEUE)
"""The queue ``default`` if ``queue.yaml`` does not list it.

On the platform, it starts 5 tasks per second. Here, it starts tasks as fast as the services take them, because a
developer's machine needs no limit. If ``queue.yaml`` lists ``default``, its entry counts.
"""

logger: Final = logging.getLogger(__name__)


class QueueRegistry(Mapping[str, QueueConfig]):
    """The queues that take tasks, by name. ``default`` is always among them.

    Any thread may use it. The result of one call is consistent; between two calls, the queues may be replaced.
    """

    def __init__(self, queues: Iterable[QueueConfig] = ()) -> None:
        # Guards all changes of the other fields. Readers need no lock: the dictionaries that they read are replaced,
        # never changed.
        self._lock = threading.Lock()
        self._listed = _by_name(queues)
        self._overrides: dict[str, QueueConfig | None] = {}
        self._queues = self._listed
        self._removed: dict[str, QueueConfig] = {}
        self._listeners: list[Callable[[], None]] = []

    def __getitem__(self, name: str) -> QueueConfig:
        return self._queues[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._queues)

    def __len__(self) -> int:
        return len(self._queues)

    @property
    def removed(self) -> Mapping[str, QueueConfig]:
        """The last configurations of the queues that were removed since the start."""
        return dict(self._removed)

    def config_of(self, name: str) -> QueueConfig:
        """Return the configuration for running a queue's tasks, also if the queue was removed.

        A queue may be unknown if an earlier server left its tasks. It gets the configuration of an unlisted
        ``default``.
        """
        found = self._queues.get(name) or self._removed.get(name)
        return found if found is not None else dataclasses.replace(IMPLICIT_DEFAULT, name=name)

    def listed(self, name: str) -> QueueConfig | None:
        """Return the configuration of a queue without what the API says of it; None if ``queue.yaml`` lists it not."""
        return self._listed.get(name)

    @property
    def overridden(self) -> frozenset[str]:
        """The queues that the API has made, changed or deleted."""
        return frozenset(self._overrides)

    def override(self, name: str, config: QueueConfig | None) -> None:
        """Have the API's configuration of a queue hold; with None, the API has deleted the queue."""

        def change() -> None:
            self._overrides = {**self._overrides, name: config}

        self._change(change)

    def drop_override(self, name: str) -> None:
        """Forget what the API has said of a queue."""

        def change() -> None:
            self._overrides = {other: config for other, config in self._overrides.items() if other != name}

        self._change(change)

    def replace(self, queues: Iterable[QueueConfig]) -> None:
        """Replace the queues of ``queue.yaml``. If that is a change, call the listeners.

        What the API has said of a queue is forgotten if the queue's entry is another one now.
        """
        new = _by_name(queues)

        def change() -> None:
            self._overrides = {
                name: config for name, config in self._overrides.items() if new.get(name) == self._listed.get(name)
            }
            self._listed = new

        self._change(change)

    def _change(self, change: Callable[[], object]) -> None:
        """Make a change, have it take effect, and call the listeners if it has any."""
        with self._lock:
            old = self._queues
            change()
            new = {name: config for name, config in self._listed.items() if name not in self._overrides}
            new |= {name: config for name, config in self._overrides.items() if config is not None}
            if new == old:
                return
            gone = {name: config for name, config in old.items() if name not in new}
            # Before the queues: a reader that does not find a queue there must find it here.
            self._removed = {
                name: config for name, config in {**self._removed, **gone}.items() if name not in new
            } | gone
            self._queues = new
            listeners = list(self._listeners)
        for name in sorted(gone.keys() - self._overrides.keys()):
            logger.warning(
                "Queue %s is not in the configuration any more: it takes no new tasks. The tasks that it has are kept, "
                "and run with its last configuration.",
                name,
            )
        for listener in listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each change, in the thread that makes the change."""
        with self._lock:
            self._listeners.append(listener)


def _by_name(queues: Iterable[QueueConfig]) -> dict[str, QueueConfig]:
    return {DEFAULT_QUEUE: IMPLICIT_DEFAULT, **{queue.name: queue for queue in queues}}
