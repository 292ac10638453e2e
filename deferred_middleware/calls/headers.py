"""The headers of a task: its options, which the platform does not pass on to the handler, and its signature.

A running task reads its options to know how often it may be tried (:class:`~deferred_middleware.TaskContext`), and a
task that follows it takes them over (:mod:`deferred_middleware.execution.retry_later`).
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.config.process import keyring_of
from deferred_middleware.errors import SecretKeyMissingError
from deferred_middleware.wire import protocol
from deferred_middleware.wire.signature import LIFETIME_SECONDS, LOCAL_LIFETIME_SECONDS, path_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed.wsgi import WSGIEnvironment
    from google.appengine.api import taskqueue

    from deferred_middleware.calls.options import Options
    from deferred_middleware.config.process import Deployment
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.wire.signature import Signer

_RETRY_PARAMETERS: Final = (
    "task_retry_limit",
    "task_age_limit",
    "min_backoff_seconds",
    "max_backoff_seconds",
    "max_doublings",
)


def headers_of(options: Options) -> dict[str, str]:
    """Return the headers that describe ``options``, together with the caller's own headers."""
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
        _add_retry_options(options.retry_options, headers)
    return headers


def own_headers_in(environ: WSGIEnvironment) -> dict[str, str]:
    """Return the caller's own headers of a task, by the names that the caller gave."""
    names = str(environ.get(protocol.environ_key(protocol.OWN_HEADERS_HEADER), "")).split()
    values = {name: environ.get(protocol.environ_key(name)) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def options_in(environ: WSGIEnvironment) -> dict[str, Any]:
    """Return the options that the headers of a task's request describe, as arguments for ``Options``.

    The task's name and its number of earlier attempts are not among them, because they belong to this one task.
    """
    found: dict[str, Any] = {"headers": own_headers_in(environ)}
    deadline = environ.get(protocol.environ_key(protocol.DEADLINE_HEADER))
    if deadline:
        found["deadline_seconds"] = float(deadline)
    max_attempts = environ.get(protocol.environ_key(protocol.MAX_ATTEMPTS_HEADER))
    if max_attempts:
        found["max_attempts"] = int(max_attempts)
    retry_options = environ.get(protocol.environ_key(protocol.RETRY_OPTIONS_HEADER))
    if retry_options:
        from deferred_middleware.errors.sdk_types import taskqueue

        found["retry_options"] = taskqueue.TaskRetryOptions(**json.loads(retry_options))
    return found


def parameters_of(retry_options: taskqueue.TaskRetryOptions) -> tuple[float | None, ...]:
    """Return the values in ``retry_options``, always in the same order."""
    return tuple(getattr(retry_options, name) for name in _RETRY_PARAMETERS)


def _add_retry_options(retry_options: taskqueue.TaskRetryOptions, headers: dict[str, str]) -> None:
    values = zip(_RETRY_PARAMETERS, parameters_of(retry_options), strict=True)
    given = {name: value for name, value in values if value is not None}
    headers[protocol.RETRY_OPTIONS_HEADER] = json.dumps(given, separators=(",", ":"))
    # If there is an age limit too, the queue retries while either limit allows it, so no attempt is known to be the
    # last.
    if "task_retry_limit" in given and "task_age_limit" not in given:
        headers[protocol.RETRY_LIMIT_HEADER] = str(given["task_retry_limit"])


def signer_for(
    options: Options,
    settings: Settings,
    deployment: Deployment,
    *,
    queue: str,
    url: str,
    headers: Mapping[str, str],
) -> Signer | None:
    """Return the signer of the tasks with these options, or None if the process has no secret key.

    ``url`` is the path that the tasks are posted to. ``headers`` are all their other headers. Raises
    :class:`SecretKeyMissingError` if tasks without a signature would be refused.
    """
    keyring = keyring_of(settings, deployment)
    if not keyring:
        if settings.require_signature:
            raise SecretKeyMissingError(on_app_engine_standard=deployment.on_app_engine_standard)
        return None
    lifetime_seconds = LOCAL_LIFETIME_SECONDS if deployment.on_local_server else LIFETIME_SECONDS
    age_limit_seconds = options.retry_options.task_age_limit if options.retry_options else None
    return keyring.signer(
        path=path_of(url),
        queue=queue,
        headers=headers,
        lifetime_seconds=max(lifetime_seconds, age_limit_seconds or 0),
    )
