"""Deliver a captured task to the app, as the queue does."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import time
import urllib.parse
from typing import TYPE_CHECKING, Final

from deferred_middleware.config.process import current_deployment, current_settings, keyring_of
from deferred_middleware.errors import UntrustedRequestError
from deferred_middleware.execution.handler import REPORT_KEY, TaskReport
from deferred_middleware.testing.records import CapturedTask
from deferred_middleware.testing.stub import HOSTNAME
from deferred_middleware.wire import protocol
from deferred_middleware.wire.signature import LIFETIME_SECONDS, path_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from deferred_middleware.execution.outcomes import Outcome


_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)


class TaskRunError(AssertionError):
    """A task failed without an exception, or tasks could not be run. ``run`` is the failed attempt, if there is one."""

    def __init__(self, message: str, run: TaskRun | None = None) -> None:
        self.run = run
        super().__init__(message)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskRun:
    """One attempt: the response of the app, and the error of the task."""

    task: CapturedTask
    attempt: int
    """The number of the attempt, from 1."""
    status: int
    """The status of the app's response."""
    body: bytes
    """The body of the app's response."""
    location: str | None
    """The ``Location`` of the app's response, if there is one. The queue doesn't follow redirects."""
    outcome: Outcome | None
    """How the attempt ended; None if the request didn't reach the task's handler, or if the handler rejected it."""
    error: BaseException | None
    """The exception that the task raised, if any."""

    @property
    def done(self) -> bool:
        """Whether the queue would delete the task: the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def ok(self) -> bool:
        """Whether the task succeeded."""
        return self.done and self.error is None

    def raise_if_failed(self) -> None:
        """If the task failed, raise its exception, or :class:`TaskRunError` if it raised none."""
        __tracebackhide__ = True
        if self.ok:
            return
        what = f"{self.task}: attempt {self.attempt} ended with status {self.status}"
        if self.location is not None:
            what += f" and Location {self.location!r}"
        if self.error is None:
            answer = self.body[:500].decode("utf-8", "replace").strip()
            raise TaskRunError(f"{what}: {answer}", self)
        if sys.version_info >= (3, 11):
            with contextlib.suppress(Exception):  # the exception may refuse notes
                BaseException.add_note(self.error, what)
        raise self.error


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttemptCounts:
    """The counts that the queue sends with an attempt, and the status of the attempt before."""

    retry_count: int = 0
    execution_count: int = 0
    previous_response: int | None = None


def deliver(app: WSGIApplication, task: CapturedTask, counts: AttemptCounts) -> TaskRun:
    """Make one attempt. Raises whatever the app itself raises instead of answering."""
    report = TaskReport()
    environ = _environ(task, counts) | {REPORT_KEY: report}
    _renew_signature(environ, task)
    status, headers, body = _call_app(app, environ)
    return TaskRun(
        task=task,
        attempt=counts.retry_count + 1,
        status=status,
        body=body,
        location=next((value for name, value in headers if name.lower() == "location"), None),
        outcome=report.outcome,
        error=report.error,
    )


def _renew_signature(environ: WSGIEnvironment, task: CapturedTask) -> None:
    """Sign the task again if only the time is wrong with its signature.

    The queue of a test keeps a task for any time. A test may have enqueued it while the time was stopped long ago.
    """
    signature = environ.get(_SIGNATURE)
    keyring = keyring_of(current_settings(), current_deployment())
    if signature is None or not keyring:
        return
    try:
        keyring.verify(signature, environ, task.queue, task.name, time.time())
    except UntrustedRequestError as error:
        if error.check == "signature-expired":
            environ[_SIGNATURE] = keyring.sign(
                path=path_of(task.url),
                queue=task.queue,
                name=task.name,
                headers=task.headers,
                body=task.body,
                not_before=0.0,
                lifetime_seconds=LIFETIME_SECONDS,
                now=time.time(),
                method=task.method,
            )


def _environ(task: CapturedTask, counts: AttemptCounts) -> WSGIEnvironment:
    platform = {
        "Host": task.host,
        "User-Agent": protocol.TASK_QUEUE_USER_AGENT,
        protocol.DEFAULT_VERSION_HOSTNAME_HEADER: HOSTNAME,
        protocol.USER_IP_HEADER: protocol.TASK_QUEUE_IP,
        protocol.QUEUE_NAME_HEADER: task.queue,
        protocol.TASK_NAME_HEADER: task.name,
        protocol.RETRY_COUNT_HEADER: str(counts.retry_count),
        protocol.EXECUTION_COUNT_HEADER: str(counts.execution_count),
        protocol.ETA_HEADER: f"{task.eta.timestamp():.6f}",
    }
    if counts.previous_response is not None:
        platform[protocol.PREVIOUS_RESPONSE_HEADER] = str(counts.previous_response)
        platform[protocol.RETRY_REASON_HEADER] = "App Error"
    environ: WSGIEnvironment = {
        protocol.environ_key(name): value
        for name, value in {**task.headers, **platform}.items()
        if name.lower() not in ("content-type", "content-length")
    }
    path, _, query = task.url.partition("?")
    content_type = next((value for name, value in task.headers.items() if name.lower() == "content-type"), None)
    return environ | {
        "REQUEST_METHOD": task.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": urllib.parse.unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": task.host.rpartition(":")[0] or task.host,
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "deferred-middleware",
        "REMOTE_ADDR": protocol.TASK_QUEUE_IP,
        "CONTENT_TYPE": content_type or protocol.CONTENT_TYPE,
        "CONTENT_LENGTH": str(len(task.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(task.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def _call_app(app: WSGIApplication, environ: WSGIEnvironment) -> tuple[int, list[tuple[str, str]], bytes]:
    """Call ``app``, and return the status, the headers and the body of its response."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written = bytearray()

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        started.append((status, headers))
        return written.extend

    iterable = app(environ, start_response)
    try:
        for part in iterable:
            written += part
    finally:
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
    if not started:
        raise TaskRunError(f"the app answered {environ['PATH_INFO']} without calling start_response")
    status, headers = started[-1]
    return int(status.split(" ", 1)[0]), headers, bytes(written)
