"""The Cloud Tasks API on a task store in this process, without sockets and without a scheduler."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from deferred_middleware.server.cloud_tasks.calls.batch_calls import BatchCalls
from deferred_middleware.server.cloud_tasks.calls.queue_calls import QueueCalls
from deferred_middleware.server.cloud_tasks.calls.task_calls import TaskCalls
from deferred_middleware.server.cloud_tasks.methods import Method, methods_of
from deferred_middleware.server.cloud_tasks.names import Home, StoreNames
from deferred_middleware.server.cloud_tasks.queues import CloudQueues
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import Clock

PARENT = "projects/my-project/locations/europe-west1"
QUEUE = f"{PARENT}/queues/mail"
HOME = Home(project="my-project", location="europe-west1")


class Api:
    """The methods of the API. ``wakes`` counts how often the scheduler was woken."""

    def __init__(
        self, store: TaskStore, clock: Clock, *, home: Home | None = None, registry: QueueRegistry | None = None
    ) -> None:
        self.store = store
        self.registry = QueueRegistry() if registry is None else registry
        self.wakes = 0
        self.queues = CloudQueues(store, self.registry, StoreNames(home))
        directory = ServiceDirectory([], needs_none=True)
        tasks = TaskCalls(store, self.queues, directory, self._wake, now=clock)
        queue_calls = QueueCalls(store, self.queues, self._wake, default_location="us-central1")
        self.methods = methods_of(tasks, BatchCalls(tasks, self.queues), queue_calls)

    def _wake(self) -> None:
        self.wakes += 1

    def method(self, name: str) -> Method:
        """Return a method by its name."""
        (found,) = (one for one in self.methods.all if one.name == name)
        return found

    def call(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Call a method with a request in proto3 JSON, and return the response so."""
        method = self.method(name)
        return json_format.MessageToDict(method.call(json_format.ParseDict(request, method.request())))

    def make_queue(self, name: str = QUEUE, **settings: Any) -> None:
        """Make a queue."""
        parent = name.partition("/queues/")[0]
        self.call("CreateQueue", {"parent": parent, "queue": {"name": name, **settings}})

    def make_task(self, queue: str = QUEUE, **task: Any) -> dict[str, Any]:
        """Make a task for an HTTP target."""
        request = {"httpRequest": {"url": "http://localhost/"}, **task}
        return self.call("CreateTask", {"parent": queue, "task": request, "responseView": "FULL"})
