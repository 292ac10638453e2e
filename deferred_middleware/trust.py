"""Tell whether the task queue sent a request.

App Engine sets ``X-AppEngine-QueueName`` and ``X-AppEngine-TaskName`` on a task's request and takes headers of these
names from everybody else's. ``REMOTE_ADDR`` and ``SERVER_SOFTWARE`` are never evidence: the SDK's own middleware copies
client headers into the first (SDK: ``runtime/middlewares.py``, WsgiEnvSettingMiddleware). The local server does as App
Engine does. On a server that strips nothing these headers prove nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deferred_middleware import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_NAME = protocol.environ_key(protocol.TASK_NAME_HEADER)
_QUEUE = protocol.environ_key(protocol.QUEUE_NAME_HEADER)
_USER_IP = protocol.environ_key(protocol.USER_IP_HEADER)


def refusal(environ: WSGIEnvironment) -> str | None:
    """Return why the request is not believed to be from the task queue, or None if it is."""
    if not environ.get(_NAME):
        return f"it has no {protocol.TASK_NAME_HEADER} header"
    if not environ.get(_QUEUE):
        return f"it has no {protocol.QUEUE_NAME_HEADER} header"
    if environ.get(_USER_IP, protocol.TASK_QUEUE_IP) != protocol.TASK_QUEUE_IP:
        return f"its {protocol.USER_IP_HEADER} header is not the task queue's"
    return None
