"""The answers of a queue to an add, and how they are handled. The manual's tables are generated from these tables.

Sources: ``taskqueue_service.proto`` and ``remote_api.proto`` (SDK: ``api/taskqueue``, ``ext/remote_api``), and how the
SDK turns them into exceptions (``taskqueue.py``, _ERROR_MAPPING and _TranslateError; ``runtime/default_api_stub.py``,
_EXCEPTIONS_MAP). On Cloud Tasks it is a gRPC status (SDK: ``api/taskqueue/cloudtask.py``, _to_taskqueue_error).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Final


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One possible answer other than "added"."""

    what: str
    """The code's name, or the event on the connection."""
    error: str
    """The SDK's exception type that the raised error is an instance of, as ``module.name``."""
    meaning: str
    retried: bool = False
    """Whether the add is retried, under the same name, for up to ``DEFERRED_ENQUEUE_SECONDS``."""
    maybe_enqueued: bool = False
    """Whether the task may be in the queue despite the error."""
    of_queue: bool = False
    """Whether the answer applies to every task of the queue, and not only to one."""
    exists: bool = False
    """Whether the answer means that a task of this name is, or was, in the queue."""


_ERROR: Final = "taskqueue.Error"
_DATASTORE: Final = "taskqueue.DatastoreError"
_DATASTORE_ERROR: Final = 10000
"""``DATASTORE_ERROR``. The higher codes are this number plus a code of the datastore."""


def _datastore(what: str, error: str, meaning: str, *, retried: bool = False) -> Answer:
    return Answer(what, f"datastore_errors.{error}", meaning, retried=retried, maybe_enqueued=retried)


