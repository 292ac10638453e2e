"""The task that sweeps the outbox: it sends what transactions have left there, and enqueues its own next run.

An app with transactional tasks on Cloud Tasks needs no cron entry for that. Before a transactional task commits, this
module makes sure that a sweep is due soon afterwards: if the process dies after the commit, the sweep sends its tasks.
The name of a sweep follows from its time, so that all processes of the app share one.

Importing this module imports the SDK, except in a process that does without it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from deferred_middleware.calls.headers import signer_for
from deferred_middleware.calls.options import NO_OPTIONS
from deferred_middleware.config.process import current_settings
from deferred_middleware.engines.engine import TaskTemplate
from deferred_middleware.enqueue.prepare import CallTemplate, enqueue_context
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings

logger: Final = get_logger("deferred_middleware")

IDLE_SECONDS: Final = 3600.0
"""When a sweep is due after one that has left nothing."""

_BODY: Final = b"sweep"
_CALL_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 30.0


def min_age_seconds(settings: Settings) -> float:
    """Return the minimum age of a task that is swept. Until then, the process that added it sends it."""
    return settings.sweep_seconds * 2 / 3


def soon_seconds(settings: Settings) -> float:
    """Return when a sweep is due after a transactional task was added, and after a sweep that has left something."""
    return settings.sweep_seconds * 3 / 2


def enqueue(seconds: float) -> float:
    """Enqueue a sweep that is due in about ``seconds``, unless there is one, and return its time in seconds since 1970.

    Sweeps are due at multiples of ``DEFERRED_SWEEP_SECONDS``. Raises the engine's errors.
    """
    context = enqueue_context()
    settings, engine = context.settings, context.engine
    queue = settings.default_queues[0]
    path = f"{settings.url_prefix}/{protocol.SWEEP_LABEL}"
    headers = {"Content-Type": protocol.CONTENT_TYPE, protocol.NAMESPACE_HEADER: protocol.DEFAULT_NAMESPACE}
    signer = signer_for(NO_OPTIONS, settings, context.deployment, queue=queue, url=path, headers=headers)
    template = engine.encode(TaskTemplate(queue=queue, path=path, headers=headers, signed=signer is not None))
    due = math.ceil((time.time() + seconds) / settings.sweep_seconds) * settings.sweep_seconds
    message = CallTemplate(template, signer, template.overhead_bytes, on_stub=False).message(
        f"deferred-sweep-{due:.0f}", _BODY, due, os.urandom(12).hex()
    )
    (result,) = engine.add([message], _CALL_SECONDS)
    if not isinstance(result, str) and not result.answer.exists:
        raise result.error
    return due


class Upcoming:
    """What this process knows of the next sweep."""

    def __init__(self) -> None:
        self._due = 0.0  # seconds since 1970, written by any thread
        self._next_try = 0.0
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()

    def ensure(self) -> None:
        """Enqueue a sweep that is due soon, unless this process knows of one. A failure is logged."""
        now = time.time()
        settings = current_settings()
        # The sweep leaves entities alone that are younger than the minimum age.
        needed = now + min_age_seconds(settings) * 1.1
        if self._due >= needed or now < self._next_try:
            return
        with self._lock:
            if self._due >= needed or now < self._next_try:
                return
            self._next_try = now + _RETRY_SECONDS
            try:
                self._due = enqueue(soon_seconds(settings))
            except Exception as error:  # noqa: BLE001 - the transaction goes on; another sweep sends its tasks
                logger.warning("the next sweep of transactional tasks could not be enqueued: %s", error)
            else:
                self._next_try = 0.0


UPCOMING: Final = Upcoming()
"""The process's knowledge of the next sweep."""
