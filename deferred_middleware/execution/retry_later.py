"""``RetryLater``: a task asks for another attempt at a time of its own choice.

Enqueue the call of a running task once more, as a ``RetryLater`` asks for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import time
import urllib.parse
from typing import TYPE_CHECKING, Final

from google.appengine.ext.deferred import SingularTaskFailure

from deferred_middleware.calls import headers
from deferred_middleware.calls.options import Options
from deferred_middleware.config.settings import current_deployment, current_settings
from deferred_middleware.enqueue.add import add
from deferred_middleware.enqueue.prepare import prepare
from deferred_middleware.errors import DeferredError
from deferred_middleware.wire import namespace, protocol

if TYPE_CHECKING:
    from deferred_middleware.execution.context import TaskContext

DEFAULT_MAX_ATTEMPTS: Final = 100
"""The cap where neither ``RetryLater`` nor the function's ``@task`` has one."""

_LONGEST_SECONDS: Final = protocol.MAX_ETA_DAYS * 24 * 3600


class RetryLater(DeferredError, SingularTaskFailure):  # type: ignore[misc] # the SDK ships no types
    """Raise it in a task to have the same call tried again after ``countdown``.

    The task is acknowledged, and the same call, with the arguments it came with, is enqueued again in the same queue.
    The attempts are counted on (:attr:`TaskContext.attempt`); the queue's own retry options begin anew. It is a
    ``SingularTaskFailure`` too, so that the older library's handler retries it.

    Args:
        countdown: seconds from now, or a timedelta; at most 30 days.
        max_attempts: how many attempts there may be in all. By default what the function's ``@task(max_attempts=…)``
            says, or 100. In the last one a ``RetryLater`` makes the task a dead letter.

    Raises:
        ValueError: ``countdown`` is no number of seconds from 0 to 30 days, or ``max_attempts`` is less than 1.
    """

    def __init__(self, countdown: float | datetime.timedelta, *, max_attempts: int | None = None) -> None:
        seconds = countdown.total_seconds() if isinstance(countdown, datetime.timedelta) else countdown
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST_SECONDS:
            raise ValueError(
                f"RetryLater({countdown!r}): the countdown is seconds from 0 to {_LONGEST_SECONDS:,}, or a timedelta."
            )
        if max_attempts is not None and (isinstance(max_attempts, bool) or not max_attempts >= 1):
            raise ValueError(f"RetryLater(max_attempts={max_attempts!r}): it is a whole number, at least 1.")
        self.countdown_seconds = float(seconds)
        self.max_attempts = max_attempts
        super().__init__(countdown)

    def __str__(self) -> str:
        return f"again in {self.countdown_seconds:g} s"

    def cap_for(self, context: TaskContext) -> int:
        """Return how many attempts the task may have in all."""
        caps = [cap for cap in (self.max_attempts, context.max_attempts) if cap is not None]
        return min(caps, default=DEFAULT_MAX_ATTEMPTS)


_ENQUEUED = protocol.environ_key(protocol.ENQUEUED_HEADER)
_ETA = protocol.environ_key(protocol.ETA_HEADER)


def enqueue_again(context: TaskContext, content: bytes, retry: RetryLater) -> None:
    """Enqueue the call of ``context`` again, with the payload that it came with, and its options.

    When this returns, it is enqueued; done twice for the same task, it is enqueued once. Raises what
    :func:`deferred_middleware.defer` raises.
    """
    from google.appengine.api import taskqueue

    assert context.call is not None  # it has just run
    call = dataclasses.replace(context.call, options=_options(context, retry))
    # If the name is taken, an earlier delivery of this task got as far as here: it is of our making, for it only.
    taken = contextlib.suppress(taskqueue.TaskAlreadyExistsError, taskqueue.TombstonedTaskError)
    with namespace.restored(context.environ), taken:  # in its own namespace: the call may have changed that
        add(prepare(call, content))


def _options(context: TaskContext, retry: RetryLater) -> Options:
    environ = context.environ
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    ours = path.startswith(f"{current_settings().url_prefix}/")
    # A name that the caller chose may come again some day; one that the queue chose never does. The older library's
    # tasks don't tell which it is.
    seed = environ.get(_ENQUEUED) or ("" if ours else environ.get(_ETA, ""))
    deployment = current_deployment()
    return Options(
        queues=(context.queue,),
        eta_posix=time.time() + retry.countdown_seconds,
        name=_name_of_next(context, seed),
        target=f"{deployment.version}.{deployment.service}" if deployment.version and deployment.service else None,
        url=None if ours else urllib.parse.quote(path, safe="/", encoding="latin-1"),
        earlier_attempts=context.attempt,
        **headers.options_in(environ),
    )


def _name_of_next(context: TaskContext, seed: str) -> str:
    """Return the name of the task that follows a ``RetryLater``: always the same one for the same task.

    So a task that is delivered again, because its worker died after the next one was enqueued, makes no second one.
    ``seed`` tells tasks apart that had the same name at different times.
    """
    digest = hashlib.sha256("\0".join((context.queue, context.name, seed)).encode()).hexdigest()
    return f"later-{digest[:40]}"
