"""Enqueue a call: from ``defer`` to the SDK's ``taskqueue``."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from deferred_middleware import payload, protocol, routing
from deferred_middleware.calls import Call, call
from deferred_middleware.settings import current_deployment, current_settings

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.callables import AnyCallable


def defer(func: AnyCallable, /, *args: Any, **kwargs: Any) -> taskqueue.Task:
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
    * ``_url``: a path outside the URL prefix, where another handler runs the task.

    Returns:
        The SDK's ``taskqueue.Task`` with its name and queue. (For a transactional call it has no final name.)

    Raises:
        CallError: the call can't be deferred: :class:`NotCallableError`, :class:`NotImportableError`,
            :class:`ArgumentsError` or :class:`UnpicklableArgumentError`.
        UnknownOptionError: an ``_option`` that neither we nor ``func`` know.
        OptionError: an option's value can't be used.
        EnqueueError: the task is not enqueued, or not known to be; also the SDK's own type, such as
            ``taskqueue.TaskAlreadyExistsError``.
    """
    return enqueue(call(func, *args, **kwargs))


def enqueue(call: Call) -> taskqueue.Task:
    """Enqueue a prepared call; see :func:`defer`."""
    settings = current_settings()
    options = call.options
    queue = routing.queue_for(call, settings)
    label = call.label
    target = routing.target_for(call, settings, current_deployment())
    url = routing.url_for(call, settings)
    body = payload.dumps(call, settings.pickle_protocol)

    from google.appengine.api import taskqueue

    from deferred_middleware import rejections

    if len(body) > settings.max_payload_bytes:
        raise rejections.TaskTooLargeError(
            label,
            queue,
            options.name,
            len(body),
            settings.max_payload_bytes,
            "its payload (limited by DEFERRED_MAX_PAYLOAD_BYTES)",
        )
    _check_engine(call, queue)
    try:
        task = taskqueue.Task(
            payload=body,
            method="POST",
            url=url,
            name=options.name,
            headers=_headers(call),
            eta=_eta(options.eta_posix),
            target=target,
            retry_options=options.retry_options,
            dispatch_deadline_usec=(
                None if options.deadline_seconds is None else round(options.deadline_seconds * 1e6)
            ),
            _size_check=False,
        )
        if task.size > protocol.MAX_PUSH_TASK_BYTES:
            raise rejections.TaskTooLargeError(
                label,
                queue,
                options.name,
                task.size,
                protocol.MAX_PUSH_TASK_BYTES,
                f"the task (its payload alone is {len(body):,} bytes)",
            )
        _check_target(call, queue, task, target)
        task.add(queue, transactional=options.transactional)
    except rejections.EnqueueError:
        raise
    except AssertionError as error:
        # The SDK asserts that the queue answers for each task (taskqueue.py, Queue.__AddTasks).
        reason = f"the queue's answer makes no sense ({error or 'an assertion in the SDK failed'})."
        raise rejections.EnqueueError(label, queue, options.name, reason) from error
    except Exception as error:
        # Not the SDK's own errors alone: it stumbles over some answers with a TypeError and the like.
        raise rejections.explain(error, label, queue, options.name) from error
    if not options.transactional and not task.was_enqueued:
        # A result of SKIPPED is no error to the SDK (taskqueue.py, Queue.__AddTasks), but nothing was enqueued.
        raise rejections.EnqueueError(label, queue, options.name, "the queue skipped the task.")
    return task


def _headers(call: Call) -> dict[str, str]:
    headers = {**call.options.headers, "Content-Type": protocol.CONTENT_TYPE}
    retry_options = call.options.retry_options
    # With an age limit as well, retries go on while either allows, so that no attempt is known to be the last.
    if retry_options and retry_options.task_retry_limit is not None and retry_options.task_age_limit is None:
        headers[protocol.RETRY_LIMIT_HEADER] = str(retry_options.task_retry_limit)
    return headers


def _eta(eta_posix: float | None) -> datetime.datetime | None:
    if eta_posix is None:
        return None
    return datetime.datetime.fromtimestamp(eta_posix, datetime.timezone.utc)


def _check_engine(call: Call, queue: str) -> None:
    """Raise :class:`NoEngineError` if nothing answers the SDK's taskqueue API."""
    from google.appengine.api import apiproxy_stub_map
    from google.appengine.api.taskqueue import cloudtask

    from deferred_middleware import rejections

    if apiproxy_stub_map.apiproxy.GetStub("taskqueue") is None:
        if cloudtask.is_cloudtask_push_queue_enabled():
            return
        raise rejections.NoEngineError(
            call.label,
            queue,
            call.options.name,
            "nothing answers the SDK's taskqueue API in this process. Wrap the app with "
            "google.appengine.api.wrap_wsgi_app, and run it on App Engine or, on one machine, with "
            "`deferred-middleware serve MODULE:CALLABLE`.",
        )


def _check_target(call: Call, queue: str, task: taskqueue.Task, target: str | None) -> None:
    """Raise :class:`TargetError` if the SDK dropped the target: the task would run in another service.

    It does so silently where it doesn't know the app's hostname (SDK: ``taskqueue.py``, Task.__host_from_target). Cloud
    Tasks is told the target itself, not a hostname.
    """
    from google.appengine.api.taskqueue import cloudtask

    from deferred_middleware import rejections

    if target is None or "Host" in task.headers or cloudtask.is_cloudtask_push_queue_enabled():
        return
    raise rejections.TargetError(
        call.label,
        queue,
        call.options.name,
        f"its target {target!r} can't be told to the queue, because the app's hostname is not known here "
        "(DEFAULT_VERSION_HOSTNAME). Defer it in a request, inside wrap_wsgi_app.",
    )
