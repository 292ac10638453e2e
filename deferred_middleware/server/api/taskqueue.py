"""The taskqueue API, on the task store.

:class:`TaskQueueService` is a stub as the SDK has them. It answers as the platform does, in codes of
``TaskQueueServiceError``, which the SDK's client turns into the exceptions that its users know. What each method
answers is in ``docs/taskqueue-api.rst``.
"""

from __future__ import annotations

from deferred_middleware.server.api.pullmethods import PullMethods
from deferred_middleware.server.api.queuemethods import QueueMethods
from deferred_middleware.server.api.taskmethods import TaskMethods
from deferred_middleware.server.api.taskqueue_add import TransactionMethods


class TaskQueueService(TransactionMethods, TaskMethods, PullMethods, QueueMethods):
    """Answers the taskqueue API, and keeps the tasks of the datastore's transactions."""
