"""Turn a call into the SDK's task: the one place where that is done, for every way of enqueueing.

The steps have an order: where it goes, its bytes, its headers, the task, and what of the task can be checked before the
queue is asked. Importing this module imports the SDK.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from deferred_middleware.calls import allowlist, payload
from deferred_middleware.calls.options import warn
from deferred_middleware.engines import cloudtasks, moulds, transactions
from deferred_middleware.enqueue import plans, routing
from deferred_middleware.errors import sdk
from deferred_middleware.wire import overflow, protocol

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.calls.call import Call
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.enqueue.plans import Plan, Surroundings
    from deferred_middleware.errors.sdk import EnqueueError


# Neither frozen nor keyword-only, as other values are: to make such a one takes three times as long, and each call
# has one.
@dataclasses.dataclass(slots=True)
class Prepared:
    """A call that is ready to be added to its queue."""

    call: Call
    queue: str
    draft: moulds.Draft
    tried_seconds: float
    """How long the add is tried; 0 is a single attempt."""
    named_by_us: bool
    """Whether the task's name was generated here, so that it can't be another task's."""
    transaction: Any | None
    """The datastore connection of the transaction that it is added in, if any; see :mod:`.transactions`."""
    overflowed: overflow.Overflowed | None
    """Its payload, if that does not fit in the task; to be stored before the task is added."""

    @property
    def task(self) -> taskqueue.Task:
        """The SDK's task."""
        return self.draft.task

    @property
    def size_bytes(self) -> int:
        """What it takes on its way: the task, and its payload if that overflowed."""
        overflowed = self.overflowed
        return self.draft.size_bytes if overflowed is None else self.draft.size_bytes + overflowed.reference.size

    @property
    def transactional(self) -> bool:
        """Whether it is added when the surrounding transaction commits."""
        return self.transaction is not None


def prepare(call: Call, content: bytes | None = None, surroundings: Surroundings | None = None) -> Prepared:
    """Return what is to be added for ``call``; nothing is sent yet.

    ``content`` is its payload, where there is one already, and ``surroundings`` where it is enqueued, where that was
    found out already.

    Raises:
        CallError: the callable or an argument can't be pickled.
        OptionError: an option can't be used here.
        EnqueueError: it is known not to be taken: :class:`TaskTooLargeError`, :class:`TargetError`, or what the SDK
            finds wrong; :class:`NoEngineError` where nothing answers the SDK.
        SecretKeyMissingError: signatures are required, and there is no key.
    """
    around = surroundings or plans.surroundings()
    settings, options = around.settings, call.options
    queue = routing.queue_for(call, settings)
    plan = plans.plan_for(call, queue, around)
    body = content
    if body is None:
        body = payload.dumps(call, settings.pickle_protocol)
        if settings.allowed_callables or len(body) > settings.max_payload_bytes:
            _check_body(call, queue, body, settings)
    if not around.has_engine:
        raise _no_engine(call, queue)
    transaction = transactions.of_call(call, queue) if options.transactional else None
    # In a transaction a task can't be named, so that an attempt can't be repeated there.
    tried_seconds = settings.enqueue_seconds if transaction is None else 0.0
    named_by_us = options.name is None and tried_seconds > 0
    # 128 random bits, evenly spread, as the platform advises for names.
    digits = os.urandom(16).hex()
    name = digits if named_by_us else options.name
    nonce = digits[:24]
    limit_bytes = _limit_on_cloud_tasks(call) if around.on_cloud_tasks else protocol.MAX_PUSH_TASK_BYTES
    overflowed = None
    try:
        draft = plan.draft(name, body, options.eta_posix, nonce)
        if draft.size_bytes > limit_bytes:
            draft, overflowed = _smaller(call, queue, plan, name, nonce, body, transaction, limit_bytes)
    except sdk.EnqueueError:
        raise
    except Exception as error:
        raise sdk.explain(error, call.label, queue, options.name) from error
    if plan.target_is_lost:
        raise _target_is_lost(call, queue, plan.target)
    return Prepared(call, queue, draft, tried_seconds, named_by_us, transaction, overflowed)


def _smaller(
    call: Call,
    queue: str,
    plan: Plan,
    name: str | None,
    nonce: str,
    body: bytes,
    transaction: Any | None,
    limit_bytes: int,
) -> tuple[moulds.Draft, overflow.Overflowed | None]:
    """Return a task that fits: with its payload compressed, or with a reference to a payload that is kept elsewhere."""
    for form in overflow.forms(body):
        draft = plan.draft(name, form, call.options.eta_posix, nonce)
        if draft.size_bytes <= limit_bytes:
            return draft, None
    whole_bytes = draft.size_bytes
    overflowed = overflow.Overflowed(form, call.options.eta_posix, transaction)
    draft = plan.draft(name, bytes(overflowed.reference), call.options.eta_posix, nonce)
    if draft.size_bytes > limit_bytes or not overflow.is_available():
        raise _too_large(call, queue, len(form), max(whole_bytes, draft.size_bytes), limit_bytes)
    return draft, overflowed


def _limit_on_cloud_tasks(call: Call) -> int:
    """Return how large a task may be on Cloud Tasks; warn of what that can't do of what the call asks for."""
    cloudtasks.adopt()
    cloudtasks.check_location()
    for problem in cloudtasks.unsupported(call.options):
        warn(problem)
    return cloudtasks.MAX_TASK_BYTES


def _too_large(call: Call, queue: str, body_bytes: int, task_bytes: int, limit_bytes: int) -> EnqueueError:
    """Return the error for a task that is too large, and whose payload can't be kept elsewhere."""
    what = f"the task (its payload alone is {body_bytes:,} bytes, and there is no datastore here to keep it in)"
    if overflow.is_available():
        what = "the task, with its payload in the datastore,"
    return sdk.TaskTooLargeError(call.label, queue, call.options.name, task_bytes, limit_bytes, what)


def _check_body(call: Call, queue: str, body: bytes, settings: Settings) -> None:
    """Check the payload, which may be too large for a task but not for us."""
    if settings.allowed_callables:
        # The very checks that the task has to pass.
        allowlist.check_payload(body, settings.allowed_callables, legacy=False)
        allowlist.check_callable(call.func, settings.allowed_callables)
    if len(body) > settings.max_payload_bytes:
        raise sdk.TaskTooLargeError(
            call.label,
            queue,
            call.options.name,
            len(body),
            settings.max_payload_bytes,
            "its payload (limited by DEFERRED_MAX_PAYLOAD_BYTES)",
        )


def _no_engine(call: Call, queue: str) -> EnqueueError:
    """Return the error for a process in which nothing answers the SDK's taskqueue API."""
    return sdk.NoEngineError(
        call.label,
        queue,
        call.options.name,
        "nothing answers the SDK's taskqueue API in this process. Wrap the app with "
        "google.appengine.api.wrap_wsgi_app, and run it on App Engine or, on one machine, with "
        "`deferred-middleware serve MODULE:CALLABLE`.",
    )


def _target_is_lost(call: Call, queue: str, target: str | None) -> EnqueueError:
    """Return the error for a target that the SDK dropped: the task would run in another service."""
    return sdk.TargetError(
        call.label,
        queue,
        call.options.name,
        f"its target {target!r} can't be told to the queue, because the app's hostname is not known here "
        "(DEFAULT_VERSION_HOSTNAME). Defer it in a request, inside wrap_wsgi_app.",
    )
