"""One RPC that adds tasks: start it with the SDK, and read its answer, on both of the SDK's engines.

Where each task has the message that the SDK would send of it (see :mod:`.moulds`), the RPC is started with these, by
the SDK's own ``create_rpc``; otherwise ``Queue.add_async`` makes them.

Importing this module imports the SDK.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from google.appengine.api import taskqueue
from google.appengine.api.taskqueue import cloudtask
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.engines import answers
from deferred_middleware.engines.answers import Answer
from deferred_middleware.errors import sdk

if TYPE_CHECKING:
    from deferred_middleware.engines.moulds import Draft

_OK = taskqueue_pb.TaskQueueServiceError.OK


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """That a task was not added, or is not known to be, and why."""

    error: Exception
    answer: Answer
    of_whole_add: bool
    """Whether the answer is for all tasks of the RPC, so that it may be another one's."""


class _Deadline:
    """A deadline for the SDK's Cloud Tasks engine, which puts the methods of an RPC on it (SDK: cloudtask.py)."""

    def __init__(self, seconds: float | None) -> None:
        self.deadline = seconds
        self.callback = None


class _NotStarted:
    """An RPC that could not be started."""

    future = None

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_result(self) -> Any:
        """Raise why."""
        raise self.error


def start(queue: str, drafts: Sequence[Draft], seconds: float | None) -> Any:
    """Start to add tasks, and return the RPC object; ``seconds`` is how long it may take."""
    try:
        rpc: Any
        if cloudtask.is_cloudtask_push_queue_enabled():
            rpc = _Deadline(seconds)
        else:
            rpc = taskqueue.create_rpc(deadline=seconds)
            request = _request(drafts)
            if request is not None:
                rpc.make_call("BulkAdd", request, taskqueue_pb.TaskQueueBulkAddResponse())
                return rpc
        return taskqueue.Queue(queue).add_async([draft.task for draft in drafts], rpc=rpc)
    except Exception as error:  # noqa: BLE001 - whatever the SDK stumbles over becomes the calls' error
        return _NotStarted(error)


def _request(drafts: Sequence[Draft]) -> Any | None:
    """Return the message that adds the tasks, or None where one of them is without its part."""
    request = taskqueue_pb.TaskQueueBulkAddRequest()
    add = request.add_request.add
    for draft in drafts:
        if not draft.fill(add()):
            return None
    return request


def future_of(rpc: Any) -> Future[Any] | None:
    """Return the future that is done when ``rpc`` is; None for one that does its work when it is waited for."""
    if isinstance(rpc, _Deadline):
        rpc = rpc.get_result.__self__  # type: ignore[attr-defined] # the SDK's own object, which has the future
    future: Future[Any] | None = rpc.future
    return future


def read(rpc: Any, queue: str, drafts: Sequence[Draft]) -> list[Refusal | None]:
    """Return what became of each of the tasks: None is added. Waits for the answer if it is not there yet."""
    failure: Exception | None = None
    try:
        rpc.get_result()
        if getattr(rpc, "get_result_hook", True) is None and _note_added(rpc.response.taskresult, queue, drafts):
            return [None] * len(drafts)
    except Exception as error:  # noqa: BLE001 - the SDK stumbles over some answers with a TypeError and the like
        failure = error
    if isinstance(rpc, _NotStarted):
        # Nothing was sent, so that nothing can have been added, and trying again would change nothing.
        answer = dataclasses.replace(answers.NOT_SENT, of_queue=_of_all(rpc.error))
        if _lacked_thread(rpc.error):
            answer = answers.NO_THREAD
        refusal = Refusal(rpc.error, answer, True)
        return [refusal] * len(drafts)
    found = _codes(rpc, len(drafts), failure)
    if found is not None:
        codes, detail, of_whole_add = found
        return [
            None
            if code == _OK
            else Refusal(sdk.from_code(code, detail), answers.BY_CODE.get(code, answers.UNKNOWN), of_whole_add)
            for code in codes
        ]
    if failure is None:
        return [None] * len(drafts)
    answer = (answers.for_cloud_exception if isinstance(rpc, _Deadline) else answers.for_exception)(failure)
    return [None if draft.task.was_enqueued else Refusal(failure, answer, True) for draft in drafts]


def _note_added(results: Sequence[Any], queue: str, drafts: Sequence[Draft]) -> bool:
    """Let each task that was added say so, as the SDK does where it is given the tasks; return whether all were."""
    if len(results) != len(drafts):
        raise AssertionError(f"expected {len(drafts)} results from BulkAdd, got {len(results)}")
    codes = [result.result for result in results]
    for place, draft in enumerate(drafts):
        if codes[place] == _OK:
            draft.added(queue, None if draft.name else results[place].chosen_task_name.decode())
    return codes.count(_OK) == len(codes)


def _of_all(error: Exception) -> bool:
    """Tell whether an error in starting an RPC has nothing to do with one of its tasks."""
    return isinstance(error, (apiproxy_errors.Error, taskqueue.BadTransactionStateError, ImportError))


def _lacked_thread(error: Exception) -> bool:
    """Tell whether the SDK's thread pool could start no thread for the call, which another of its threads may do yet.

    So it is when the process has too many threads, and from Python 3.12 on when the process ends. The pool has the call
    in its queue by then (``submit`` in ``concurrent/futures/thread.py``).
    """
    return isinstance(error, RuntimeError) and "new thread" in str(error)


def _codes(rpc: Any, count: int, failure: Exception | None) -> tuple[Sequence[int], str, bool] | None:
    """Return the queue's code for each task, a detail, and whether it is one code for the whole add.

    None where it gave none: the RPC itself failed, or the engine is Cloud Tasks. ``failure`` is what the SDK raised.
    """
    if isinstance(rpc, _Deadline):
        return None
    if failure is not None:  # otherwise the RPC went well, and asking it again would take as long as once
        try:
            rpc.check_success()
        except apiproxy_errors.ApplicationError as error:
            return [error.application_error] * count, error.error_detail, True
        except Exception:  # noqa: BLE001 - get_result raised the same
            return None
    codes = [result.result for result in rpc.response.taskresult]
    return (codes, "", False) if len(codes) == count else None