BY_CODE: Final[dict[int, Answer]] = {
    1: Answer("UNKNOWN_QUEUE", "taskqueue.UnknownQueueError", "there is no such queue", of_queue=True),
    2: Answer(
        "TRANSIENT_ERROR", "taskqueue.TransientError", "the queue failed for now", retried=True, maybe_enqueued=True
    ),
    3: Answer("INTERNAL_ERROR", "taskqueue.InternalError", "the queue failed", retried=True, maybe_enqueued=True),
    4: Answer("TASK_TOO_LARGE", "taskqueue.TaskTooLargeError", "the task is larger than the queue takes"),
    5: Answer("INVALID_TASK_NAME", "taskqueue.InvalidTaskNameError", "the name is not legal"),
    6: Answer("INVALID_QUEUE_NAME", "taskqueue.InvalidQueueNameError", "the queue's name is not legal", of_queue=True),
    7: Answer("INVALID_URL", "taskqueue.InvalidUrlError", "the URL is not legal"),
    8: Answer("INVALID_QUEUE_RATE", "taskqueue.InvalidQueueError", "the queue's rate is not legal", of_queue=True),
    9: Answer("PERMISSION_DENIED", "taskqueue.PermissionDeniedError", "the app may not use the queue", of_queue=True),
    10: Answer("TASK_ALREADY_EXISTS", "taskqueue.TaskAlreadyExistsError", "the name is taken", exists=True),
    11: Answer("TOMBSTONED_TASK", "taskqueue.TombstonedTaskError", "the name was used before", exists=True),
    12: Answer("INVALID_ETA", "taskqueue.InvalidEtaError", "the ETA is not legal"),
    13: Answer("INVALID_REQUEST", _ERROR, "the add makes no sense to the queue"),
    14: Answer("UNKNOWN_TASK", _ERROR, "there is no such task"),
    15: Answer("TOMBSTONED_QUEUE", _ERROR, "the queue was deleted not long ago", of_queue=True),
    16: Answer("DUPLICATE_TASK_NAME", "taskqueue.DuplicateTaskNameError", "the name is in the same add twice"),
    17: Answer("SKIPPED", _ERROR, "not added, because another task of the same add was refused", retried=True),
    18: Answer("TOO_MANY_TASKS", "taskqueue.TooManyTasksError", "the add has too many tasks"),
    19: Answer("INVALID_PAYLOAD", _ERROR, "the payload is not legal"),
    20: Answer("INVALID_RETRY_PARAMETERS", _ERROR, "the retry options are not legal"),
    21: Answer("INVALID_QUEUE_MODE", "taskqueue.InvalidQueueModeError", "it is a pull queue", of_queue=True),
    22: Answer("ACL_LOOKUP_ERROR", _ERROR, "who may use the queue could not be found out", of_queue=True),
    23: Answer(
        "TRANSACTIONAL_REQUEST_TOO_LARGE",
        "taskqueue.TransactionalRequestTooLargeError",
        "the transaction's tasks are larger than a transaction takes",
    ),
    24: Answer("INCORRECT_CREATOR_NAME", _ERROR, "the creator's name is wrong"),
    25: Answer("TASK_LEASE_EXPIRED", "taskqueue.TaskLeaseExpiredError", "the task's lease is over"),
    26: Answer("QUEUE_PAUSED", "taskqueue.QueuePausedError", "the queue is paused", of_queue=True),
    27: Answer("INVALID_TAG", "taskqueue.InvalidTagError", "the tag is not legal"),
    28: Answer("INVALID_LOGGING_CONFIG", _ERROR, "the queue's logging is set up wrongly", of_queue=True),
    29: Answer("INVALID_DISPATCH_DEADLINE", _ERROR, "the dispatch deadline is not legal"),
    10000: Answer("DATASTORE_ERROR", _DATASTORE, "the datastore failed"),
    10001: _datastore("DATASTORE_BAD_REQUEST", "BadRequestError", "the datastore does not understand"),
    10002: _datastore("DATASTORE_CONCURRENT_TRANSACTION", "TransactionFailedError", "another transaction won"),
    10003: _datastore("DATASTORE_INTERNAL_ERROR", "InternalError", "the datastore failed", retried=True),
    10004: _datastore("DATASTORE_NEED_INDEX", "NeedIndexError", "the datastore lacks an index"),
    10005: _datastore("DATASTORE_TIMEOUT", "Timeout", "the datastore took too long", retried=True),
    10006: Answer("DATASTORE_PERMISSION_DENIED", _DATASTORE, "the app may not use the datastore"),
    10007: _datastore("DATASTORE_BIGTABLE_ERROR", "Timeout", "the datastore's storage failed", retried=True),
    10008: _datastore("DATASTORE_COMMITTED_BUT_STILL_APPLYING", "CommittedButStillApplying", "not yet to be seen"),
    10009: Answer("DATASTORE_CAPABILITY_DISABLED", "apiproxy_errors.CapabilityDisabledError", "switched off for now"),
    10010: Answer(
        "DATASTORE_TRY_ALTERNATE_BACKEND", _DATASTORE, "to be had elsewhere", retried=True, maybe_enqueued=True
    ),
    10011: Answer("DATASTORE_SAFE_TIME_TOO_OLD", _DATASTORE, "the datastore is behind"),
    10012: Answer(
        "DATASTORE_RESOURCE_EXHAUSTED", "apiproxy_errors.OverQuotaError", "a quota of the datastore is used up"
    ),
    10013: Answer("DATASTORE_NOT_FOUND", _DATASTORE, "not in the datastore"),
    10014: Answer("DATASTORE_ALREADY_EXISTS", _DATASTORE, "in the datastore already"),
    10015: Answer("DATASTORE_FAILED_PRECONDITION", _DATASTORE, "the datastore is not in the state for it"),
    10016: Answer("DATASTORE_UNAUTHENTICATED", _DATASTORE, "the datastore does not know the app"),
    10017: Answer("DATASTORE_ABORTED", _DATASTORE, "the datastore broke off", retried=True, maybe_enqueued=True),
    10018: _datastore("DATASTORE_SNAPSHOT_VERSION_TOO_OLD", "SnapshotVersionTooOldError", "the transaction is too old"),
}
"""By ``TaskQueueServiceError``: the answer for one task, or an application error of the whole add."""

_TRANSIENT: Final = "taskqueue.TransientError"
_REFUSED: Final = Answer("INVALID_ARGUMENT", _ERROR, "the task makes no sense to Cloud Tasks, or is too large")

