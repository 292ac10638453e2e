"""The JSON API for the other commands and for pages, version 1, under ``/api/v1/`` (``docs/operations.rst``).

Every request must show the token of this run, also if it only reads: a task's arguments may be secrets. Requests that
change something must be POST. Requests pass :mod:`~deferred_middleware.server.admin.guard` first.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import parse_qs

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin import controls
from deferred_middleware.server.admin.controls import TestControls
from deferred_middleware.server.admin.guard import shows_token
from deferred_middleware.server.admin.views import task_details, task_summary, view_of
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.queries import Waiting
from deferred_middleware.server.store.records import State, StoredTask
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.wire.protocol import ADMIN_TOKEN_HEADER

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

API_PREFIX = "/api/v1"
"""Path of the API. A change that breaks clients gets another number."""

_MAX_BODY_BYTES = 64 * 1024
_MAX_TASKS_PER_PAGE = 1000
_TASKS_PER_PAGE = 100
_STATES: tuple[str, ...] = get_args(State)
_WAITING: tuple[str, ...] = get_args(Waiting)
_MAX_CALL_CHARACTERS = 200

logger = logging.getLogger(__name__)


class _ApiError(Exception):
    """An error answer. ``code`` is for programs, ``message`` for people."""

    def __init__(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers
        super().__init__(message)


class JsonApi:
    """A WSGI app that answers under :data:`API_PREFIX`, and passes all other requests to ``pages``.

    ``queues`` returns the configured queues. ``wake_scheduler`` is called after each change. ``about`` is the
    description of the server. Every request must show ``token``. ``controls`` answer the requests of tests.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        queues: Callable[[], Mapping[str, QueueConfig]],
        wake_scheduler: Callable[[], None],
        about: Mapping[str, object],
        token: str,
        controls: TestControls | None = None,
        pages: WSGIApplication | None = None,
    ) -> None:
        self._store = store
        self._queues = queues
        self._wake_scheduler = wake_scheduler
        self._about = dict(about)
        self._token = token
        self._controls = controls
        self._pages = pages

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request with JSON, or pass it to ``pages``."""
        path = environ.get("PATH_INFO", "")
        if self._pages is not None and not (path == API_PREFIX or path.startswith(API_PREFIX + "/")):
            return self._pages(environ, start_response)
        headers: dict[str, str] = {}
        status = HTTPStatus.OK
        try:
            content = self._answer(environ, path)
        except _ApiError as error:
            status, headers = error.status, error.headers
            content = {"error": {"code": error.code, "message": error.message}}
        except (sqlite3.Error, ServerError) as error:
            logger.exception("The task store failed.")
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            content = {"error": {"code": "store-failed", "message": f"The task store failed: {error}"}}
        body = json.dumps(content, indent=2).encode() + b"\n"
        start_response(
            f"{status.value} {status.phrase}",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                *((name.replace("_", "-"), value) for name, value in headers.items()),
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: WSGIEnvironment, path: str) -> dict[str, Any]:
        if not path.startswith(API_PREFIX + "/"):
            raise _ApiError(HTTPStatus.NOT_FOUND, "no-such-page", f"Nothing is here; the API is at {API_PREFIX}/.")
        if not shows_token(environ, self._token):
            message = (
                f"The header {ADMIN_TOKEN_HEADER} must have the token of this run, which is in the data directory."
            )
            raise _ApiError(HTTPStatus.UNAUTHORIZED, "no-token", message, WWW_Authenticate=ADMIN_TOKEN_HEADER)
        # PATH_INFO is decoded. Names of queues and tasks have no slash.
        read: Callable[[], dict[str, Any]]
        match path[len(API_PREFIX) + 1 :].split("/"):
            case [""]:
                read = partial(dict, server=self._about)
            case [name] if self._controls is not None and name in controls.NAMES:
                return self._control(self._controls, name, environ)
            case ["queues"]:
                read = self._list_queues
            case ["tasks"]:
                read = partial(self._find_tasks, environ)
            case ["tasks", task_id]:
                read = partial(self._show_task, task_id)
            case ["tasks", queue, name] if not (queue.isdecimal() and name in _TASK_ACTIONS):
                read = partial(self._show_task, queue, name)
            case ["tasks", task_id, action]:
                return self._change(environ, lambda: _TASK_ACTIONS[action](self, self._task(task_id)))
            case ["tasks", queue, name, action] if action in _TASK_ACTIONS:
                return self._change(environ, lambda: _TASK_ACTIONS[action](self, self._task(queue, name)))
            case ["queues", queue, action] if action in _QUEUE_ACTIONS:
                return self._change(
                    environ, lambda: _QUEUE_ACTIONS[action](self, self._known_queue(queue), _body(environ))
                )
            case ["retry"]:
                return self._change(environ, self._retry_all)
            case _:
                raise _ApiError(HTTPStatus.NOT_FOUND, "no-such-page", f"The API has nothing at {path!r}.")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            raise _ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "wrong-method", "Use GET.", Allow="GET, HEAD")
        return read()

    def _change(self, environ: WSGIEnvironment, change: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if environ["REQUEST_METHOD"] != "POST":
            raise _ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "wrong-method", "Use POST.", Allow="POST")
        changed = change()
        self._wake_scheduler()
        return changed

    def _control(self, test_controls: TestControls, name: str, environ: WSGIEnvironment) -> dict[str, Any]:
        reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")
        if not reads and environ["REQUEST_METHOD"] != "POST":
            raise _ApiError(HTTPStatus.METHOD_NOT_ALLOWED, "wrong-method", "Use POST.", Allow="GET, HEAD, POST")
        try:
            return test_controls.answer(name, None if reads else _body(environ))
        except controls.ControlError as error:
            raise _bad(str(error)) from error

    def _list_queues(self) -> dict[str, Any]:
        counts = self._store.queries.counts()
        configured = self._queues()
        paused = self._store.operations.paused()
        rows = []
        for name in sorted({*configured, *counts}):
            config = configured.get(name)
            backlog = self._store.queries.backlog(name)
            numbers: dict[str, int] = dict(counts.get(name, {}))  # type: ignore[arg-type] # its keys are strings
            rows.append(
                {
                    "name": name,
                    "configured": config is not None,
                    "paused": name in paused,
                    **{state: numbers.get(state, 0) for state in _STATES},
                    **dataclasses.asdict(backlog),
                    "executed_last_minute": self._store.queries.executed(name)[0],
                    "config": None if config is None else dataclasses.asdict(config),
                }
            )
        return {"queues": rows}

    def _find_tasks(self, environ: WSGIEnvironment) -> dict[str, Any]:
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        unknown = sorted(set(query) - {"queue", "state", "function", "before", "limit", "calls"})
        if unknown:
            raise _bad(f"tasks can't be found by {unknown[0]!r}; use queue, state, function, before, limit and calls.")
        given = {name: values[-1] for name, values in query.items()}
        state = given.get("state")
        if state is not None and state not in (*_STATES, *_WAITING):
            raise _bad(f"state={state!r} is not a state; the states are {', '.join((*_STATES, *_WAITING))}.")
        queue = given.get("queue")
        if queue is not None:
            self._known_queue(queue)
        page = self._store.queries.find(
            queue=queue,
            state=None if state in _WAITING else state,
            waiting=state if state in _WAITING else None,
            contains=given.get("function") or None,
            before_id=_number(given, "before", None, 2**62),
            limit=_number(given, "limit", _TASKS_PER_PAGE, _MAX_TASKS_PER_PAGE) or _TASKS_PER_PAGE,
        )
        tasks = [task_summary(task) for task in page.tasks]
        if given.get("calls"):
            tasks = [{**task, **self._call(task["id"])} for task in tasks]
        return {"tasks": tasks, "next_before": page.next_before_id}

    def _call(self, task_id: int) -> dict[str, Any]:
        """Return a task's call as text, and how long its last attempt took."""
        task = self._store.queries.get_by_id(task_id)
        attempts = self._store.queries.attempts(task_id)
        call = view_of(task.body) if task is not None else None
        return {
            "call": call.text[:_MAX_CALL_CHARACTERS] if call is not None and call.kind == "call" else None,
            "duration_usec": attempts[-1].duration_usec if attempts else None,
        }

    def _show_task(self, queue_or_id: str, name: str | None = None) -> dict[str, Any]:
        task = self._task(queue_or_id, name)
        return {"task": task_details(task, self._store.queries.attempts(task.id))}

    def _task(self, queue_or_id: str, name: str | None = None) -> StoredTask:
        if name is None:
            found = None
            if queue_or_id.isdecimal() and len(queue_or_id) < 19:
                found = self._store.queries.get_by_id(int(queue_or_id))
            shown = queue_or_id
        else:
            found = self._store.queries.get(queue_or_id, name)
            shown = f"{queue_or_id}/{name}"
        if found is None:
            raise _ApiError(HTTPStatus.NOT_FOUND, "no-such-task", f"There is no task {shown!r}; it may be deleted.")
        return found

    def _known_queue(self, queue: str) -> str:
        configured = self._queues()
        if queue not in configured and queue not in self._store.queries.counts():
            known = ", ".join(sorted(configured))
            raise _ApiError(
                HTTPStatus.NOT_FOUND, "no-such-queue", f"There is no queue {queue!r}; the queues are: {known}."
            )
        return queue

    def _run(self, task: StoredTask) -> dict[str, Any]:
        if not self._store.force_run(task.id):
            now = self._store.queries.get_by_id(task.id)
            state = "gone" if now is None else now.state
            if state == "ready":
                raise _conflict("not-waiting", f"Task {task.id} belongs to a pull queue: it is leased and never run.")
            hint = "; retry it instead" if state == "failed" else ""
            raise _conflict("not-waiting", f"Task {task.id} is not waiting to run, it is {state}{hint}.")
        return {"task": task.id, "done": "run"}

    def _retry(self, task: StoredTask) -> dict[str, Any]:
        outcome = self._store.operations.retry(task.id)
        if outcome == "retried":
            return {"task": task.id, "done": "retry"}
        if outcome == "name taken":
            raise _conflict("name-taken", f"A later task has the name of task {task.id}; delete one of them first.")
        hint = "; to start it at once, run it" if task.state == "ready" else ""
        raise _conflict("not-failed", f"Task {task.id} has not failed for good, it is {task.state}{hint}.")

    def _delete(self, task: StoredTask) -> dict[str, Any]:
        if not self._store.operations.delete([task.id]):
            raise _ApiError(HTTPStatus.NOT_FOUND, "no-such-task", f"Task {task.id} is gone already.")
        return {"task": task.id, "done": "delete"}

    def _retry_all(self) -> dict[str, Any]:
        queues = [name for name, numbers in self._store.queries.counts().items() if numbers.get("failed")]
        return {"retried": sum(self._store.operations.retry_failed(name) for name in queues)}

    def _forget(self, queue: str, body: Mapping[str, Any]) -> dict[str, Any]:
        name = body.get("name")
        if name is not None and not isinstance(name, str):
            raise _bad("name must be a text.")
        return {"queue": queue, "forgotten": self._store.operations.unblock_names(queue, name)}


