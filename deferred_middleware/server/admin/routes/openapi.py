"""The description of the JSON API in OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0), made from the routes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deferred_middleware import __version__
from deferred_middleware.server.admin.routes.table import ROUTES, ApiRoute
from deferred_middleware.wire.protocol import ADMIN_TOKEN_HEADER

ERRORS: Final = {
    "400": "A parameter or the body can't be used: bad-request.",
    "401": "The token of the run is missing: no-token.",
    "403": "The server refuses changes (read-only), or the request comes from another host or site.",
    "404": "There is no such page, task, queue or other thing.",
    "405": "The path has no such method: wrong-method.",
    "409": "The state of the task or of the server doesn't allow it.",
    "413": "The body is larger than 64 KiB: too-large.",
    "500": "The task store failed: store-failed.",
    "502": "The target of a cron entry doesn't answer: not-served.",
}
"""The statuses of errors, and what they mean."""

PARAMETERS: Final = {
    "id": "The number of a task.",
    "queue": "The name of a queue.",
    "name": "The name of a task.",
    "failure": "The number of a group of failures.",
    "entry": "The number of an entry of cron.yaml, from 0.",
    "state": "ready, running, succeeded or failed; or due, scheduled or retrying.",
    "function": "A part of the function's name or of the task's URL.",
    "service": "The service that runs the task.",
    "text": "A text in the payload.",
    "older": "The least age, such as 10min.",
    "newer": "The greatest age, such as 2h.",
    "slower": "The least duration of the last attempt, such as 1.5s.",
    "faster": "The greatest duration of the last attempt, such as 100ms.",
    "before": "The value of next_before in the page before.",
    "limit": "The most tasks of a page, from 1 to 1000; by default 100.",
    "calls": "If it is not empty, each task has its call and the reason why it waits.",
    "solved": "With 1, the groups whose tasks are solved or gone are shown instead.",
    "period": "hour, day or week.",
    "namespace": "A namespace of the datastore.",
    "kind": "A kind of the datastore.",
    "offset": "The number of entities to leave out.",
    "key": "The key of an entity.",
    "prefix": "The beginning of the keys to show.",
}
"""The meaning of each parameter of paths and URLs."""

_WHOLE_NUMBERS: Final = ("id", "failure", "entry")
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}


def describe(prefix: str) -> dict[str, Any]:
    """Return the description of the API below ``prefix``."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The JSON API of deferred_middleware's local server",
            "version": __version__,
            "summary": "Shows and changes the tasks of the local server.",
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": prefix}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": ADMIN_TOKEN_HEADER,
                    "description": "The token of this run of the server, from server.json in its data directory.",
                }
            },
            "schemas": {"Error": _ERROR},
            "responses": {
                f"Error{status}": {"description": meaning, "content": _content({"$ref": "#/components/schemas/Error"})}
                for status, meaning in ERRORS.items()
            },
        },
    }


def statuses_of(route: ApiRoute) -> tuple[str, ...]:
    """Return the statuses of the errors that a route can have."""
    always = ["400", "401", "403", "404", "405", "500"]
    if route.method == "POST":
        always += ["409", "413"]
    if route.operation == "runCron":
        always.append("502")
    return tuple(sorted(always))


def _operation(route: ApiRoute) -> dict[str, Any]:
    parameters = [
        _parameter(name, "integer" if name in _WHOLE_NUMBERS else "string", place="path")
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [_parameter(name, kind, place="query") for name, kind in route.query.items()]
    operation: dict[str, Any] = {"operationId": route.operation, "summary": route.summary}
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        operation["requestBody"] = {
            "required": bool(route.needs),
            "content": _content(_object(route.body, route.needs)),
        }
    errors = {status: {"$ref": f"#/components/responses/Error{status}"} for status in statuses_of(route)}
    answer = {"description": "The answer.", "content": _content(_object(route.answer, tuple(route.answer)))}
    return {**operation, "responses": {"200": answer, **errors}}


def _parameter(name: str, kind: str, *, place: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": PARAMETERS[name],
        "schema": {"type": kind},
    }


def _object(fields: Mapping[str, str], needs: Sequence[str]) -> dict[str, Any]:
    properties = {name: {"type": _type(kind)} for name, kind in fields.items()}
    return {"type": "object", "properties": properties, **({"required": list(needs)} if needs else {})}


def _type(kind: str) -> str | list[str]:
    return [kind[:-1], "null"] if kind.endswith("?") else kind


def _content(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