BY_STATUS: Final[dict[int, Answer]] = {
    1: Answer("CANCELLED", _ERROR, "the call was cancelled", retried=True, maybe_enqueued=True),
    2: Answer("UNKNOWN", _ERROR, "Cloud Tasks failed", retried=True, maybe_enqueued=True),
    3: _REFUSED,
    4: Answer("DEADLINE_EXCEEDED", _TRANSIENT, "no answer came in time", retried=True, maybe_enqueued=True),
    5: Answer("NOT_FOUND", "taskqueue.UnknownQueueError", "there is no such queue", of_queue=True),
    6: Answer(
        "ALREADY_EXISTS", "taskqueue.TaskAlreadyExistsError", "the name is taken, or was not long ago", exists=True
    ),
    7: Answer("PERMISSION_DENIED", "taskqueue.PermissionDeniedError", "the app may not use the queue", of_queue=True),
    8: Answer("RESOURCE_EXHAUSTED", _TRANSIENT, "a quota is used up for now", retried=True, maybe_enqueued=True),
    9: Answer("FAILED_PRECONDITION", _ERROR, "the queue is not in the state for it", of_queue=True),
    10: Answer("ABORTED", _TRANSIENT, "Cloud Tasks broke off", retried=True, maybe_enqueued=True),
    11: Answer("OUT_OF_RANGE", _ERROR, "a value is out of its range"),
    12: Answer("UNIMPLEMENTED", _ERROR, "the server does not know the call", of_queue=True),
    13: Answer("INTERNAL", "taskqueue.InternalError", "Cloud Tasks failed", retried=True, maybe_enqueued=True),
    14: Answer("UNAVAILABLE", _TRANSIENT, "Cloud Tasks can't be reached", retried=True, maybe_enqueued=True),
    15: Answer("DATA_LOSS", _ERROR, "Cloud Tasks lost data", maybe_enqueued=True),
    16: Answer("UNAUTHENTICATED", "taskqueue.PermissionDeniedError", "the app is not known there", of_queue=True),
}
"""By gRPC status: the answers of Cloud Tasks."""

_RPC_FAILED: Final = "apiproxy_errors.RPCFailedError"


def _transport(what: str, meaning: str, error: str = _RPC_FAILED) -> Answer:
    return Answer(what, error, meaning, retried=True, maybe_enqueued=True)


BY_RPC_ERROR: Final[dict[int, Answer]] = {
    0: _transport("UNKNOWN", "the API server failed"),
    1: Answer("CALL_NOT_FOUND", "apiproxy_errors.CallNotFoundError", "it does not know the call", of_queue=True),
    2: Answer("PARSE_ERROR", "apiproxy_errors.ArgumentError", "it can't read the add"),
    3: _transport("SECURITY_VIOLATION", "it does not know the app; the SDK tells it like UNKNOWN"),
    4: Answer("OVER_QUOTA", "apiproxy_errors.OverQuotaError", "the app's quota is used up", of_queue=True),
    5: Answer("REQUEST_TOO_LARGE", "apiproxy_errors.RequestTooLargeError", "the add is too large"),
    6: Answer(
        "CAPABILITY_DISABLED", "apiproxy_errors.CapabilityDisabledError", "switched off for maintenance", of_queue=True
    ),
    7: Answer("FEATURE_DISABLED", "apiproxy_errors.FeatureNotEnabledError", "not switched on", of_queue=True),
    8: _transport("BAD_REQUEST", "it can't read the call; the SDK tells it like UNKNOWN"),
    9: _transport("RESPONSE_TOO_LARGE", "its answer is too large", "apiproxy_errors.ResponseTooLargeError"),
    10: _transport("CANCELLED", "the call was cancelled", "apiproxy_errors.CancelledError"),
    11: _transport("REPLAY_ERROR", "the SDK tells it like UNKNOWN"),
    12: _transport("DEADLINE_EXCEEDED", "it took too long", "apiproxy_errors.DeadlineExceededError"),
}
"""By the ``ErrorCode`` of an ``rpc_error``: the answers of the API server."""

