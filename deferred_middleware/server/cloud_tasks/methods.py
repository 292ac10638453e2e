"""The methods of the API: their names in gRPC, their URLs in REST, and what answers them.

The URLs: https://cloud.google.com/tasks/docs/reference/rest
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.cloud import tasks_v2
from google.cloud.location import locations_pb2
from google.iam.v1 import iam_policy_pb2
from google.longrunning import operations_pb2
from google.protobuf.message import DecodeError

from deferred_middleware.errors import ServerError
from deferred_middleware.server.cloud_tasks import call_errors
from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError, RpcCode, invalid
from deferred_middleware.server.cloud_tasks.calls.batch_calls import BatchCalls
from deferred_middleware.server.cloud_tasks.calls.queue_calls import QueueCalls, no_access_control, no_encryption_keys
from deferred_middleware.server.cloud_tasks.calls.task_calls import TaskCalls
from deferred_middleware.server.store.upkeep.disk_reserve import StoreFullError
from deferred_middleware.server.store.writer import StoreStoppedError

CLOUD_TASKS: Final = "google.cloud.tasks.v2.CloudTasks"
_OPERATIONS: Final = "google.longrunning.Operations"
_LOCATIONS: Final = "google.cloud.location.Locations"

_LOCATION: Final = "projects/[^/]+/locations/[^/]+"
_QUEUE: Final = f"{_LOCATION}/queues/[^/:]+"
_TASK: Final = f"{_LOCATION}/queues/[^/:]+/tasks/[^/:]+"
_CMEK: Final = f"{_LOCATION}/cmekConfig"

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the API.

    ``url`` matches the path of its REST URL after ``/v2/``; the group ``name`` is the value of the request's field
    ``path_field``. With ``body`` the HTTP request has a body: the whole request, or the field ``body_field`` of it.
    """

    service: str
    name: str
    request: Any
    answer: Callable[[Any], Any]
    verb: str
    url: re.Pattern[str]
    path_field: str
    body_field: str | None = None
    has_body: bool = False

    def call(self, request: Any) -> Any:
        """Return the response to a request. Raises :class:`~.call_errors.ApiCallError`, whatever went wrong."""
        try:
            return self.answer(request)
        except ApiCallError:
            raise
        except StoreFullError as error:
            raise ApiCallError(RpcCode.RESOURCE_EXHAUSTED, str(error)) from error
        except StoreStoppedError as error:
            raise ApiCallError(RpcCode.UNAVAILABLE, str(error)) from error
        except (sqlite3.Error, ServerError) as error:
            logger.exception("The task store failed.")
            raise call_errors.internal() from error
        except Exception as error:
            logger.exception("%s could not be answered, because of a defect.", self.name)
            raise call_errors.internal() from error

    def parsed(self, data: bytes) -> Any:
        """Return the request in the wire format. Raises :class:`~.call_errors.ApiCallError` if it is none."""
        try:
            return self.request.FromString(data)
        except DecodeError as error:
            raise invalid("The request is not a valid message.") from error


@dataclass(frozen=True)
class Methods:
    """All methods, and by their services."""

    all: tuple[Method, ...]
    by_service: Mapping[str, Mapping[str, Method]] = field(init=False)

    def __post_init__(self) -> None:
        services: dict[str, dict[str, Method]] = {}
        for method in self.all:
            services.setdefault(method.service, {})[method.name] = method
        object.__setattr__(self, "by_service", services)


def methods_of(tasks: TaskCalls, batches: BatchCalls, queues: QueueCalls) -> Methods:
    """Return the methods of the API, answered by these objects."""

    def method(
        name: str,
        answer: Callable[[Any], Any],
        verb: str,
        url: str,
        path_field: str,
        *,
        service: str = CLOUD_TASKS,
        request: Any = None,
        body_field: str | None = None,
    ) -> Method:
        return Method(
            service=service,
            name=name,
            request=request or getattr(tasks_v2, f"{name}Request").pb(),
            answer=answer,
            verb=verb,
            url=re.compile(url),
            path_field=path_field,
            body_field=body_field,
            has_body=verb in ("POST", "PATCH"),
        )

    iam = {
        "SetIamPolicy": iam_policy_pb2.SetIamPolicyRequest,
        "GetIamPolicy": iam_policy_pb2.GetIamPolicyRequest,
        "TestIamPermissions": iam_policy_pb2.TestIamPermissionsRequest,
    }
    return Methods(
        (
            method("ListQueues", queues.list_queues, "GET", f"(?P<name>{_LOCATION})/queues", "parent"),
            method("GetQueue", queues.get, "GET", f"(?P<name>{_QUEUE})", "name"),
            method(
                "CreateQueue", queues.create, "POST", f"(?P<name>{_LOCATION})/queues", "parent", body_field="queue"
            ),
            method("UpdateQueue", queues.update, "PATCH", f"(?P<name>{_QUEUE})", "queue.name", body_field="queue"),
            method("DeleteQueue", queues.delete, "DELETE", f"(?P<name>{_QUEUE})", "name"),
            method("PurgeQueue", queues.purge, "POST", f"(?P<name>{_QUEUE}):purge", "name"),
            method("PauseQueue", queues.pause, "POST", f"(?P<name>{_QUEUE}):pause", "name"),
            method("ResumeQueue", queues.resume, "POST", f"(?P<name>{_QUEUE}):resume", "name"),
            method("ListTasks", tasks.list_tasks, "GET", f"(?P<name>{_QUEUE})/tasks", "parent"),
            method("GetTask", tasks.get, "GET", f"(?P<name>{_TASK})", "name"),
            method("CreateTask", tasks.create, "POST", f"(?P<name>{_QUEUE})/tasks", "parent"),
            method("BatchCreateTasks", batches.create, "POST", f"(?P<name>{_QUEUE})/tasks:batchCreate", "parent"),
            method("DeleteTask", tasks.delete, "DELETE", f"(?P<name>{_TASK})", "name"),
            method("BatchDeleteTasks", batches.delete, "POST", f"(?P<name>{_QUEUE})/tasks:batchDelete", "parent"),
            method("RunTask", tasks.run, "POST", f"(?P<name>{_TASK}):run", "name"),
            method("GetCmekConfig", no_encryption_keys, "GET", f"(?P<name>{_CMEK})", "name"),
            method(
                "UpdateCmekConfig",
                no_encryption_keys,
                "PATCH",
                f"(?P<name>{_CMEK})",
                "cmek_config.name",
                body_field="cmek_config",
            ),
            *(
                method(
                    name, no_access_control, "POST", f"(?P<name>{_QUEUE}):{name[0].lower()}{name[1:]}", "resource",
                    request=request,
                )
                for name, request in iam.items()
            ),
            method(
                "GetOperation", batches.get_operation, "GET", f"(?P<name>{_LOCATION}/operations/[^/:]+)", "name",
                service=_OPERATIONS, request=operations_pb2.GetOperationRequest,
            ),
            method(
                "GetLocation", queues.get_location, "GET", f"(?P<name>{_LOCATION})", "name",
                service=_LOCATIONS, request=locations_pb2.GetLocationRequest,
            ),
            method(
                "ListLocations", queues.list_locations, "GET", "(?P<name>projects/[^/]+)/locations", "name",
                service=_LOCATIONS, request=locations_pb2.ListLocationsRequest,
            ),
        )
    )  # fmt: skip
