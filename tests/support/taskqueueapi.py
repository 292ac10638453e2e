"""The taskqueue API on its own store, called as the SDK calls it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb

from deferred_middleware.server.api.rpc import message_types
from deferred_middleware.server.api.taskqueue import TaskQueueService
from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.store.records import RetryPolicy
from deferred_middleware.server.store.store import TaskStore

Code = taskqueue_pb.TaskQueueServiceError
DIRECTORY = ServiceDirectory(
    [
        Service(name=name, version="local", host="127.0.0.1", port=port, concurrency=1)
        for name, port in (("default", 8080), ("background", 8081))
    ]
)


class Api:
    """The service under test, its store, and the number of times that it woke the scheduler."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.wakes = 0
        self.store = TaskStore(path, clock=clock)
        queues = QueueRegistry(
            [
                QueueConfig(name="other", rate_per_second=20.0, bucket_size=7, max_concurrent_requests=3),
                QueueConfig(name="pull", mode="pull", retry=RetryPolicy(retry_limit=3)),
            ]
        )
        self.service = TaskQueueService(self.store, self._wake, directory=DIRECTORY, queues=queues, clock=clock)

    def _wake(self) -> None:
        self.wakes += 1

    def add(self, *adds: dict[str, Any]) -> list[tuple[str, str]]:
        """Make one BulkAdd; return each result's code and chosen name."""
        request = taskqueue_pb.TaskQueueBulkAddRequest()
        for fields in adds:
            request.add_request.append(add_request(**fields))
        response = taskqueue_pb.TaskQueueBulkAddResponse()
        self.service.MakeSyncCall("taskqueue", "BulkAdd", request, response)
        return [(Code.ErrorCode.Name(r.result), r.chosen_task_name.decode()) for r in response.taskresult]

    def call(self, method: str, **fields: Any) -> Any:
        """Call a method with a request that has these fields; return its response."""
        request_type, response_type = message_types("taskqueue", method)
        response = response_type()
        self.service.MakeSyncCall("taskqueue", method, request_type(**fields), response)
        return response

    def codes(self, *adds: dict[str, Any]) -> list[str]:
        """Make one BulkAdd; return each result's code."""
        return [code for code, _name in self.add(*adds)]


def add_request(**fields: Any) -> Any:
    """Return a ``TaskQueueAddRequest`` of a valid task with these fields."""
    headers = fields.pop("headers", {})
    retry = fields.pop("retry", None)
    defaults = {"queue_name": b"default", "task_name": b"", "eta_usec": int(time.time() * 1e6), "url": b"/work"}
    add = taskqueue_pb.TaskQueueAddRequest(**{**defaults, **fields})
    for key, value in headers.items():
        add.header.add(key=key, value=value)
    if retry is not None:
        add.retry_parameters.SetInParent()
        for name, value in retry.items():
            setattr(add.retry_parameters, name, value)
    return add
