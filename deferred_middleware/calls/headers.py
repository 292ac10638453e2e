"""The options that travel with a task, as headers: the platform tells the handler none of them.

A running task reads them to know where it stands (:class:`~deferred_middleware.TaskContext`), and they are there for a
task that follows it (:mod:`deferred_middleware.execution.retry_later`).
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment
    from google.appengine.api import taskqueue

    from deferred_middleware.calls.options import Options

_RETRY_PARAMETERS: Final = (
    "task_retry_limit",
    "task_age_limit",
    "min_backoff_seconds",
    "max_backoff_seconds",
    "max_doublings",
)


def headers_of(options: Options) -> dict[str, str]:
    """Return the headers that tell of ``options``, their own headers included."""
    headers = dict(options.headers)
    if options.headers:
        headers[protocol.OWN_HEADERS_HEADER] = " ".join(options.headers)
    if options.name is not None:
        headers[protocol.ENQUEUED_HEADER] = f"{time.time():.6f}"
    if options.deadline_seconds is not None:
        headers[protocol.DEADLINE_HEADER] = repr(options.deadline_seconds)
    if options.max_attempts is not None:
        headers[protocol.MAX_ATTEMPTS_HEADER] = str(options.max_attempts)
    if options.earlier_attempts:
        headers[protocol.EARLIER_ATTEMPTS_HEADER] = str(options.earlier_attempts)
    if options.retry_options is not None:
        _tell_retry_options(options.retry_options, headers)
    return headers


def options_in(environ: WSGIEnvironment) -> dict[str, Any]:
    """Return, as arguments for ``Options``, those that the headers of a task's request tell of.

    Not its name, and not its earlier attempts: they are the task's own.
    """
    found: dict[str, Any] = {}
    names = str(environ.get(protocol.environ_key(protocol.OWN_HEADERS_HEADER), "")).split()
    values = {name: environ.get(protocol.environ_key(name)) for name in names}
    found["headers"] = {name: value for name, value in values.items() if value is not None}
    deadline = environ.get(protocol.environ_key(protocol.DEADLINE_HEADER))
    if deadline:
        found["deadline_seconds"] = float(deadline)
    cap = environ.get(protocol.environ_key(protocol.MAX_ATTEMPTS_HEADER))
    if cap:
        found["max_attempts"] = int(cap)
    retry_options = environ.get(protocol.environ_key(protocol.RETRY_OPTIONS_HEADER))
    if retry_options:
        from google.appengine.api import taskqueue

        found["retry_options"] = taskqueue.TaskRetryOptions(**json.loads(retry_options))
    return found


def parameters_of(retry_options: taskqueue.TaskRetryOptions) -> tuple[float | None, ...]:
    """Return the values in ``retry_options``, in an order of their own."""
    return tuple(getattr(retry_options, name) for name in _RETRY_PARAMETERS)


def _tell_retry_options(retry_options: taskqueue.TaskRetryOptions, headers: dict[str, str]) -> None:
    values = zip(_RETRY_PARAMETERS, parameters_of(retry_options), strict=True)
    given = {name: value for name, value in values if value is not None}
    headers[protocol.RETRY_OPTIONS_HEADER] = json.dumps(given, separators=(",", ":"))
    # With an age limit as well, retries go on while either allows, so that no attempt is known to be the last.
    if "task_retry_limit" in given and "task_age_limit" not in given:
        headers[protocol.RETRY_LIMIT_HEADER] = str(given["task_retry_limit"])
