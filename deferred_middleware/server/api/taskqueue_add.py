"""The taskqueue API's methods that add tasks, within and without transactions."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from google.appengine.api import api_base_pb2, apiproxy_stub_map
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.datastore import datastore_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.errors import ServerError
from deferred_middleware.server.api.taskqueue_context import TaskQueueContext
from deferred_middleware.server.api.taskqueue_messages import (
    PULL_MODE,
    Code,
    TaskRejectedError,
    application_error,
    is_transactional,
    new_task,
    text,
)
from deferred_middleware.server.store.records import AddResult, NewTask
from deferred_middleware.wire import protocol

logger: Final = logging.getLogger(__name__)

_RESULT_CODES = {
    "added": Code.OK,
    "exists": Code.TASK_ALREADY_EXISTS,
    "tombstoned": Code.TOMBSTONED_TASK,
}


class AddMethods:
    """``BulkAdd`` and ``Add``."""

    def __init__(self, context: TaskQueueContext) -> None:
        self._context = context

    def bulk_add(self, request: Any, response: Any) -> None:
        """Answer ``BulkAdd``: store all of the tasks or none, except for those whose names are taken."""
        adds = request.add_request
        self.check(adds)
        rejections: dict[int, int] = {}
        tasks: dict[int, NewTask] = {}
        names: set[tuple[str, str]] = set()
        repeated: set[int] = set()
        for index, add in enumerate(adds):
            try:
                task = self.new_task(add)
            except TaskRejectedError as error:
                rejections[index] = error.code
                continue
            if task.name is not None:
                if (task.queue, task.name) in names:
                    repeated.add(index)
                    continue
                names.add((task.queue, task.name))
            tasks[index] = task
        if rejections:
            # As on the platform, one illegal task keeps all others out.
            for index in range(len(adds)):
                response.taskresult.add().result = rejections.get(index, Code.SKIPPED)
            return

        results: Mapping[int, AddResult]
        if any(is_transactional(add) for add in adds):
            results = self._add_at_commit(request, tasks)
        else:
            stored = self._context.stored(lambda: self._context.store.add(list(tasks.values())))
            results = dict(zip(tasks, stored, strict=True))
            if any(result.outcome == "added" for result in stored):
                self._context.wake_scheduler()
        for index in range(len(adds)):
            task_result = response.taskresult.add()
            if index in repeated:
                task_result.result = Code.DUPLICATE_TASK_NAME
                continue
            task_result.result = _RESULT_CODES[results[index].outcome]
            if tasks[index].name is None:
                task_result.chosen_task_name = results[index].name.encode()

    def add(self, request: Any, response: Any) -> None:
        """Answer ``Add``."""
        bulk_request = taskqueue_pb.TaskQueueBulkAddRequest()
        bulk_request.add_request.add().CopyFrom(request)
        bulk_response = taskqueue_pb.TaskQueueBulkAddResponse()
        self.bulk_add(bulk_request, bulk_response)
        (result,) = bulk_response.taskresult
        if result.result != Code.OK:
            raise application_error(
                result.result, f"task {text(request.task_name)!r} of queue {text(request.queue_name)!r}"
            )
        if result.HasField("chosen_task_name"):
            response.chosen_task_name = result.chosen_task_name

    def _add_at_commit(self, request: Any, tasks: Mapping[int, NewTask]) -> dict[int, AddResult]:
        """Give the tasks to the datastore, which passes them to :class:`DatastoreTransactions` when it commits."""
        results = {}
        for index in tasks:
            # The client needs the name now, in the answer to this call.
            name = self._context.store.transactional.choose_name()
            request.add_request[index].task_name = name.encode()
            results[index] = AddResult(name=name, outcome="added")
        try:
            apiproxy_stub_map.MakeSyncCall("datastore_v3", "AddActions", request, api_base_pb2.VoidProto())
        except apiproxy_errors.ApplicationError as error:
            raise application_error(error.application_error + Code.DATASTORE_ERROR, error.error_detail) from error
        return results

    def check(self, adds: Any) -> None:
        """Check what concerns the request as a whole. Raises the error that the whole request fails with."""
        if not adds:
            raise application_error(Code.INVALID_REQUEST, "no tasks were given")
        if len(adds) > protocol.MAX_TASKS_PER_ADD:
            raise application_error(
                Code.TOO_MANY_TASKS, f"{len(adds)} tasks, and one add takes {protocol.MAX_TASKS_PER_ADD}"
            )
        if len({is_transactional(add) for add in adds}) > 1:
            raise application_error(Code.INVALID_REQUEST, "only some of the tasks belong to a transaction")
        size = sum(add.ByteSize() for add in adds)
        if is_transactional(adds[0]) and size > protocol.MAX_TRANSACTIONAL_REQUEST_BYTES:
            raise application_error(
                Code.TRANSACTIONAL_REQUEST_TOO_LARGE,
                f"{size} bytes, and one add in a transaction takes {protocol.MAX_TRANSACTIONAL_REQUEST_BYTES}",
            )
        for add in adds:
            self._context.queue_of_mode(add.queue_name, pull=add.mode == PULL_MODE)

    def new_task(self, add: Any) -> NewTask:
        """Return the task that an add asks for. Raises :class:`TaskRejectedError`."""
        return new_task(add, now_usec=self._context.now_usec(), directory=self._context.directory)


class DatastoreTransactions:
    """The tasks of the datastore's transactions: the ``TransactionalQueue`` of the module ``datastore``."""

    def __init__(self, context: TaskQueueContext, adding: AddMethods) -> None:
        self._context = context
        self._adding = adding

    def stage(self, adds: Sequence[Any], transaction: str) -> None:
        """Store the tasks of a transaction before it is committed. Raises the datastore's error if that fails."""
        try:
            self._adding.check(adds)
            tasks = [self._adding.new_task(add) for add in adds]
        except (apiproxy_errors.ApplicationError, TaskRejectedError) as error:
            # They were legal when they were added. Since then, a queue was removed, or has another mode.
            raise application_error(
                datastore_pb.Error.BAD_REQUEST, f"a task of the transaction can't be enqueued: {error}"
            ) from error
        try:
            self._context.store.transactional.stage(tasks, transaction)
        except (sqlite3.Error, ServerError) as error:
            logger.exception("The task store failed.")
            raise application_error(datastore_pb.Error.INTERNAL_ERROR, f"the task store failed: {error}") from error

    def discard(self, transaction: str) -> None:
        """Delete the staged tasks of a transaction that was not committed."""
        try:
            self._context.store.transactional.discard(transaction)
        except (sqlite3.Error, ServerError):
            # Staged tasks never run, and the next start of the server deletes them.
            logger.exception("The tasks of a transaction that was not committed could not be deleted.")

    def commit(self, transactions: Collection[str]) -> None:
        """Enqueue the staged tasks of committed transactions."""
        if self._context.store.transactional.commit(transactions):
            self._context.wake_scheduler()

    def recover(self, committed: Collection[str]) -> None:
        """Enqueue what an earlier server staged for ``committed`` transactions, and discard the rest."""
        self._context.store.transactional.recover(committed)
