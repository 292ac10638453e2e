"""Answer the request that delivers a task: check who sent it, run the task, and report how the attempt ended.

:class:`~deferred_middleware.DeferredMiddleware` and the glue for the frameworks share :class:`TaskHandler`.

Code around the request, such as test tools and the glue, can learn the outcome from a :class:`TaskReport`: put one into
the request's ``environ`` under :data:`REPORT_KEY`, and it is filled in while the task runs. The layers in between can
change the response, but not the report.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import webob

from deferred_middleware.config import process
from deferred_middleware.config.hooks import AnyHook, Hooks
from deferred_middleware.enqueue import request_end
from deferred_middleware.errors import BodyError, UntrustedRequestError, WarmupError
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.errors.text import log_error
from deferred_middleware.execution.context import TaskContext
from deferred_middleware.execution.outcomes import Outcome, RefusedRequest
from deferred_middleware.execution.runner import Runner, Warmup
from deferred_middleware.execution.sweeping import Sweeper
from deferred_middleware.execution.trust import Authenticator
from deferred_middleware.wire import overflow, protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from deferred_middleware.config.settings import Settings

logger: Final = get_logger("deferred_middleware")

REPORT_KEY: Final = "deferred_middleware.delivery"
"""The key of the :class:`TaskReport` in ``environ``; no header of a request can set it."""
_TRACEBACK_CHARACTERS: Final = 4000  # the local server keeps 4,096 bytes


@dataclasses.dataclass(kw_only=True, slots=True)
class TaskReport:
    """What became of the task of one request. Each field is None until it is known."""

    response: webob.Response | None = None
    """The response of the task's handler; the glue keeps it here, because the framework may change the response."""
    outcome: Outcome | None = None
    """How the attempt ended; None if the request was refused, or did not reach the task's handler."""
    error: BaseException | None = None
    """The exception that the task raised, or with which a layer of the app failed after the task was done."""
    layer_error: BaseException | None = None
    """An exception that the glue has seen in a layer of the app."""
    attempt: tuple[TaskContext, bytes] | None = None
    """The context and the body of the attempt, for :meth:`TaskHandler.fail`."""


def report_in(environ: WSGIEnvironment) -> TaskReport | None:
    """Return the report in ``environ``, if somebody has put one there."""
    found = environ.get(REPORT_KEY)
    return found if isinstance(found, TaskReport) else None


class _FixedResponse(webob.Response):
    """A response that never changes, and so can skip the work that webob does each time to send one.

    That work is for HEAD requests, which are answered with 405 here, and for the Location header.
    """

    @functools.cached_property
    def _parts(self) -> tuple[str, list[tuple[str, str]], list[bytes]]:
        return self.status, list(self.headerlist), [self.body]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        status, headers, body = self._parts
        start_response(status, headers.copy())  # the layers around may change the headers
        return body


