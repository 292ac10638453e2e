"""The errors of ``defer`` that are the SDK's own types as well.

Code that was written for the SDK catches ``taskqueue.TaskAlreadyExistsError`` and its like; each of these is such an
error and a :class:`deferred_middleware.DeferredError`. Importing this module imports the SDK.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from google.appengine.api import datastore_errors, taskqueue
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.errors import DeferredError, OptionError

if TYPE_CHECKING:
    from deferred_middleware.calls.callables import Label
    from deferred_middleware.enqueue.report import EnqueueReport


class InvalidQueueNameError(OptionError, taskqueue.InvalidQueueNameError):  # type: ignore[misc]
    """``_queue`` is no legal name of a queue."""


class InvalidTaskNameError(OptionError, taskqueue.InvalidTaskNameError):  # type: ignore[misc]
    """``_name`` is no legal name of a task."""


class InvalidEtaError(OptionError, taskqueue.InvalidEtaError, taskqueue.InvalidTaskError):  # type: ignore[misc]
    """``_eta`` or ``_countdown`` is nothing that a task can wait for."""


class InvalidUrlError(OptionError, taskqueue.InvalidUrlError):  # type: ignore[misc]
    """``_url`` is no path that a task can be posted to."""


class InvalidHeaderError(OptionError, taskqueue.InvalidTaskError):  # type: ignore[misc]
    """A header of ``_headers`` can't be sent with a task."""


class InvalidRetryOptionsError(OptionError, taskqueue.InvalidTaskRetryOptionsError):  # type: ignore[misc]
    """``_retry_options`` don't make sense."""


class InvalidDispatchDeadlineError(OptionError, taskqueue.InvalidDispatchDeadlineError):  # type: ignore[misc]
    """``_deadline`` is shorter or longer than the platform allows."""


class EnqueueError(DeferredError, taskqueue.Error):  # type: ignore[misc]
    """A call was not enqueued, or is not known to be.

    ``label`` names the callable, ``queue`` the queue, ``name`` the task if the caller named it. ``reason`` says why,
    and ``maybe_enqueued`` whether the queue may have the task nevertheless. The error that the SDK raised, if it did,
    is ``__cause__``, and its type is one of this error's.
    """

    maybe_enqueued = False

    def __init__(self, label: Label | str, queue: str, name: str | None, reason: str) -> None:
        self.label = str(label)
        self.queue = queue
        self.name = name
        self.reason = reason
        task = f" as task {name!r}" if name else ""
        super().__init__(f"{label} was not enqueued to queue {queue!r}{task}: {reason}")


class NotAllEnqueuedError(DeferredError, taskqueue.Error):  # type: ignore[misc]
    """Of many calls some are not enqueued. ``report`` tells of each; the first one's error is ``__cause__``."""

    def __init__(self, report: EnqueueReport) -> None:
        self.report = report
        message = f"of {len(report):,} calls {report.failed:,} were not enqueued"
        if report.stopped_by is not None:
            message += f", and there may be more, because the iterable of calls raised {report.stopped_by!r}"
        if report.errors:
            message += f". The first one: {report.errors[0][1]}"
        super().__init__(message)


class NoEngineError(EnqueueError, RuntimeError):
    """Nothing here answers the SDK's taskqueue API."""


class TargetError(EnqueueError, taskqueue.InvalidTaskError):  # type: ignore[misc]
    """The task can't be sent to its target from here."""


class TransactionError(EnqueueError, taskqueue.BadTransactionStateError):  # type: ignore[misc]
    """The task can't be added in a transaction, because there is none."""


class TransactionLimitError(EnqueueError, datastore_errors.BadRequestError, taskqueue.DatastoreError):  # type: ignore[misc]
    """The transaction around the ``defer()`` has as many tasks as the platform allows."""


class CrossGroupError(EnqueueError, datastore_errors.BadRequestError):  # type: ignore[misc]
    """The transaction around the ``defer()`` is not declared as one over several entity groups (``xg=True``)."""


class TaskTooLargeError(EnqueueError, taskqueue.TaskTooLargeError):  # type: ignore[misc]
    """The call's payload is larger than a task, or the setting, allows.

    ``size_bytes`` and ``limit_bytes`` say by how much.
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
            f"{what} takes {size_bytes:,} bytes, and the limit is {limit_bytes:,}. Store the data, in "
            "the datastore or in a bucket, and defer the call with its key."
        )
        super().__init__(label, queue, name, reason)


_REASONS: dict[type[BaseException], str] = {
    taskqueue.UnknownQueueError: (
        "there is no such queue. Declare it in queue.yaml and deploy that, or use one that exists; "
        "'default' always does."
    ),
    taskqueue.InvalidQueueModeError: "it is a pull queue, and deferred calls need a push queue.",
    taskqueue.TaskAlreadyExistsError: (
        "a task of this name waits in this queue already. (On Cloud Tasks it may also have been there before: a used "
        "name stays blocked for some time.)"
    ),
    taskqueue.TombstonedTaskError: (
        "a task of this name was in this queue before. A used name stays blocked, for about 9 days "
        "in queues of queue.yaml; add a date or a number to it."
    ),
    taskqueue.TaskTooLargeError: (
        "the queue finds it too large. Store the data, in the datastore or in a bucket, and defer "
        "the call with its key."
    ),
    taskqueue.BadTransactionStateError: (
        "_transactional=True needs a datastore transaction around the defer(), and there is none."
    ),
    apiproxy_errors.RPCFailedError: (
        "the queue could not be asked. It can be from inside a request of an app that wrap_wsgi_app "
        "wraps, on App Engine or started with `deferred-middleware serve MODULE:CALLABLE`."
    ),
    apiproxy_errors.DeadlineExceededError: "the queue did not answer in time.",
}


def explain(error: Exception, label: Label, queue: str, name: str | None, *, notes: str = "") -> EnqueueError:
    """Return the :class:`EnqueueError` for what the SDK raised; it is an instance of that type too.

    ``notes`` are further sentences.
    """
    if type(error) is taskqueue.Error and "task size too large" in str(error).lower():
        # What Cloud Tasks says (https://cloud.google.com/tasks/docs/quotas), and the SDK has no type for.
        error = taskqueue.TaskTooLargeError(str(error))
    reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), None)
    detail = str(error)
    if isinstance(error, AssertionError):
        # The SDK asserts that the queue answers for each task (taskqueue.py, Queue.__AddTasks).
        reason = f"the queue's answer makes no sense ({error or 'an assertion in the SDK failed'})."
    elif reason is None:
        reason = f"{detail or 'the queue gave no reason'} ({type(error).__name__})"
    elif detail:
        reason = f"{reason} ({detail})"
    joined = _joined(type(error))  # type: ignore[arg-type] # a class is hashable
    explained = joined(label, queue, name, f"{reason} {notes}" if notes else reason)
    explained.__cause__ = error
    return explained


@functools.lru_cache(maxsize=64)
def _joined(kind: type[BaseException]) -> type[EnqueueError]:
    """Return the class that is both an EnqueueError and ``kind``, under the name of ``kind``."""
    if issubclass(EnqueueError, kind) or issubclass(kind, AssertionError):
        return EnqueueError
    # Some of the SDK's errors have a text of their own, which would hide ours.
    return type(kind.__name__, (EnqueueError, kind), {"__doc__": kind.__doc__, "__str__": Exception.__str__})
