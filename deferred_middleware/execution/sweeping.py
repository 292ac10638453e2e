"""Sweep the outbox of transactional tasks: in the background of requests, and in the task that is for that.

The first request of each process, and then a request every ``DEFERRED_SWEEP_SECONDS``, starts a bounded sweep in a
thread of its own. So a task that another process has left behind is sent by the next request that any instance gets.
Without requests, the task at ``/_cb/deferred/_sweep`` does it (:mod:`deferred_middleware.enqueue.sweep_task`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.errors.sdk_types import HAS_SDK
from deferred_middleware.execution import logs
from deferred_middleware.execution.context import TaskContext
from deferred_middleware.execution.outcomes import DeadLetter, Outcome
from deferred_middleware.wire import entities, protocol
from deferred_middleware.wire.monotonic import monotonic

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from deferred_middleware.config.hooks import Hooks
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.engines.outbox import SweepReport, UnsentTask

logger: Final = get_logger("deferred_middleware")

_BACKGROUND_SECONDS: Final = 10.0
_BACKGROUND_TASKS: Final = 100
_TASK_SECONDS: Final = 240.0


class Sweeper:
    """Sweeps the outbox for one handler."""

    def __init__(self, settings: Settings, hooks: Hooks) -> None:
        self._settings = settings
        self._hooks = hooks
        self._next = 0.0  # monotonic seconds; a race between two requests costs one more sweep
        self._running = threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._running = threading.Lock()
        self._next = 0.0

    @classmethod
    def needed(cls, settings: Settings, hooks: Hooks) -> Sweeper | None:
        """Return a sweeper if Cloud Tasks is selected; None if the engine has transactional tasks of its own."""
        return cls(settings, hooks) if settings.uses_cloud_tasks else None

    def around(self, app: WSGIApplication) -> WSGIApplication:
        """Return an app whose requests start sweeps, and which passes each request to ``app``."""

        def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            self.on_request()
            return app(environ, start_response)

        return answer

    def on_request(self) -> None:
        """Start a sweep in the background if the last one was some time ago."""
        now = monotonic()
        if now < self._next:
            return
        self._next = now + self._settings.sweep_seconds
        if not _has_datastore():
            return
        from deferred_middleware.engines.request_scope import Scope

        scope = Scope()
        thread = threading.Thread(
            target=lambda: scope.run(self._sweep_in_background), name="deferred_middleware sweep", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            logger.debug("no thread could be started to sweep transactional tasks")

    def _sweep_in_background(self) -> None:
        if not self._running.acquire(blocking=False):
            return
        try:
            self.sweep(max_seconds=_BACKGROUND_SECONDS, max_tasks=_BACKGROUND_TASKS)
        except Exception:
            logger.warning("the transactional tasks that were not sent could not be looked for", exc_info=True)
        finally:
            self._running.release()

    def sweep(self, **limits: Any) -> SweepReport:
        """Sweep now; see :func:`deferred_middleware.engines.outbox.sweep`."""
        from deferred_middleware.engines import outbox
        from deferred_middleware.engines.current import cloud_tasks_engine
        from deferred_middleware.enqueue import sweep_task

        send = cloud_tasks_engine(self._settings).send
        min_age_seconds = sweep_task.min_age_seconds(self._settings)
        return outbox.sweep(send, min_age_seconds=min_age_seconds, on_overdue=self._report_overdue, **limits)

    def run_task(self) -> str:
        """Run the task that sweeps, and enqueue the next one; return a sentence about it.

        Raises the datastore's exceptions, and those of the engine: then the task is tried again.
        """
        from deferred_middleware.enqueue import sweep_task

        if not _has_datastore():
            return "there is no datastore"
        report = self.sweep(max_seconds=_TASK_SECONDS)
        soon_seconds = sweep_task.soon_seconds(self._settings)
        sweep_task.enqueue(sweep_task.IDLE_SECONDS if report.is_empty else soon_seconds)
        return f"{report.sent} sent, {report.failed} failed"

    def _report_overdue(self, task: UnsentTask) -> None:
        """Log a dead letter for a task that can't be sent, and call the hooks. The task is tried again all the same."""
        environ, body = _request_of(task)
        letter = DeadLetter(
            context=TaskContext(environ, _label(environ["PATH_INFO"], self._settings.url_prefix)),
            call=None,
            error=task.error,
            outcome=Outcome.FAILED,
            reason=(
                f"its transaction committed {task.age_seconds / 3600:.1f} hours ago, and it can't be sent to "
                f"{task.parent}; it is tried again until it is sent"
            ),
            body=body,
        )
        logger.error(
            "a transactional task can't be sent to %s since %.1f hours: %s",
            task.parent,
            task.age_seconds / 3600,
            task.error,
        )
        logs.dead_letter(letter, self._settings)
        self._hooks.fire("on_dead_letter", letter)


def _has_datastore() -> bool:
    """Tell whether the app uses a datastore here: the SDK's, or that of google-cloud-ndb, which it has imported."""
    if HAS_SDK:
        return entities.is_available()
    return "google.cloud.ndb" in sys.modules


def _request_of(task: UnsentTask) -> tuple[WSGIEnvironment, bytes]:
    """Return the ``environ`` and the body of the request that would deliver a task."""
    import urllib.parse

    from google.cloud import tasks_v2

    message = tasks_v2.Task.pb(tasks_v2.Task.deserialize(task.serialized))
    is_by_url = message.HasField("http_request")
    request = message.http_request if is_by_url else message.app_engine_http_request
    path = urllib.parse.urlsplit(request.url).path if is_by_url else request.relative_uri
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": urllib.parse.unquote(path, encoding="latin-1"),
        "QUERY_STRING": "",
        **{protocol.environ_key(name): value for name, value in request.headers.items()},
        protocol.environ_key(protocol.QUEUE_NAME_HEADER): task.parent.rpartition("/")[2],
        protocol.environ_key(protocol.TASK_NAME_HEADER): message.name.rpartition("/")[2],
    }
    return environ, bytes(request.body)


def _label(path: str, prefix: str) -> str:
    return path.removeprefix(f"{prefix}/")
