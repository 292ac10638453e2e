"""The taskqueue API, on the task store.

:class:`TaskQueueService` is a stub as the SDK has them. It answers as the platform does, with codes of
``TaskQueueServiceError``, which the SDK's client turns into its exceptions. What each method answers is in
``docs/taskqueue-api.rst``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from google.appengine.api import apiproxy_stub
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.server.api.taskqueue_add import AddMethods, DatastoreTransactions
from deferred_middleware.server.api.taskqueue_context import TaskQueueContext
from deferred_middleware.server.api.taskqueue_methods import LeaseMethods, QueueMethods, TaskMethods
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.store.store import TaskStore

_MAX_REQUEST_BYTES = 32 << 20  # as the SDK's own stub (api/taskqueue/taskqueue_stub.py)


if TYPE_CHECKING:
    # The SDK has no types: what is used of its class.
    class _SdkApiStub:
        def __init__(self, service_name: str, *, max_request_size: int) -> None: ...
        def CheckRequest(self, service: str, call: str, request: Any) -> None: ...
else:
    _SdkApiStub = apiproxy_stub.APIProxyStub


class TaskQueueService(_SdkApiStub):
    """Answers the calls of the taskqueue API. Any thread may call it.

    ``wake_scheduler`` is called when there may be a task to run. ``directory`` tells which service a task's ``Host``
    header means. ``clock`` returns seconds since the epoch. :attr:`transactions` takes the tasks of the datastore's
    transactions.
    """

    THREADSAFE = True

    def __init__(
        self,
        store: TaskStore,
        wake_scheduler: Callable[[], None],
        *,
        directory: ServiceDirectory,
        queues: QueueRegistry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__("taskqueue", max_request_size=_MAX_REQUEST_BYTES)
        context = TaskQueueContext(
            store=store,
            queues=QueueRegistry() if queues is None else queues,
            directory=directory,
            wake_scheduler=wake_scheduler,
            clock=clock,
        )
        adding = AddMethods(context)
        tasks = TaskMethods(context)
        queue_methods = QueueMethods(context)
        leases = LeaseMethods(context)
        self.transactions: DatastoreTransactions = DatastoreTransactions(context, adding)
        self._methods: dict[str, Callable[[Any, Any], None]] = {
            "Add": adding.add,
            "BulkAdd": adding.bulk_add,
            "Delete": tasks.delete,
            "QueryTasks": tasks.query_tasks,
            "FetchTask": tasks.fetch_task,
            "ForceRun": tasks.force_run,
            "FetchQueues": queue_methods.fetch_queues,
            "FetchQueueStats": queue_methods.fetch_queue_stats,
            "PauseQueue": queue_methods.pause_queue,
            "PurgeQueue": queue_methods.purge_queue,
            "UpdateQueue": queue_methods.update_queue,
            "DeleteQueue": queue_methods.delete_queue,
            "QueryAndOwnTasks": leases.query_and_own_tasks,
            "ModifyTaskLease": leases.modify_task_lease,
        }

    def MakeSyncCall(self, service: str, call: str, request: Any, response: Any, request_id: str | None = None) -> None:
        """Answer one call. Raises ``CallNotFoundError`` for a method that the local server does not have."""
        self.CheckRequest(service, call, request)
        method = self._methods.get(call)
        if method is None:
            raise apiproxy_errors.CallNotFoundError(f"the local server does not have {service}.{call}")
        method(request, response)
