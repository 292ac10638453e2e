"""The JSON API for the other commands and for pages, version 1, under ``/api/v1/`` (``docs/operations.rst``).

Every request must show the token of this run, also if it only reads: a task's arguments may be secrets. Requests that
change something must be POST. Requests pass :mod:`~deferred_middleware.server.admin.guard` first.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin import controls
from deferred_middleware.server.admin.change_log import COMMAND_USER_AGENT, Actor
from deferred_middleware.server.admin.controls import TestControls
from deferred_middleware.server.admin.guard import shows_token
from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.reading.search import PARAMETERS, moment_in, search_of
from deferred_middleware.server.admin.reports.reports import Reports
from deferred_middleware.server.admin.reports.routes import REPORTS, find_report
from deferred_middleware.server.admin.routes.openapi import describe
from deferred_middleware.server.admin.routes.table import methods_of
from deferred_middleware.server.store.records import StoredTask
from deferred_middleware.wire.protocol import ADMIN_TOKEN_HEADER

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

API_PREFIX = "/api/v1"
"""Path of the API. A change that breaks clients gets another number."""

_MAX_BODY_BYTES = 64 * 1024
_MAX_TASKS_PER_PAGE = 1000
_TASKS_PER_PAGE = 100

logger: Final = logging.getLogger(__name__)


class JsonApi:
    """A WSGI app that answers under :data:`API_PREFIX`, and passes all other requests to ``pages``.

    Every request must show ``token``. ``controls`` answer the requests of tests.
    """

    def __init__(
        self,
        operations: Operations,
        reports: Reports,
        *,
        token: str,
        controls: TestControls | None = None,
        pages: WSGIApplication | None = None,
    ) -> None:
        self._operations = operations
        self._reports = reports
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
        except OperationError as error:
            status = error.status
            content = {"error": {"code": error.code, "message": error.message}}
            if isinstance(error, _HttpError):
                headers = error.headers
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
            raise OperationError(HTTPStatus.NOT_FOUND, "no-such-page", f"Nothing is here; the API is at {API_PREFIX}/.")
        if not shows_token(environ, self._token):
            message = (
                f"The header {ADMIN_TOKEN_HEADER} must have the token of this run, which is in the data directory."
            )
            raise _HttpError(HTTPStatus.UNAUTHORIZED, "no-token", message, WWW_Authenticate=ADMIN_TOKEN_HEADER)
        operations = self._operations
        # PATH_INFO is decoded. Names of queues and tasks have no slash.
        parts = path[len(API_PREFIX) + 1 :].split("/")
        _check_route(environ["REQUEST_METHOD"], path, parts)
        read: Callable[[], dict[str, Any]]
        match parts:
            case ["openapi.json"]:
                read = partial(describe, API_PREFIX)
            case [""]:
                read = partial(dict, server=operations.about)
            case [name] if self._controls is not None and name in controls.NAMES:
                return self._control(self._controls, name, environ)
            case ["queues"]:
                read = operations.list_queues
            case ["tasks"]:
                read = partial(self._find_tasks, environ)
            case ["changes"]:
                read = lambda: {"changes": operations.change_log.newest()}  # noqa: E731 - as short as the others
            case ["tasks", task_id]:
                read = partial(operations.show_task, task_id)
            case ["tasks", queue, name] if not (queue.isdecimal() and name in _TASK_ACTIONS):
                read = partial(operations.show_task, queue, name)
            case ["tasks", task_id, action]:
                return self._change(
                    environ,
                    lambda actor: _TASK_ACTIONS[action](operations, actor, operations.task(task_id), _body(environ)),
                )
            case ["tasks", queue, name, action] if action in _TASK_ACTIONS:
                return self._change(
                    environ,
                    lambda actor: _TASK_ACTIONS[action](
                        operations, actor, operations.task(queue, name), _body(environ)
                    ),
                )
            case ["queues", queue, action] if action in _QUEUE_ACTIONS:
                return self._change(
                    environ, lambda actor: _QUEUE_ACTIONS[action](operations, actor, queue, _body(environ))
                )
            case [first, *_] if first in REPORTS:
                answer = find_report(self._reports, parts, _query(environ))
                if answer.change is not None:
                    return self._change(environ, partial(answer.change, body=partial(_body, environ)))
                read = answer.read
            case ["retry"]:
                return self._change(environ, operations.retry_all_failed)
            case _:
                raise _nothing_at(path)
        return read()

    def _change(self, environ: WSGIEnvironment, change: Callable[[Actor], dict[str, Any]]) -> dict[str, Any]:
        return change(_actor(environ))

    def _control(self, test_controls: TestControls, name: str, environ: WSGIEnvironment) -> dict[str, Any]:
        reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")
        content = None if reads else _body(environ)
        try:
            if reads or name not in controls.CHANGES:
                return test_controls.answer(name, content)
            return self._operations.control(_actor(environ), name, lambda: test_controls.answer(name, content))
        except controls.ControlError as error:
            raise bad(str(error)) from error

    def _find_tasks(self, environ: WSGIEnvironment) -> dict[str, Any]:
        given = _query(environ)
        known = (*PARAMETERS, "before", "limit", "calls")
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise bad(f"tasks can't be found by {unknown[0]!r}; use {', '.join(known[:-1])} and {known[-1]}.")
        return self._operations.find_tasks(
            search_of(given),
            before=_number(given, "before", None, 2**62),
            limit=_number(given, "limit", _TASKS_PER_PAGE, _MAX_TASKS_PER_PAGE) or _TASKS_PER_PAGE,
            calls=bool(given.get("calls")),
        )


class _HttpError(OperationError):
    """An error answer with headers."""

    def __init__(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        self.headers = headers
        super().__init__(status, code, message)


def _nothing_at(path: str) -> OperationError:
    return OperationError(HTTPStatus.NOT_FOUND, "no-such-page", f"The API has nothing at {path!r}.")


def _check_route(method: str, path: str, parts: Sequence[str]) -> None:
    """Refuse a path or a method that is not in the table of routes. HEAD is a GET without the content."""
    methods = methods_of(parts)
    if not methods:
        raise _nothing_at(path)
    if ("GET" if method == "HEAD" else method) not in methods:
        allowed = ", ".join("GET, HEAD" if known == "GET" else known for known in methods)
        message = f"Use {' or '.join(methods)}."
        raise _HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "wrong-method", message, Allow=allowed)


_TASK_ACTIONS: dict[str, Callable[[Operations, Actor, StoredTask, Mapping[str, Any]], dict[str, Any]]] = {
    "run": lambda operations, actor, task, _body: operations.run(actor, task),
    "retry": lambda operations, actor, task, _body: operations.retry(actor, task),
    "delete": lambda operations, actor, task, _body: operations.delete(actor, task),
    "eta": lambda operations, actor, task, body: operations.set_eta(actor, task, moment_in(_text(body, "eta") or "")),
    "queue": lambda operations, actor, task, body: operations.move(actor, task, _text(body, "queue") or ""),
}
_QUEUE_ACTIONS: dict[str, Callable[[Operations, Actor, str, Mapping[str, Any]], dict[str, Any]]] = {
    "pause": lambda operations, actor, queue, _body: operations.pause(actor, queue),
    "resume": lambda operations, actor, queue, _body: operations.resume(actor, queue),
    "undo-purge": lambda operations, actor, queue, _body: operations.undo_purge(actor, queue),
    "purge": lambda operations, actor, queue, _body: operations.purge(actor, queue),
    "retry": lambda operations, actor, queue, _body: operations.retry_failed(actor, queue),
    "delete-failed": lambda operations, actor, queue, _body: operations.delete_failed(actor, queue),
    "run-scheduled": lambda operations, actor, queue, _body: operations.run_scheduled(actor, queue),
    "forget": lambda operations, actor, queue, body: operations.forget(actor, queue, _text(body, "name")),
}


def _query(environ: WSGIEnvironment) -> Mapping[str, str]:
    """Return the parameters of the URL."""
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    return {name: values[-1] for name, values in query.items()}


def _actor(environ: WSGIEnvironment) -> Actor:
    """Return who makes a request. The commands say which user runs them."""
    agent, _, user = environ.get("HTTP_USER_AGENT", "").partition(" ")
    address = environ.get("REMOTE_ADDR", "?")
    if agent == COMMAND_USER_AGENT:
        return Actor(via="command", who=user.strip("()") or address)
    return Actor(via="API", who=address)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise bad(f"{name} must be a text.")
    return value


def _number(given: Mapping[str, str], name: str, default: int | None, highest: int) -> int | None:
    text = given.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 20 or not 1 <= int(text) <= highest:
        raise bad(f"{name}={text[:40]!r} is not a whole number from 1 to {highest}.")
    return int(text)


def _body(environ: WSGIEnvironment) -> Mapping[str, Any]:
    """Return the JSON object in a request's body; an empty one if the request has no body."""
    given = environ.get("CONTENT_LENGTH") or "0"
    if not (given.isascii() and given.isdigit()):
        raise bad("The Content-Length must be a number.")
    length = int(given[:20])  # enough digits to be too large; int() refuses thousands of digits
    if length > _MAX_BODY_BYTES:
        raise OperationError(
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
        raise bad("The body must be a JSON object.")
    return content