CLOSED: Final = _transport("connection closed", "the connection broke off before the answer")
HTTP_STATUS: Final = _transport("HTTP status", "the API server answered with a status other than 200")
TIMED_OUT: Final = _transport("no answer", "none came in time", "apiproxy_errors.DeadlineExceededError")
EMPTY: Final = _transport("empty answer", "it has not one result for each task", _ERROR)
UNREADABLE: Final = _transport("unreadable answer", "it is not in the API's format", "message.DecodeError")
OF_CONNECTION: Final = (CLOSED, HTTP_STATUS, TIMED_OUT, EMPTY, UNREADABLE)
"""The failures without a valid answer."""

UNKNOWN: Final = Answer("anything else", _ERROR, "an answer that is not in this table", maybe_enqueued=True)
UNFINISHED: Final = _transport("unfinished operation", "the answer does not say which tasks were added", _ERROR)
NOT_SENT: Final = Answer("nothing", _ERROR, "the queue was not asked")
NO_THREAD: Final = Answer(
    "no thread", _ERROR, "no thread could be started to ask it", retried=True, maybe_enqueued=True
)
NO_CREDENTIALS: Final = Answer("nothing", _ERROR, "Cloud Tasks was not asked, for want of credentials", of_queue=True)


def for_exception(error: BaseException) -> Answer:
    """Return the answer that matches an exception of the SDK. Imports the SDK."""
    if isinstance(error, AssertionError):
        return EMPTY  # the SDK asserts that there is a result for each task (taskqueue.py, Queue.__AddTasks)
    for answer in (*BY_CODE.values(), *BY_RPC_ERROR.values(), UNREADABLE):
        specific = not answer.error.startswith("datastore_errors.") and answer.error not in (_ERROR, _DATASTORE)
        if specific and isinstance(error, _exception_type(answer.error)):
            return answer
    return UNKNOWN


def exception_for_code(code: int, detail: str) -> Exception:
    """Return the SDK's exception for a ``TaskQueueServiceError``. Imports the SDK."""
    answer = BY_CODE.get(code)
    if answer is None:
        return sdk_error(f"the queue answered with code {code}, which this version does not know. {detail}".rstrip())
    if code < _DATASTORE_ERROR:
        return exception_for(answer, detail)
    return _datastore_error_type(answer.error)(detail or answer.meaning)


def exception_for(answer: Answer, detail: str) -> Exception:
    """Return the SDK's exception that ``answer`` names, with ``detail`` as its text. Imports the SDK."""
    if answer.error == _ERROR:
        detail = detail or answer.meaning
    error: Exception = _exception_type(answer.error)(detail)
    return error


def sdk_error(message: str) -> Exception:
    """Return the SDK's general ``taskqueue.Error``. Imports the SDK."""
    error: Exception = _exception_type(_ERROR)(message)
    return error


def lacks_thread(error: BaseException) -> bool:
    """Tell whether ``error`` means that a thread pool could not start a thread for a call.

    This happens if the process has too many threads or, from Python 3.12 on, if the process is ending. The pool has
    queued the call already, so another of its threads may still make it (``submit`` in
    ``concurrent/futures/thread.py``).
    """
    return isinstance(error, RuntimeError) and "new thread" in str(error)


@functools.lru_cache(maxsize=128)
def _exception_type(name: str) -> Any:
    """Return the exception class that is named ``module.name`` in this module's tables."""
    from google.protobuf import message

    from deferred_middleware.errors.sdk_types import apiproxy_errors, datastore_errors, taskqueue

    module, _, attribute = name.partition(".")
    modules = {
        "taskqueue": taskqueue,
        "datastore_errors": datastore_errors,
        "apiproxy_errors": apiproxy_errors,
        "message": message,
    }
    return getattr(modules[module], attribute)


@functools.lru_cache(maxsize=32)
def _datastore_error_type(name: str) -> Callable[[str], Exception]:
    """Return an error class that is both the datastore's and ``taskqueue.DatastoreError``, as in the SDK."""
    kind = _exception_type("datastore_errors.Error" if name == _DATASTORE else name)
    return type(kind.__name__, (kind, _exception_type(_DATASTORE)), {"__doc__": kind.__doc__})
