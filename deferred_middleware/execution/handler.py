"""What became of a delivered task, for whoever stands around the request: test tools and frameworks' glue.

Whoever wants to know puts a :class:`Delivery` into the request's ``environ`` under :data:`KEY`; it is filled while the
task runs. Unlike a response it can't be changed by a layer in between.

Answer the request that delivers a task: is it the queue's, what is its body, how did it end.

:class:`TaskHandler` is what :class:`~deferred_middleware.DeferredMiddleware` and the frameworks' glue have in common.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import webob

from deferred_middleware.config import hooks as hooks_module
from deferred_middleware.config import settings as settings_module
from deferred_middleware.config.hooks import Hooks
from deferred_middleware.config.settings import current_deployment
from deferred_middleware.enqueue import batch as batches
from deferred_middleware.enqueue import request_end
from deferred_middleware.errors import BodyError, UntrustedRequestError, WarmupError
from deferred_middleware.execution import logs, trust
from deferred_middleware.execution.context import TaskContext
from deferred_middleware.execution.outcomes import Outcome, Refusal
from deferred_middleware.execution.runner import Runner, Warmup, label_in
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from deferred_middleware.config.settings import Settings
    from deferred_middleware.execution.retry_later import RetryLater

KEY: Final = "deferred_middleware.execution.handler"
"""The key in ``environ``; no header of a request can set it."""


@dataclasses.dataclass(kw_only=True, slots=True)
class Delivery:
    """What became of the task of one request: nothing yet, or all of this."""

    response: webob.Response | None = None
    """What the task's handler answered, kept by the glue of a framework that may change it on its way."""
    outcome: Outcome | None = None
    """How the attempt ended; None where the request was refused, or not even reached the task's handler."""
    error: BaseException | None = None
    """What the task raised."""


def tell(environ: WSGIEnvironment, outcome: Outcome, error: BaseException | None) -> None:
    """Tell who waits for it how the attempt ended."""
    waiting = delivery_of(environ)
    if waiting is not None:
        waiting.outcome, waiting.error = outcome, error


def delivery_of(environ: WSGIEnvironment) -> Delivery | None:
    """Return where somebody waits to hear what becomes of the task, if anybody does."""
    found = environ.get(KEY)
    return found if isinstance(found, Delivery) else None


logger = logging.getLogger("deferred_middleware")


class _Answer(webob.Response):
    """A response that is the same each time, and so needs nothing of what webob does to send one.

    That is to look for an empty body after a HEAD, which is answered 405 here, and to complete a Location.
    """

    @functools.cached_property
    def _parts(self) -> tuple[str, list[tuple[str, str]], list[bytes]]:
        return self.status, list(self.headerlist), [self.body]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        status, headers, body = self._parts
        start_response(status, headers.copy())  # a layer around may change it
        return body


def _answer(status: int, text: str, **headers: str) -> webob.Response:
    response = _Answer(status=status, text=f"{text}\n", content_type="text/plain")
    for name, value in headers.items():
        response.headers[name] = value
    return response


# A webob.Response is a WSGI app that doesn't change while it answers, so that each is made once.
_ANSWERS = {
    Outcome.DONE: _answer(200, "done"),
    Outcome.PERMANENT_FAILURE: _answer(200, "failed for good", **{protocol.OUTCOME_HEADER: protocol.PERMANENT_FAILURE}),
    Outcome.ATTEMPTS_EXHAUSTED: _answer(200, "given up", **{protocol.OUTCOME_HEADER: protocol.ATTEMPTS_EXHAUSTED}),
    Outcome.POSTPONED: _answer(200, "enqueued again", **{protocol.OUTCOME_HEADER: protocol.POSTPONED}),
    # Never 503: it throttles the whole queue (https://cloud.google.com/appengine/docs/standard/services/task-queue).
    Outcome.RETRY: _answer(408, "another attempt, please"),
    Outcome.FAILED: _answer(500, "failed"),
    Outcome.UNREADABLE: _answer(500, "can't be run by this version"),
}
_NOT_POST = webob.Response(status=405, text="tasks are posted\n", content_type="text/plain", allow="POST")
_FORBIDDEN = _answer(403, "forbidden")
_TRACEBACK_CHARACTERS = 4000  # the local server keeps 4,096 bytes
_BODY_PROBLEMS = {
    400: _answer(400, "its body can't be read"),
    411: _answer(411, "its body has no Content-Length"),
    413: _answer(413, "its body is too large"),
}


