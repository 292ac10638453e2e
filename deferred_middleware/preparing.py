"""Turn a call into the SDK's task: the one place where that is done, for every way of enqueueing.

The steps have an order: where it goes, its bytes, its headers, the task, and what of the task can be checked before the
queue is asked.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING

from deferred_middleware import payload, protocol, routing
from deferred_middleware.settings import current_deployment, current_settings

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.calls import Call
    from deferred_middleware.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A call that is ready to be added to its queue."""

    call: Call
    queue: str
    task: taskqueue.Task

    @property
    def transactional(self) -> bool:
        """Whether it is added when the surrounding transaction commits."""
        return self.call.options.transactional


def prepare(call: Call) -> Prepared:
    """Return what is to be added for ``call``; nothing is sent yet.

    Raises:
        CallError: the callable or an argument can't be pickled.
        OptionError: an option can't be used here.
        EnqueueError: it is known not to be taken: :class:`TaskTooLargeError`, :class:`TargetError`, or what the SDK
            finds wrong; :class:`NoEngineError` where nothing answers the SDK.
    """
    settings = current_settings()
    options = call.options
    queue = routing.queue_for(call, settings)
    target = routing.target_for(call, settings, current_deployment())
    url = routing.url_for(call, settings)
    body = _body(call, queue, settings)
    name = options.name

    from google.appengine.api import taskqueue

    from deferred_middleware import rejections

    check_engine(call, queue)
    headers = _headers(call, queue=queue, name=name, url=url, body=body)
    try:
        task = taskqueue.Task(
            payload=body,
            method="POST",
            url=url,
            name=name,
            headers=headers,
            eta=_eta(options.eta_posix),
            target=target,
            retry_options=options.retry_options,
            dispatch_deadline_usec=(
                None if options.deadline_seconds is None else round(options.deadline_seconds * 1e6)
            ),
            _size_check=False,
        )
    except Exception as error:
        raise rejections.explain(error, call.label, queue, options.name) from error
    if task.size > protocol.MAX_PUSH_TASK_BYTES:
        raise rejections.TaskTooLargeError(
            call.label,
            queue,
            options.name,
            task.size,
            protocol.MAX_PUSH_TASK_BYTES,
            f"the task (its payload alone is {len(body):,} bytes)",
        )
    _check_target(call, queue, task, target)
    return Prepared(call=call, queue=queue, task=task)


def _body(call: Call, queue: str, settings: Settings) -> bytes:
    """Return the bytes that the task carries: the payload, if it fits."""
    body = payload.dumps(call, settings.pickle_protocol)
    if len(body) <= settings.max_payload_bytes:
        return body

    from deferred_middleware import rejections

    raise rejections.TaskTooLargeError(
        call.label,
        queue,
        call.options.name,
        len(body),
        settings.max_payload_bytes,
        "its payload (limited by DEFERRED_MAX_PAYLOAD_BYTES)",
    )


def _headers(call: Call, *, queue: str, name: str | None, url: str, body: bytes) -> dict[str, str]:
    """Return the headers of the task's request; all that a header may have to tell of is given."""
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


def check_engine(call: Call, queue: str) -> None:
    """Raise :class:`NoEngineError` if nothing answers the SDK's taskqueue API."""
    from google.appengine.api import apiproxy_stub_map
    from google.appengine.api.taskqueue import cloudtask

    if apiproxy_stub_map.apiproxy.GetStub("taskqueue") is None and not cloudtask.is_cloudtask_push_queue_enabled():
        from deferred_middleware import rejections

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
    if target is None or "Host" in task.headers:
        return
    from google.appengine.api.taskqueue import cloudtask

    if cloudtask.is_cloudtask_push_queue_enabled():
        return
    from deferred_middleware import rejections

    raise rejections.TargetError(
        call.label,
        queue,
        call.options.name,
        f"its target {target!r} can't be told to the queue, because the app's hostname is not known here "
        "(DEFAULT_VERSION_HOSTNAME). Defer it in a request, inside wrap_wsgi_app.",
    )