class FinishingResponse(webob.Response):
    """The response to a task that is done, and whose payload is in the datastore.

    The payload is removed when the server asks for the body. If a layer around the handler has failed by then, the
    queue retries the task, and the task needs its payload.
    """

    context: TaskContext

    @classmethod
    def of(cls, response: webob.Response, context: TaskContext) -> FinishingResponse:
        """Return ``response`` with the removal of the payload of the task ``context``."""
        made = cls(response.body, response.status, list(response.headerlist))
        made.context = context
        return made

    def finish(self) -> None:
        """Remove the payload."""
        reference, self.context.stored = self.context.stored, None
        if reference is not None:
            # A call that raised RetryLater is in another task now.
            overflow.finish(reference, self.context.retry_count if self.context.error is None else None)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send the response."""
        return self._send(super().__call__(environ, start_response))

    def _send(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        self.finish()
        yield from parts


def _fixed(status: int, text: str, **headers: str) -> webob.Response:
    response = _FixedResponse(status=status, text=f"{text}\n", content_type="text/plain")
    for name, value in headers.items():
        response.headers[name] = value
    return response


_RESPONSES: Final = {
    Outcome.DONE: _fixed(200, "done"),
    Outcome.PERMANENT_FAILURE: _fixed(200, "failed for good", **{protocol.OUTCOME_HEADER: protocol.PERMANENT_FAILURE}),
    Outcome.ATTEMPTS_EXHAUSTED: _fixed(
        200, "no attempts left", **{protocol.OUTCOME_HEADER: protocol.ATTEMPTS_EXHAUSTED}
    ),
    Outcome.POSTPONED: _fixed(200, "enqueued again", **{protocol.OUTCOME_HEADER: protocol.POSTPONED}),
    # Never 503, which throttles the whole queue
    # (https://cloud.google.com/appengine/docs/standard/services/task-queue).
    Outcome.RETRY: _fixed(408, "retry requested"),
    Outcome.FAILED: _fixed(500, "failed"),
    Outcome.UNREADABLE: _fixed(500, "can't be run by this version"),
}
_FINISHED: Final = frozenset({Outcome.DONE, Outcome.POSTPONED})
"""The outcomes after which a payload in the datastore can be removed. That of a dead letter may be run again."""
_SWEPT: Final = _fixed(200, "swept")
_NOT_POST: Final = webob.Response(status=405, text="send tasks with POST\n", content_type="text/plain", allow="POST")
_FORBIDDEN: Final = _fixed(403, "forbidden")
_BODY_RESPONSES: Final = {
    400: _fixed(400, "the body can't be read"),
    411: _fixed(411, "the body has no Content-Length"),
    413: _fixed(413, "the body is too large"),
}


class TaskHandler:
    """A WSGI app that runs the task of each request.

    Raises :class:`~deferred_middleware.SettingsError` if the warm-up module can't be found, or if there is no secret
    key although one is needed.
    """

    def __init__(self, settings: Settings, hooks: Hooks) -> None:
        self.settings = settings
        self._hooks = hooks
        self.prefix: str = f"{settings.url_prefix}/"
        """The start of the path of a task's request."""
        self._prefix_length = len(self.prefix)
        legacy = settings.unnamed_urls
        self._legacy = frozenset(url for url in legacy if not url.endswith("*"))
        self._prefixes = (self.prefix, *(url[:-1] for url in legacy if url.endswith("*")))
        self._warmup = Warmup(settings.warmup_module)
        self._runner = Runner(settings, hooks, self._warmup)
        self._authenticator = Authenticator(settings, process.current_deployment())
        self._refused = itertools.count(1)
        self.sweeper: Sweeper | None = Sweeper.needed(settings, hooks)
        """Sweeps the outbox of transactional tasks; None if the engine has none."""

    @classmethod
    def installed(cls, settings: Settings | None, hooks: Iterable[AnyHook]) -> TaskHandler:
        """Return a handler whose settings and hooks, if any are given, become the process's.

        So ``defer`` sends tasks to the URLs at which this handler expects them.
        """
        if settings is not None:
            process.install_settings(settings)
        given = tuple(hooks)
        if given:
            process.install_hooks(Hooks(given))
        return cls(settings or process.current_settings(), process.current_hooks())

    @property
    def starts(self) -> tuple[str, ...]:
        """What the paths of all tasks' requests start with. The paths of other requests may start so, too."""
        return (*self._prefixes, *self._legacy)

    def runs(self, path: str) -> bool:
        """Tell whether a request for ``path`` delivers a task: below our prefix, or at one of the legacy URLs."""
        return path.startswith(self._prefixes) or path in self._legacy

    def warm_up(self) -> None:
        """Import the warm-up module if it is not imported yet. A failure is logged; the next task tries again."""
        try:
            self._warmup.run()
        except WarmupError as error:
            log_error(logger, logging.ERROR, "%s", error, error=error.__cause__ or error)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Run the task of a request, and send the response."""
        return self.answer(environ)(environ, start_response)

    def answer(self, environ: WSGIEnvironment) -> webob.Response:
        """Run the task of a request, and return the response. Other tasks may have the same response object.

        Send the response by calling it. If you send a copy, call ``finish()`` of a :class:`FinishingResponse`.
        """
        if environ["REQUEST_METHOD"] != "POST":
            return _NOT_POST
        path = environ["PATH_INFO"]
        try:
            body = self._authenticator.body_of(environ)
        except UntrustedRequestError as error:
            error.count = next(self._refused)
            logger.warning("refused a request for %.200r: %s", path, error)
            self._hooks.fire("on_refused", RefusedRequest(environ=environ, error=error))
            return _FORBIDDEN
        except BodyError as error:
            logger.error("refused a task for %.200r: %s", path, error)
            return _BODY_RESPONSES[error.status]
        # Other paths name no call: a legacy URL, or the URL of a Handler of compat.deferred.
        label = None
        if path.startswith(self.prefix):
            label = path[self._prefix_length :]
            if not label.isascii():
                label = label_from_path(path, self.prefix)
        if self.sweeper is not None:
            self.sweeper.on_request()
        if label == protocol.SWEEP_LABEL:
            return self._sweep()
        context = TaskContext(environ, label or "")
        if self.settings.coalesce:
            outcome = self._run_in_batch(context, body, label)
        else:
            outcome = self._runner.run(context, body, label)
        # If an enqueue that the task started has failed, and nobody has asked for its result, the task has not done its
        # work.
        if request_end.UNDER_WAY or request_end.FAILED:
            all_enqueued = request_end.settle_request()
            if outcome is Outcome.DONE and not all_enqueued:
                outcome = Outcome.FAILED
        if REPORT_KEY in environ and (report := report_in(environ)) is not None:
            report.outcome, report.error, report.attempt = outcome, context.error, (context, body)
        if context.error is None and context.stored is None:
            return _RESPONSES[outcome]
        return _response(outcome, context)

    def _sweep(self) -> webob.Response:
        """Run the task that sweeps the outbox of transactional tasks."""
        if self.sweeper is None:
            logger.info("the outbox of transactional tasks is not swept, because Cloud Tasks is not the engine")
            return _SWEPT
        try:
            outcome = self.sweeper.run_task()
        except Exception:
            logger.exception("the sweep of transactional tasks has failed and will be retried")
            return _RESPONSES[Outcome.FAILED]
        logger.log(self.settings.log_level, "swept the outbox of transactional tasks: %s", outcome)
        return _SWEPT

    def fail(self, report: TaskReport, error: BaseException) -> webob.Response:
        """Return the response to a task that was done before a layer of the app failed with ``error``."""
        assert report.attempt is not None  # the task was done
        context, body = report.attempt
        report.outcome, report.error = self._runner.fail(context, body, error), context.error
        return _response(report.outcome, context)

    def _run_in_batch(self, context: TaskContext, body: bytes, label: str | None) -> Outcome:
        """Run a task whose ``defer_async`` calls are enqueued together at its end, if it succeeds."""
        from deferred_middleware.enqueue.batch import RequestBatch

        with RequestBatch() as batch:
            outcome = self._runner.run(context, body, label)
            if outcome is not Outcome.DONE:
                batch.drop()
        return outcome


def _response(outcome: Outcome, context: TaskContext) -> webob.Response:
    response = _RESPONSES[outcome]
    if context.error is not None and protocol.LOCAL_SERVER_ENVIRON_KEY in context.environ:
        response = _with_traceback(response, context.error)
    if context.stored is not None and outcome in _FINISHED:
        return FinishingResponse.of(response, context)
    return response


def label_from_path(path: str, prefix: str) -> str:
    """Return the label in the path of a request: the text that follows the prefix.

    A WSGI server decodes the bytes of a path as Latin-1 (PEP 3333), but they are UTF-8.
    """
    label = path[len(prefix) :]
    if label.isascii():
        return label
    return label.encode("latin-1", "replace").decode("utf-8", "replace")


def _with_traceback(response: webob.Response, error: BaseException) -> webob.Response:
    """Return the response with the traceback as its body, which the local server shows in the history of a task."""
    from deferred_middleware.execution import logs

    changed = response.copy()
    changed.text = logs.traceback_text(error, _TRACEBACK_CHARACTERS)
    return changed
