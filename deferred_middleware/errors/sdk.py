"""The errors of ``defer`` that are also one of the SDK's own types.

Code that was written for the SDK catches errors such as ``taskqueue.TaskAlreadyExistsError``. Each error in this module
is both such an error and a :class:`deferred_middleware.DeferredError`. Importing this module imports the SDK, except in
a process that does without it (:mod:`deferred_middleware.errors.sdk_types`).
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors import DeferredError, OptionError
from deferred_middleware.errors.sdk_types import apiproxy_errors, datastore_errors, taskqueue

if TYPE_CHECKING:
    from deferred_middleware.calls.callables import Label
    from deferred_middleware.enqueue.report import EnqueueReport


_LOSES_REQUESTS: Final = sys.version_info >= (3, 13)


class InvalidQueueNameError(OptionError, taskqueue.InvalidQueueNameError):
    """``_queue`` is not a valid queue name."""


class InvalidTaskNameError(OptionError, taskqueue.InvalidTaskNameError):
    """``_name`` is not a valid task name."""


class InvalidEtaError(OptionError, taskqueue.InvalidEtaError, taskqueue.InvalidTaskError):
    """``_eta`` or ``_countdown`` is not a time that a task can wait for."""


class InvalidUrlError(OptionError, taskqueue.InvalidUrlError):
    """``_url`` is not a path that a task can be posted to."""


class InvalidHeaderError(OptionError, taskqueue.InvalidTaskError):
    """A header of ``_headers`` can't be sent with a task."""


class InvalidRetryOptionsError(OptionError, taskqueue.InvalidTaskRetryOptionsError):
    """``_retry_options`` are not accepted by the SDK."""


class InvalidDispatchDeadlineError(OptionError, taskqueue.InvalidDispatchDeadlineError):
    """``_deadline`` is shorter or longer than the platform allows."""


class EnqueueError(DeferredError, taskqueue.Error):
    """A call was not enqueued, or it is not known whether it was.

    ``label`` names the callable, and ``queue`` the queue. ``name`` is the task's name if the caller chose one.
    ``reason`` says why the call was not enqueued. ``maybe_enqueued`` is true if the queue may have the task all the
    same. If the SDK raised an error, that is the ``__cause__``, and this error is an instance of its type too.
    """

    maybe_enqueued = False

    def __init__(self, label: Label | str, queue: str, name: str | None, reason: str) -> None:
        self.label: str = str(label)
        self.queue = queue
        self.name = name
        self.reason = reason
        task = f" as task {name!r}" if name else ""
        super().__init__(f"{label} was not enqueued to queue {queue!r}{task}: {reason}")


class NotAllEnqueuedError(DeferredError, taskqueue.Error):
    """Some of many calls were not enqueued.

    ``report`` has the result of each call. The ``__cause__`` is the error of the first call that failed.
    """

    def __init__(self, report: EnqueueReport) -> None:
        self.report = report
        message = f"{report.failed:,} of {len(report):,} calls {'was' if report.failed == 1 else 'were'} not enqueued"
        if report.stopped_by is not None:
            message += f", and further calls were not read because the iterable raised {report.stopped_by!r}"
        if report.errors:
            message += f". The first error: {report.errors[0][1]}"
        super().__init__(message)


class NoEngineError(EnqueueError, RuntimeError):
    """Nothing in this process answers the SDK's taskqueue API."""


class TargetError(EnqueueError, taskqueue.InvalidTaskError):
    """The task can't be sent to its target from this process."""


class TransactionError(EnqueueError, taskqueue.BadTransactionStateError):
    """The task can't be added in a transaction, because no transaction is open."""


class TransactionLimitError(EnqueueError, datastore_errors.BadRequestError, taskqueue.DatastoreError):
    """The transaction around ``defer()`` already has as many tasks as the platform allows."""


class CrossGroupError(EnqueueError, datastore_errors.BadRequestError):
    """The transaction around ``defer()`` may not write to several entity groups: it lacks ``xg=True``."""


class TaskTooLargeError(EnqueueError, taskqueue.TaskTooLargeError):
    """The call's payload is larger than a task, or the setting, allows.

    ``size_bytes`` is its size, and ``limit_bytes`` the limit.
    """

    def __init__(
        self,
        label: Label,
        queue: str,
        name: str | None,
        size_bytes: int,
        limit_bytes: int,
        what: str,
    ) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        reason = (
            f"{what} takes {size_bytes:,} bytes, but the limit is {limit_bytes:,}. Store the data in the datastore or "
            "in a bucket, and defer the call with its key."
        )
        super().__init__(label, queue, name, reason)


