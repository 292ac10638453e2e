"""Enqueue a call: from ``defer`` to the SDK's ``taskqueue``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deferred_middleware.calls.call import Call, call
from deferred_middleware.calls.callables import label_of
from deferred_middleware.calls.options import Options
from deferred_middleware.enqueue.batch import current_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deferred_middleware.calls.callables import AnyCallable
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
    from deferred_middleware.enqueue.futures import EnqueueFuture
    from deferred_middleware.enqueue.report import EnqueueReport


def defer(func: AnyCallable, /, *args: Any, **kwargs: Any) -> EnqueuedTask:
    """Run ``func(*args, **kwargs)`` later, in a task. When this returns, the task is enqueued.

    ``func`` is anything callable that a module holds: a function (``async def`` too), a class, a bound, class or static
    method, a partial, an instance with ``__call__``. Whatever can be known now is checked now. What is deferred may run
    more than once, for a queue delivers at least once: make it idempotent.

    Options, each None by default:

    * ``_queue``: a queue's name, or a list of names to spread over
      (default: ``DEFERRED_DEFAULT_QUEUES``).
    * ``_countdown``: seconds from now, or a timedelta; or ``_eta``: an aware datetime. At most 30 days.
    * ``_name``: the task's name, unique in its queue, while it waits and for days afterwards.
    * ``_target``: the service to run it, as ``service``, ``version.service`` or ``instance.version.service``
      (default: the background module, or the service that enqueues).
    * ``_transactional``: True to enqueue if and when the surrounding datastore transaction commits.
    * ``_retry_options``: ``taskqueue.TaskRetryOptions``, or a dict of its arguments.
    * ``_headers``: a dict of further headers of the task's request.
    * ``_deadline``: the dispatch deadline, 15 to 86,400 seconds or a timedelta.
    * ``_max_attempts``: how often the call may be tried in all, whatever its queue allows.
    * ``_url``: a path outside the URL prefix, where another handler runs the task.

    Returns:
        The :class:`EnqueuedTask`, with its name and queue. A transactional one has no final name.

    Raises:
        CallError: the call can't be deferred: :class:`NotCallableError`, :class:`NotImportableError`,
            :class:`ArgumentsError` or :class:`UnpicklableArgumentError`.
        UnknownOptionError: an ``_option`` that neither we nor ``func`` know.
        OptionError: an option's value can't be used.
        EnqueueError: the task is not enqueued, or not known to be; also the SDK's own type, such as
            ``taskqueue.TaskAlreadyExistsError``.
    """
    return enqueue(call(func, *args, **kwargs))


def defer_async(func: AnyCallable, /, *args: Any, **kwargs: Any) -> EnqueueFuture:
    """Start to enqueue ``func(*args, **kwargs)``, and return an :class:`EnqueueFuture` of the task.

    Takes what :func:`defer` takes, and checks what can be checked before the queue is asked at once. The rest goes on
    by itself: ``.result(timeout)`` waits for it, a coroutine can ``await`` it, an ndb tasklet can ``yield`` it. It is
    safe to do none of these: :class:`DeferredMiddleware` waits at the end of the request, and a failure that nobody
    asked about is logged as an error.

    With ``_transactional`` it waits for the queue and raises what :func:`defer` raises, because a transaction must not
    commit before its tasks are known to be in it.

    Raises:
        CallError, UnknownOptionError, OptionError: as :func:`defer`.
        EnqueueError: it is known already that the queue won't take the task.
    """
    return enqueue_async(call(func, *args, **kwargs))


def enqueue_async(call: Call) -> EnqueueFuture:
    """Start to enqueue a call that was made before; see :func:`defer_async`."""
    from deferred_middleware.enqueue import futures, prepare  # here, because they import the SDK

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
    """Enqueue a call that was made before; see :func:`defer`."""
    from deferred_middleware.enqueue import add, enqueued_task, prepare  # here, because they import the SDK

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
    **options: Any,
) -> EnqueueReport:
    """Enqueue many calls, up to 100 in an RPC and ``parallel`` RPCs at once.

    ::

        report = defer_many((call(resize, key) for key in keys), _queue="images")

    ``calls`` is any iterable of what :func:`call` returns; it is gone through as the queue takes the calls, so that it
    may be an endless generator. What is wrong with one call does not stop the others.

    Args:
        calls: the calls.
        parallel: how many RPCs may be under way at once.
        progress: is called with the report so far whenever an RPC has ended, in the calling thread.
        raise_errors: whether to raise at the end if some calls are not enqueued; if not, look at the report.
        **options: as for :func:`defer`, for the calls that don't have them.

    Returns:
        The :class:`EnqueueReport`: for each call whether it is enqueued, already there under its name, or failed and
        why.

    Raises:
        NotAllEnqueuedError: at the end, if some calls are not enqueued; its ``report`` tells of each.
        OptionError, UnknownOptionError: an option can't be used.
    """
    from deferred_middleware.enqueue import many  # here, because it imports the SDK

    defaults, others = Options.take_from(options, label_of(defer_many), None)
    if others:
        raise TypeError(f"defer_many() has no argument {', '.join(others)}")
    if parallel < 1:
        raise ValueError(f"parallel={parallel!r}: at least one RPC has to be under way at a time")
    return many.defer_many(calls, parallel=parallel, progress=progress, raise_errors=raise_errors, defaults=defaults)
