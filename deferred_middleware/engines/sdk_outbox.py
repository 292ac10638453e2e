"""Read the tasks that the SDK's own transactional adds have left in the datastore.

The SDK writes a task in the transaction and sends it after the commit. If that fails, or if the process dies, its
sweeper sends the task, if the app has scheduled that (SDK: ``api/taskqueue/cloudtask_transactional.py``). Importing
this module imports nothing; reading an entity imports the ``google-cloud-tasks`` client.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.engines import location

if TYPE_CHECKING:
    from deferred_middleware.wire.entities import StoredEntity

KIND: Final = "_AE_PendingCloudTask"
MIN_AGE_SECONDS: Final = 130.0
"""The minimum age of a swept entity: the SDK itself sends it in the first minute, and may lock it for another one."""

_DONE: Final = "DONE"
_DURATIONS: Final = ("max_retry_duration", "min_backoff", "max_backoff")


def read(entity: StoredEntity) -> tuple[str, bytes] | None:
    """Return the full name of the queue and the serialized task; None if the SDK has sent the task already.

    Raises an exception if the entity can't be read.
    """
    found = entity.properties
    if found.get("status") == _DONE:
        return None
    payload = found.get("cloud_task_payload")
    task = _task(json.loads(str(payload))) if payload is not None else _preview_task(json.loads(str(found["payload"])))
    parent = task.name.rpartition("/tasks/")[0] or location.find().queue_path(str(found["queue_name"]))
    if not task.name:
        name = str(found["cloud_task_name"])
        task.name = f"{parent}/tasks/{name}"
    return parent, task.SerializeToString(deterministic=True)


def _task(decoded: Any) -> Any:
    """Return the message for ``{"task": T}``, where T is the JSON form of a ``Task``."""
    from google.cloud import tasks_v2
    from google.protobuf import json_format

    message = tasks_v2.Task.pb()()
    inner = decoded.get("task")
    json_format.ParseDict(inner if isinstance(inner, dict) else decoded, message, ignore_unknown_fields=True)
    return message


def _preview_task(decoded: dict[str, Any]) -> Any:
    """Return the message for the form of the SDK's preview release: the fields of a ``Task``."""
    from google.cloud import tasks_v2

    request = decoded.get("app_engine_http_request")
    if isinstance(request, dict) and isinstance(request.get("body"), str):
        request["body"] = base64.b64decode(request["body"])
    for holder, names in ((decoded, ("schedule_time",)), (decoded.get("retry_config") or {}, _DURATIONS)):
        for name in names:
            value = holder.get(name)
            if isinstance(value, dict):
                kind = _timestamp if name == "schedule_time" else _duration
                holder[name] = kind(value)
    return tasks_v2.Task.pb(tasks_v2.Task(decoded))


def _timestamp(value: dict[str, int]) -> Any:
    from google.protobuf import timestamp_pb2

    return timestamp_pb2.Timestamp(seconds=value.get("seconds", 0), nanos=value.get("nanos", 0))


def _duration(value: dict[str, int]) -> Any:
    from google.protobuf import duration_pb2

    return duration_pb2.Duration(seconds=value.get("seconds", 0), nanos=value.get("nanos", 0))