_TASK_ACTIONS: dict[str, Callable[[JsonApi, StoredTask], dict[str, Any]]] = {
    "run": JsonApi._run,
    "retry": JsonApi._retry,
    "delete": JsonApi._delete,
}
_QUEUE_ACTIONS: dict[str, Callable[[JsonApi, str, Mapping[str, Any]], dict[str, Any]]] = {
    "pause": lambda api, queue, _body: {"queue": queue, "changed": api._store.operations.pause(queue)},
    "resume": lambda api, queue, _body: {"queue": queue, "changed": api._store.operations.resume(queue)},
    "purge": lambda api, queue, _body: {"queue": queue, "deleted": api._store.operations.purge(queue)},
    "retry": lambda api, queue, _body: {"queue": queue, "retried": api._store.operations.retry_failed(queue)},
    "delete-failed": lambda api, queue, _body: {"queue": queue, "deleted": api._store.operations.delete_failed(queue)},
    "run-scheduled": lambda api, queue, _body: {"queue": queue, "made_due": api._store.operations.make_due(queue)},
    "forget": JsonApi._forget,
}


def _bad(message: str) -> _ApiError:
    return _ApiError(HTTPStatus.BAD_REQUEST, "bad-request", message)


def _conflict(code: str, message: str) -> _ApiError:
    return _ApiError(HTTPStatus.CONFLICT, code, message)


def _number(given: Mapping[str, str], name: str, default: int | None, highest: int) -> int | None:
    text = given.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 20 or not 1 <= int(text) <= highest:
        raise _bad(f"{name}={text[:40]!r} is not a whole number from 1 to {highest}.")
    return int(text)


def _body(environ: WSGIEnvironment) -> Mapping[str, Any]:
    """Return the JSON object in a request's body; an empty one if the request has no body."""
    given = environ.get("CONTENT_LENGTH") or "0"
    if not (given.isascii() and given.isdigit()):
        raise _bad("The Content-Length must be a number.")
    length = int(given[:20])  # enough digits to be too large; int() refuses thousands of digits
    if length > _MAX_BODY_BYTES:
        raise _ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"The body may have at most {_MAX_BODY_BYTES} bytes."
        )
    data = environ["wsgi.input"].read(length)
    if not data:
        return {}
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _bad("The body must be a JSON object.")
    return content
