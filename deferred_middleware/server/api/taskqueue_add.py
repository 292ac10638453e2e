"""The taskqueue API's methods that add tasks, within and without transactions."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from google.appengine.api import api_base_pb2, apiproxy_stub_map
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.datastore import datastore_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.errors import ServerError
from deferred_middleware.server.api.taskqueue_messages import (
    PULL_MODE,
    Code,
    RefusedError,
    ServiceCore,
    application_error,
    is_transactional,
    new_task,
    text,
)
from deferred_middleware.server.store.records import AddResult, NewTask
from deferred_middleware.wire import protocol

_log = logging.getLogger(__name__)

_RESULT_CODES = {
    "added": Code.OK,
    "exists": Code.TASK_ALREADY_EXISTS,
    "tombstoned": Code.TOMBSTONED_TASK,
}


class AddMethods(ServiceCore):
    """``BulkAdd`` and ``Add``."""

    def _Dynamic_BulkAdd(self, request: Any, response: Any) -> None:
        adds = request.add_request
        self._check_whole(adds)
        refusals: dict[int, int] = {}
        tasks: dict[int, NewTask] = {}
        names: set[tuple[str, str]] = set()
        repeated: set[int] = set()
        for index, add in enumerate(adds):
            try:
                task = self._new_task(add)
            except RefusedError as refused:
                refusals[index] = refused.code
                continue
            if task.name is not None:
                if (task.queue, task.name) in names:
                    repeated.add(index)
                    continue
                names.add((task.queue, task.name))
            tasks[index] = task
        if refusals:
            # As on the platform: one task that can't be taken keeps out the others.
            for index in range(len(adds)):
                response.taskresult.add().result = refusals.get(index, Code.SKIPPED)
            return

        results: Mapping[int, AddResult]
        if any(is_transactional(add) for add in adds):
            results = self._add_at_commit(request, tasks)
        else:
            stored = self._stored(lambda: self._store.add(list(tasks.values())))
            results = dict(zip(tasks, stored, strict=True))
            if any(result.outcome == "added" for result in stored):
                self._wake_scheduler()
        for index in range(len(adds)):
            task_result = response.taskresult.add()
            if index in repeated:
                task_result.result = Code.DUPLICATE_TASK_NAME
                continue
            task_result.result = _RESULT_CODES[results[index].outcome]
            if tasks[index].name is None:
                task_result.chosen_task_name = results[index].name.encode()

    def _Dynamic_Add(self, request: Any, response: Any) -> None:
        bulk_request = taskqueue_pb.TaskQueueBulkAddRequest()
        bulk_request.add_request.add().CopyFrom(request)
        bulk_response = taskqueue_pb.TaskQueueBulkAddResponse()
        self._Dynamic_BulkAdd(bulk_request, bulk_response)
        (result,) = bulk_response.taskresult
        if result.result != Code.OK:
            raise application_error(
                result.result, f"task {text(request.task_name)!r} of queue {text(request.queue_name)!r}"
            )
        if result.HasField("chosen_task_name"):
            response.chosen_task_name = result.chosen_task_name

    def _add_at_commit(self, request: Any, tasks: Mapping[int, NewTask]) -> dict[int, AddResult]:
        """Give the tasks to the datastore, which gives them back to :meth:`hold` when their transaction commits."""
        results = {}
        for index in tasks:
            # Chosen now, because the client is told now.
            name = self._store.transactional.choose_name()
            request.add_request[index].task_name = name.encode()
            results[index] = AddResult(name=name, outcome="added")
        try:
            apiproxy_stub_map.MakeSyncCall("datastore_v3", "AddActions", request, api_base_pb2.VoidProto())
        except apiproxy_errors.ApplicationError as error:
            raise application_error(error.application_error + Code.DATASTORE_ERROR, error.error_detail) from error
        return results

    def _check_whole(self, adds: Any) -> None:
        """Raise what fails a whole request."""
        if not adds:
            raise application_error(Code.INVALID_REQUEST, "no tasks were given")
        if len(adds) > protocol.MAX_TASKS_PER_ADD:
            raise application_error(
                Code.TOO_MANY_TASKS, f"{len(adds)} tasks, and one add takes {protocol.MAX_TASKS_PER_ADD}"
            )
        if len({is_transactional(add) for add in adds}) > 1:
            raise application_error(Code.INVALID_REQUEST, "some of the tasks belong to a transaction and some don't")
        size = sum(add.ByteSize() for add in adds)
        if is_transactional(adds[0]) and size > protocol.MAX_TRANSACTIONAL_REQUEST_BYTES:
            raise application_error(
                Code.TRANSACTIONAL_REQUEST_TOO_LARGE,
                f"{size} bytes, and one add in a transaction takes {protocol.MAX_TRANSACTIONAL_REQUEST_BYTES}",
            )
        for add in adds:
            queue = self._queue(add.queue_name)
            self._check_mode(queue, pull=add.mode == PULL_MODE)

    def _new_task(self, add: Any) -> NewTask:
        return new_task(add, now_usec=self._now_usec(), directory=self._directory)


class TransactionMethods(AddMethods):
    """What becomes of the tasks of a transaction; what :mod:`~deferred_middleware.server.api.datastore` asks for."""

    def hold(self, adds: Sequence[Any], transaction: str) -> None:
        """Store the tasks of a transaction that is about to be committed; raise the datastore's error if that fails."""
        try:
            self._check_whole(adds)
            tasks = [self._new_task(add) for add in adds]
        except (apiproxy_errors.ApplicationError, RefusedError) as error:
            # They could be taken when they were added; a queue was removed since, or is of another mode now.
            raise application_error(
                datastore_pb.Error.BAD_REQUEST, f"a task of the transaction can't be enqueued: {error}"
            ) from error
        try:
            self._store.transactional.stage(tasks, transaction)
        except (sqlite3.Error, ServerError) as error:
            _log.exception("The task store failed.")
            raise application_error(datastore_pb.Error.INTERNAL_ERROR, f"the task store failed: {error}") from error

    def drop_held(self, transaction: str) -> None:
        """Forget the tasks of a transaction that was not committed."""
        try:
            self._store.transactional.discard(transaction)
        except (sqlite3.Error, ServerError):
            # They stay held, which is as good as gone, and the next start forgets them.
            _log.exception("The tasks of a transaction that was not committed could not be removed.")

    def let_go(self, transactions: Collection[str]) -> None:
        """Let the tasks of committed transactions be run."""
        if self._store.transactional.commit(transactions):
            self._wake_scheduler()

    def settle_held(self, committed: Collection[str]) -> None:
        """Let go what an earlier server held for ``committed`` transactions, and forget the rest."""
        self._store.transactional.recover(committed)
