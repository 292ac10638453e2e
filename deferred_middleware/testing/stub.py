"""The SDK's taskqueue stub, changed to report the tasks that are added, and installed in place of the engine."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from google.appengine.api import apiproxy_stub_map, app_identity
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.api.taskqueue import taskqueue_stub

from deferred_middleware.config import process
from deferred_middleware.config.settings import CLOUD_TASKS_VARIABLE
from deferred_middleware.errors.sdk_types import HAS_SDK

HOSTNAME = "app.test"
"""The app's default hostname if the test's environment has none. A target is a prefix of it."""

_HTTP_HOST = "HTTP_HOST"


if TYPE_CHECKING:
    # The SDK has no types: what is used of its class.
    class _SdkQueueStub:
        def __init__(
            self, *, queue_config_path: str | None, _all_queues_valid: bool, auto_task_running: bool
        ) -> None: ...
        def MakeSyncCall(
            self, service: str, call: str, request: Any, response: Any, request_id: str | None = None
        ) -> None: ...
else:
    _SdkQueueStub = taskqueue_stub.TaskQueueServiceStub


class CapturingStub(_SdkQueueStub):
    """The SDK's stub, which checks names, queues and limits.

    Args:
        on_add: is called with the ``TaskQueueAddRequest`` of each task that was added. While a transaction commits,
            the datastore stub is locked, so it is called after that.
        on_delete: is called with a queue and the names of the tasks that the app deleted, or None for a purge.
        queue_yaml: the path of a queue.yaml; only its queues exist then. By default every queue exists.
    """

    def __init__(
        self,
        on_add: Callable[[Any], None],
        on_delete: Callable[[str, list[str] | None], None],
        *,
        queue_yaml: str | None = None,
    ) -> None:
        super().__init__(queue_config_path=queue_yaml, _all_queues_valid=queue_yaml is None, auto_task_running=False)
        self._on_add = on_add
        self._committed: collections.deque[Any] = collections.deque()
        self._on_delete = on_delete

    def MakeSyncCall(self, service: str, call: str, request: Any, response: Any, request_id: Any = None) -> None:
        """Answer a call of the API, and report what it added or deleted."""
        if call == "Add":  # the datastore stub adds a transaction's tasks so, when the transaction commits
            added = taskqueue_pb.TaskQueueAddResponse()
            super().MakeSyncCall(service, call, request, added, request_id)
            self._committed.append(_named(request, added))
            return
        super().MakeSyncCall(service, call, request, response, request_id)
        if call == "BulkAdd":
            for add, result in zip(request.add_request, response.taskresult, strict=True):
                in_transaction = add.HasField("transaction") or add.HasField("datastore_transaction")
                if result.result == taskqueue_pb.TaskQueueServiceError.OK and not in_transaction:
                    self._on_add(_named(add, result))
        elif call == "Delete":
            self._on_delete(request.queue_name.decode(), [name.decode() for name in request.task_name])
        elif call == "PurgeQueue":
            self._on_delete(request.queue_name.decode(), None)

    def report_committed(self) -> None:
        """Report the tasks of transactions that have committed."""
        while self._committed:
            self._on_add(self._committed.popleft())

    def forget(self, queue: str, name: str) -> None:
        """Delete a finished task. Its name stays taken."""
        request = taskqueue_pb.TaskQueueDeleteRequest(queue_name=queue.encode(), task_name=[name.encode()])
        super().MakeSyncCall("taskqueue", "Delete", request, taskqueue_pb.TaskQueueDeleteResponse())


def _named(add: Any, result: Any) -> Any:
    """Return a copy of a ``TaskQueueAddRequest`` with the name that the queue chose, if it chose one."""
    named = taskqueue_pb.TaskQueueAddRequest()
    named.CopyFrom(add)
    if result.chosen_task_name:
        named.task_name = result.chosen_task_name
    return named


def target_from_host(host: str) -> str | None:
    """Return the target in a task's ``Host`` header, which is ``<target>.<the app's hostname>``."""
    suffix = f".{app_identity.get_default_version_hostname()}"
    return host.removesuffix(suffix) if host.endswith(suffix) else None


def _after_call(service: str, call: str, *_: object) -> None:
    """Report the tasks of a transaction after its commit."""
    stub = apiproxy_stub_map.apiproxy.GetStub("taskqueue")
    if call == "Commit" and isinstance(stub, CapturingStub):
        stub.report_committed()


@contextmanager
def installed(stub: CapturingStub) -> Iterator[None]:
    """Make ``stub`` the SDK's taskqueue API. The other APIs stay as they are."""
    if not HAS_SDK:
        raise RuntimeError(
            "DEFERRED_ENGINE and DEFERRED_SERVICE_URLS select Cloud Tasks with HTTP targets, but tests capture tasks "
            "with the SDK's stub. Unset both before the package is imported."
        )
    proxy = apiproxy_stub_map.apiproxy
    previous = proxy.GetStub("taskqueue")
    get_hostname = app_identity.get_default_version_hostname
    # With this variable, tasks would go to Cloud Tasks.
    cloud_tasks = os.environ.pop(CLOUD_TASKS_VARIABLE, None)
    settings = process.current_settings()
    if settings.uses_cloud_tasks:
        process.install_settings(dataclasses.replace(settings, engine=None, service_urls=()))
    # Outside of a request the SDK logs a warning for each task, because it doesn't know the host.
    no_host = _HTTP_HOST not in os.environ
    if no_host:
        os.environ[_HTTP_HOST] = HOSTNAME
    proxy.ReplaceStub("taskqueue", stub)
    # The proxy keeps one hook of each name. It calls the hook when the datastore stub is not locked any more.
    proxy.GetPostCallHooks().Append("deferred_middleware.testing", _after_call, "datastore_v3")
    try:
        # A test client's request doesn't have the app's hostname, and without it the SDK drops targets silently.
        with mock.patch.object(
            app_identity, "get_default_version_hostname", side_effect=lambda: get_hostname() or HOSTNAME
        ):
            yield
    finally:
        proxy.ReplaceStub("taskqueue", previous)
        if cloud_tasks is not None:
            os.environ[CLOUD_TASKS_VARIABLE] = cloud_tasks
        if settings.engine is not None:
            now = process.current_settings()
            process.install_settings(
                dataclasses.replace(now, engine=settings.engine, service_urls=settings.service_urls)
            )
        if no_host:
            os.environ.pop(_HTTP_HOST, None)
