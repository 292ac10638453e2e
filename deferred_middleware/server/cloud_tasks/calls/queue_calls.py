"""The calls about queues, and those about locations and access that every service of Google has."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable
from typing import Any, Final

from google.cloud import tasks_v2
from google.cloud.location import locations_pb2
from google.protobuf import empty_pb2

from deferred_middleware.server.cloud_tasks import call_errors
from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError, invalid
from deferred_middleware.server.cloud_tasks.calls.queue_messages import Queue, check_queue
from deferred_middleware.server.cloud_tasks.names import Home, QueuePath, parse_location
from deferred_middleware.server.cloud_tasks.queues import CloudQueues, FoundQueue
from deferred_middleware.server.store.store import TaskStore

MAX_PAGE_SIZE: Final = 9800
"""[D] "The maximum page size is 9800." """

_ListQueuesResponse: Final[Any] = tasks_v2.ListQueuesResponse.pb()
_SETTABLE: Final = (
    "app_engine_routing_override",
    "http_target",
    "rate_limits",
    "retry_config",
    "stackdriver_logging_config",
)
_OUTPUT_ONLY: Final = ("name", "state", "purge_time", "rate_limits.max_burst_size")


class QueueCalls:
    """Answers the calls about ``queues``; ``wake_scheduler`` is called when one is resumed."""

    def __init__(
        self, store: TaskStore, queues: CloudQueues, wake_scheduler: Callable[[], None], *, default_location: str
    ) -> None:
        self._store = store
        self._queues = queues
        self._wake_scheduler = wake_scheduler
        self._default_location = default_location

    def create(self, request: Any) -> Any:
        """Answer CreateQueue."""
        path = QueuePath.parse(request.queue.name)
        parse_location(request.parent)
        if path.parent != request.parent:
            raise call_errors.not_in_parent(request.queue.name, request.parent)
        check_queue(request.queue)
        return self._queues.message(self._queues.create(path, request.queue))

    def get(self, request: Any) -> Any:
        """Answer GetQueue."""
        return self._queues.message(self._found(request.name))

    def list_queues(self, request: Any) -> Any:
        """Answer ListQueues."""
        location = parse_location(request.parent)
        if request.filter:
            # [O]: the reference has a language of its own for it.
            raise call_errors.unimplemented("ListQueuesRequest.filter")
        if request.page_size < 0:
            raise invalid("ListQueuesRequest.pageSize cannot be negative.")
        after = _decoded(request.page_token)
        queues = [queue for queue in self._queues.all_in(location.name) if queue.path.queue > after]
        wanted = min(request.page_size or MAX_PAGE_SIZE, MAX_PAGE_SIZE)
        response = _ListQueuesResponse()
        response.queues.extend(self._queues.message(queue) for queue in queues[:wanted])
        if len(queues) > wanted:
            response.next_page_token = base64.urlsafe_b64encode(queues[wanted - 1].path.queue.encode()).decode()
        return response

    def update(self, request: Any) -> Any:
        """Answer UpdateQueue, which also makes a queue that does not exist."""
        path = QueuePath.parse(request.queue.name)
        paths = list(request.update_mask.paths)
        for field in paths:
            if not _is_field(field):
                raise invalid(f"Invalid field in the update mask: {field[:80]!r}.")
        changed = Queue()
        # [D] "This method creates the queue if it does not exist and updates the queue if it does exist."
        save = self._queues.create
        with contextlib.suppress(ApiCallError):
            changed.CopyFrom(self._queues.message(self._queues.find(path)))
            save = self._queues.change
        # [D] "If empty, then all fields will be updated."
        mask = type(request.update_mask)(paths=paths or _SETTABLE)
        # Merged into a copy without them, those that the client leaves out have their defaults again.
        given = Queue()
        given.CopyFrom(request.queue)
        for field in mask.paths:
            if field not in _OUTPUT_ONLY:
                _clear(changed, field)
                one = type(mask)(paths=[field])
                one.MergeMessage(given, changed, replace_message_field=True, replace_repeated_field=True)
        check_queue(changed)
        return self._queues.message(save(path, changed))

    def delete(self, request: Any) -> Any:
        """Answer DeleteQueue."""
        path = QueuePath.parse(request.name)
        try:
            queue = self._queues.find(path)
        except ApiCallError:
            raise call_errors.no_entity() from None
        self._queues.delete(queue)
        return empty_pb2.Empty()

    def purge(self, request: Any) -> Any:
        """Answer PurgeQueue."""
        queue = self._found(request.name)
        self._queues.purge(queue)
        return self._queues.message(queue)

    def pause(self, request: Any) -> Any:
        """Answer PauseQueue."""
        queue = self._found(request.name)
        self._store.operations.pause(queue.name)
        self._wake_scheduler()
        return self._queues.message(queue)

    def resume(self, request: Any) -> Any:
        """Answer ResumeQueue."""
        queue = self._found(request.name)
        self._store.operations.resume(queue.name)
        self._wake_scheduler()
        return self._queues.message(queue)

    # Locations.

    def get_location(self, request: Any) -> Any:
        """Answer GetLocation: any location is one."""
        return _location(parse_location(request.name))

    def list_locations(self, request: Any) -> Any:
        """Answer ListLocations: the locations that have queues, or else the default one."""
        project = request.name.removeprefix("projects/")
        parse_location(f"projects/{project}/locations/{self._default_location}")
        locations = self._queues.locations(project) or [self._default_location]
        response = locations_pb2.ListLocationsResponse()
        response.locations.extend(_location(Home(project=project, location=location)) for location in locations)
        return response

    def _found(self, name: str) -> FoundQueue:
        return self._queues.find(QueuePath.parse(name))


def no_access_control(_request: Any) -> Any:
    """Answer the calls about IAM policies."""
    raise call_errors.unimplemented("IAM")


def no_encryption_keys(_request: Any) -> Any:
    """Answer the calls about customer-managed encryption keys."""
    raise call_errors.unimplemented("CmekConfig")


def _location(home: Home) -> Any:
    return locations_pb2.Location(name=home.name, location_id=home.location, labels={})


def _is_field(path: str) -> bool:
    """Return whether a path names a field of a queue."""
    descriptor = Queue.DESCRIPTOR
    for name in path.split("."):
        field = None if descriptor is None else descriptor.fields_by_name.get(name)
        if field is None:
            return False
        descriptor = field.message_type
    return True


def _clear(message: Any, path: str) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if not message.HasField(name):
            return
        message = getattr(message, name)
    message.ClearField(last)


def _decoded(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), b"-_", validate=True).decode()
    except ValueError:
        raise invalid("The page token is not valid.") from None