_REASONS: dict[type[BaseException], str] = {
    taskqueue.UnknownQueueError: (
        "the queue does not exist. Declare it in queue.yaml and deploy that file, or use a queue that exists; "
        "'default' always exists."
    ),
    taskqueue.InvalidQueueModeError: "the queue is a pull queue, and deferred calls need a push queue.",
    taskqueue.TaskAlreadyExistsError: (
        "the queue already has a task with this name. (On Cloud Tasks, the task may have ended: a used name stays "
        "blocked for some time.)"
    ),
    taskqueue.TombstonedTaskError: (
        "the queue had a task with this name before. A used name stays blocked (for about 9 days in queues of "
        "queue.yaml). Add a date or a number to the name."
    ),
    taskqueue.TaskTooLargeError: (
        "the task is too large for the queue. Store the data in the datastore or in a bucket, and defer the call with "
        "its key."
    ),
    taskqueue.BadTransactionStateError: (
        "_transactional=True needs a datastore transaction around defer(), but no transaction is open."
    ),
    apiproxy_errors.RPCFailedError: (
        "the queue could not be reached. Call defer() in a request of an app that is wrapped by wrap_wsgi_app and runs "
        "on App Engine or under `deferred-middleware serve MODULE:CALLABLE`."
    ),
    apiproxy_errors.DeadlineExceededError: "the queue did not answer in time.",
}


def explain(error: Exception, label: Label, queue: str, name: str | None, *, notes: str = "") -> EnqueueError:
    """Return the :class:`EnqueueError` for an error that the SDK raised; it is an instance of that type too.

    ``notes`` are sentences to add to the message.
    """
    if type(error) is taskqueue.Error and "task size too large" in str(error).lower():
        # An answer of Cloud Tasks for which the SDK has no type (https://cloud.google.com/tasks/docs/quotas).
        error = taskqueue.TaskTooLargeError(str(error))
    # The engine may know what to do on its platform.
    reason = getattr(error, "way_out", None)
    if reason is None:
        reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), None)
    detail = str(error)
    if isinstance(error, AssertionError):
        # The SDK asserts that the queue answers for each task (SDK: taskqueue.py, Queue.__AddTasks).
        reason = f"the queue's answer is invalid ({error or 'an assertion in the SDK failed'})."
    elif reason is None:
        reason = f"{detail or 'the queue gave no reason'} ({type(error).__name__})"
    elif detail:
        reason = f"{reason} ({detail})"
    if isinstance(error, apiproxy_errors.RPCFailedError):
        reason += note_on_thread()
    joined = _joined(type(error))  # type: ignore[arg-type] # a class is hashable
    explained = joined(label, queue, name, f"{reason} {notes}" if notes else reason)
    explained.__cause__ = error
    return explained


def note_on_thread() -> str:
    """Return a sentence that says that this thread lacks its request, with a space before it; empty if it doesn't.

    The SDK passes a request on to the threads that it starts, but not on Python 3.13 and newer
    (SDK: ``runtime/thread_hooks.py``).
    """
    # wrap_wsgi_app imports both.
    requests = sys.modules.get("google.appengine.runtime.request_environment")
    stubs = sys.modules.get("google.appengine.runtime.default_api_stub")
    if not _LOSES_REQUESTS or requests is None or stubs is None:
        return ""
    if not isinstance(os.environ, requests.RequestLocalEnviron):
        return ""
    if stubs.DefaultApiStub.ShouldUseRequestSecurityTicketForThread():
        return ""
    return (
        " This thread has no request: on Python 3.13 and newer, the SDK doesn't pass the request on to threads. Call "
        "defer() in the request's own thread, or start the thread with target=contextvars.copy_context().run and the "
        "function as its first argument."
    )


@functools.lru_cache(maxsize=64)
def _joined(kind: type[BaseException]) -> type[EnqueueError]:
    """Return the class that is both an EnqueueError and ``kind``, with the name of ``kind``."""
    if issubclass(EnqueueError, kind) or issubclass(kind, AssertionError):
        return EnqueueError
    # Some of the SDK's errors define __str__, which would hide our message.
    return type(kind.__name__, (EnqueueError, kind), {"__doc__": kind.__doc__, "__str__": Exception.__str__})