def _enqueue_again(context: TaskContext, content: bytes, retry: RetryLater) -> None:
    from deferred_middleware.execution.retry_later import enqueue_again  # here, because enqueueing imports the SDK

    enqueue_again(context, content, retry)


class TaskHandler:
    """Runs the tasks whose requests it is given.

    Raises :class:`~deferred_middleware.SettingsError` when the warm-up module is not there to import, or when there is
    no secret key where one is needed.
    """

    def __init__(self, settings: Settings, hooks: Hooks) -> None:
        self.settings = settings
        self._hooks = hooks
        self.prefix = f"{settings.url_prefix}/"
        """What the path of a task's request begins with."""
        self._warmup = Warmup(settings.warmup_module)
        self._runner = Runner(settings, hooks, self._warmup, _enqueue_again)
        self._gate = trust.Gate(settings, current_deployment())
        self._refused = itertools.count(1)

    @classmethod
    def installed(cls, settings: Settings | None, hooks: Iterable[object]) -> TaskHandler:
        """Return a handler whose settings and hooks, if any are given, become the process's.

        So what is enqueued goes where this handler waits for it.
        """
        if settings is not None:
            settings_module.install_settings(settings)
        own_hooks = tuple(hooks)
        if own_hooks:
            hooks_module.install_hooks(Hooks(own_hooks))
        return cls(settings or settings_module.current_settings(), hooks_module.current_hooks())

    def warm_up(self) -> bool:
        """Import the warm-up module if that is still to be done; a failure is logged, and the next task tries again."""
        try:
            self._warmup.run()
        except WarmupError as error:
            logger.error("%s", error, exc_info=error.__cause__)
            return False
        return True

    def answer(self, environ: WSGIEnvironment) -> webob.Response:
        """Run the task that ``environ`` delivers; return the response, which may be another task's as well."""
        if environ["REQUEST_METHOD"] != "POST":
            return _NOT_POST
        try:
            body = self._gate.body_of(environ)
        except UntrustedRequestError as refusal:
            refusal.count = next(self._refused)
            logger.warning("refused a request for %.200r: %s", environ["PATH_INFO"], refusal)
            self._hooks.fire("on_refused", Refusal(environ=environ, error=refusal))
            return _FORBIDDEN
        except BodyError as problem:
            logger.error("a task for %.200r: %s", environ["PATH_INFO"], problem)
            return _BODY_PROBLEMS[problem.status]
        path = environ["PATH_INFO"]
        # Elsewhere, at a legacy URL or where a Handler of compat.deferred stands, the path names no call.
        label = label_in(path, self.prefix) if path.startswith(self.prefix) else None
        context = TaskContext(environ, label or "")
        if self.settings.coalesce:
            with batches.RequestBatch() as batch:
                outcome = self._runner.run(context, body, label)
                if outcome is not Outcome.DONE:
                    batch.drop()
        else:
            outcome = self._runner.run(context, body, label)
        # A task whose enqueues failed, with nobody to notice, has not done its work.
        if (
            (request_end.UNDER_WAY or request_end.FAILED)
            and not request_end.settle_request()
            and outcome is Outcome.DONE
        ):
            outcome = Outcome.FAILED
        answer = _ANSWERS[outcome]
        if KEY in environ:
            tell(environ, outcome, context.error)
        if context.error is not None and protocol.LOCAL_SERVER_ENVIRON_KEY in environ:
            return _with_traceback(answer, context.error)
        return answer


def _with_traceback(answer: webob.Response, error: BaseException) -> webob.Response:
    """Return ``answer`` with the traceback as its body: for the local server's history of a task, for nobody else."""
    told = answer.copy()
    told.text = logs.traceback_text(error, _TRACEBACK_CHARACTERS)
    return told
