"""Enqueue a call: from ``defer`` to the SDK's ``taskqueue``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from deferred_middleware.calls.call import Call, call
from deferred_middleware.calls.callables import label_of
from deferred_middleware.calls.options import Options
from deferred_middleware.engines.request_scope import LOSES_REQUESTS, lost_request
from deferred_middleware.enqueue.batch import current_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import ParamSpec, TypeVarTuple, Unpack

    from deferred_middleware.calls.callables import AnyCallable
    from deferred_middleware.calls.option_types import DeferOptions
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
    from deferred_middleware.enqueue.futures import EnqueueFuture
    from deferred_middleware.enqueue.report import EnqueueReport

    P = ParamSpec("P")
    Ts = TypeVarTuple("Ts")


@overload
def defer(func: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> EnqueuedTask: ...
@overload
def defer(
    func: Callable[[Unpack[Ts]], object], /, *args: Unpack[Ts], **options: Unpack[DeferOptions]
) -> EnqueuedTask: ...
def defer(func: AnyCallable, /, *args: Any, **kwargs: Any) -> EnqueuedTask:  # type: ignore[misc] # mypy does not match *args: Any with *args: *Ts
    """Run ``func(*args, **kwargs)`` later, in a task. When this returns, the task is enqueued.

    ``func`` is any callable that a module holds: a function (``async def`` too), a class, a bound, class or static
    method, a partial, or an instance with ``__call__``. The call is checked now, as far as possible. A queue delivers a
    task at least once, so the call may run more than once: make it idempotent.

    Options, each None by default:

    * ``_queue``: a queue's name, or a list of names to spread over
      (default: ``DEFERRED_DEFAULT_QUEUES``).
    * ``_countdown``: seconds from now, or a timedelta; or ``_eta``: an aware datetime. At most 30 days.
    * ``_name``: the task's name, unique in its queue, while it waits and for days afterwards.
    * ``_target``: the service to run it, as ``service``, ``version.service`` or ``instance.version.service``
      (default: the background module, or the service that enqueues).
    * ``_transactional``: True to enqueue if and when the surrounding datastore transaction commits.
    * ``_retry_options``: ``taskqueue.TaskRetryOptions``, or a dict of its arguments.
    * ``_headers``: a dict of additional headers for the task's request.
    * ``_deadline``: the dispatch deadline, 15 to 86,400 seconds or a timedelta.
    * ``_max_attempts``: the maximum number of attempts, whatever the queue allows.
    * ``_url``: a path outside the URL prefix, where another handler runs the task.

    Returns:
        The :class:`EnqueuedTask`, with its name and queue. A transactional one has no final name.

    Raises:
        CallError: the call can't be deferred: :class:`NotCallableError`, :class:`NotImportableError`,
            :class:`ArgumentsError` or :class:`UnpicklableArgumentError`.
        UnknownOptionError: an ``_option`` that neither ``defer`` nor ``func`` has.
        OptionError: an option's value can't be used.
        EnqueueError: the task is not enqueued, or not known to be; also the SDK's own type, such as
            ``taskqueue.TaskAlreadyExistsError``.
    """
    return enqueue(call(func, *args, **kwargs))


@overload
def defer_async(func: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> EnqueueFuture: ...
@overload
def defer_async(
    func: Callable[[Unpack[Ts]], object], /, *args: Unpack[Ts], **options: Unpack[DeferOptions]
) -> EnqueueFuture: ...
def defer_async(func: AnyCallable, /, *args: Any, **kwargs: Any) -> EnqueueFuture:  # type: ignore[misc] # mypy does not match *args: Any with *args: *Ts
    """Start to enqueue ``func(*args, **kwargs)``, and return an :class:`EnqueueFuture` of the task.

    It takes the arguments of :func:`defer`. It runs the checks that don't need the queue before it returns, and
    enqueues in the background. To wait for the task, call ``.result(timeout)``, ``await`` the future in a coroutine, or
    ``yield`` it in an ndb tasklet. You don't have to wait: :class:`DeferredMiddleware` waits at the end of the request,
    and logs a failure as an error if the app didn't read it.

    With ``_transactional`` it waits for the queue and raises what :func:`defer` raises, because a transaction must not
    commit before its tasks are known to be in it.

    Raises:
        CallError, UnknownOptionError, OptionError: as :func:`defer`.
        EnqueueError: a check has shown that the queue won't accept the task.
    """
    return enqueue_async(call(func, *args, **kwargs))


def enqueue_async(call: Call) -> EnqueueFuture:
    """Start to enqueue a :class:`Call`; see :func:`defer_async`."""
    from deferred_middleware.enqueue import futures, prepare  # imported here, because they import the SDK

    if LOSES_REQUESTS and (lost := lost_request()) is not None:
        return lost.run(enqueue_async, call)
    prepared = prepare.prepare(call)
    batch = current_batch.get()
    if batch is not None:
        batch = batch.open_one()
    if batch is not None and not prepared.transactional:
        future = futures.EnqueueFuture(prepared, batch)
        if batch.take(prepared, future):
            return future
    return futures.start(prepared)


def enqueue(call: Call) -> EnqueuedTask:
    """Enqueue a :class:`Call`; see :func:`defer`."""
    from deferred_middleware.enqueue import add, enqueued_task, prepare  # imported here, because they import the SDK

    if LOSES_REQUESTS and (lost := lost_request()) is not None:
        return lost.run(enqueue, call)
    prepared = prepare.prepare(call)
    batch = current_batch.get()
    if batch is not None:
        batch = batch.open_one()
    if batch is None or not batch.takes_plain_calls or prepared.transactional or not batch.take(prepared):
        add.add(prepared)
    return enqueued_task.EnqueuedTask(prepared.message, prepared.transactional, prepared)


def defer_many(
    calls: Iterable[Call],
    *,
    parallel: int = 10,
    progress: Callable[[EnqueueReport], object] | None = None,
    raise_errors: bool = True,
    **options: Unpack[DeferOptions],
) -> EnqueueReport:
    """Enqueue many calls, up to 100 in an RPC and ``parallel`` RPCs at once.

    ::

        report = defer_many((call(resize, key) for key in keys), _queue="images")

    ``calls`` is any iterable of :func:`call` results. It is read as fast as the queue accepts the calls, so an endless
    generator is fine. An error of one call does not stop the others.

    Args:
        calls: the calls.
        parallel: how many RPCs may be under way at once.
        progress: a function that is called in the calling thread with the current report after each RPC.
        raise_errors: whether to raise at the end if some calls are not enqueued. If False, check the report.
        **options: the options of :func:`defer`, for the calls that don't set them.

    Returns:
        The :class:`EnqueueReport`. It says for each call whether it is enqueued, already there under its name, or
        failed and why.

    Raises:
        NotAllEnqueuedError: at the end, if some calls are not enqueued. Its ``report`` covers each call.
        OptionError, UnknownOptionError: an option can't be used.
    """
    from deferred_middleware.enqueue import many  # imported here, because it imports the SDK

    defaults, others = Options.take_from(options, label_of(defer_many), None)
    if others:
        raise TypeError(f"defer_many() has no argument {', '.join(others)}")
    if parallel < 1:
        raise ValueError(f"parallel={parallel!r}: at least one RPC has to be under way at a time")
    return many.defer_many(calls, parallel=parallel, progress=progress, raise_errors=raise_errors, defaults=defaults)
