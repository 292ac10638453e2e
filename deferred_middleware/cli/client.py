"""How the commands find the running server and speak to it, by its JSON API.

The server writes ``server.json`` into its data directory: where it answers, and the token of its run. ``--admin`` names
a server that is reached otherwise, such as through a tunnel, and ``--token-file`` what has its token.
"""

from __future__ import annotations

import argparse
import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin.server_file import SERVER_FILE, RunningServer, read_server_file
from deferred_middleware.wire.protocol import ADMIN_TOKEN_HEADER

WRONG_USAGE = 2
"""Exit status: arguments that don't go together, as for those that argparse refuses."""
NOT_RUNNING = 3
"""Exit status: no server answers."""
NOT_FOUND = 4
"""Exit status: there is no such task, or no such queue."""

_TIMEOUT_SECONDS = 60.0
_API_PREFIX = "/api/v1"


class UsageError(ServerError):
    """Arguments don't go together."""

    exit_status = WRONG_USAGE


class NotRunningError(ServerError):
    """No server answers."""

    exit_status = NOT_RUNNING


class NotFoundError(ServerError):
    """The server has no such task or queue."""

    exit_status = NOT_FOUND


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every command for a running server takes."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(".deferred"),
        metavar="DIRECTORY",
        help="the server's (.deferred)",
    )
    parser.add_argument("--admin", metavar="URL", help="where the server answers, if not where its data directory says")
    parser.add_argument(
        "--token-file", type=Path, metavar="PATH", help=f"has the server's token, as its {SERVER_FILE} does or alone"
    )
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON, for machines")


class Connection:
    """A connection to the server that the arguments name. Raises :class:`NotRunningError` when there is none."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        path: Path = arguments.data_dir / SERVER_FILE
        told = read_server_file(path)
        self._hint = ""
        if arguments.admin is None:
            if told is None:
                raise NotRunningError(
                    f"No server is running on {arguments.data_dir}; start it with 'deferred-middleware serve', "
                    "or name its --data-dir, or its --admin URL."
                )
            self._hint = f"{path} tells of a server (process {told.pid}, since {told.since}) that "
        self._host, self._port = _address(arguments.admin or (told.admin if told else ""))
        self._token = _token(arguments.token_file, told, path)
        self._connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)

    def get(self, *parts: str, **query: str | int | None) -> dict[str, Any]:
        """Return what the API says at a path, made of ``parts``, with those of ``query`` that aren't None."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", _path(parts) + (f"?{urlencode(given)}" if given else ""), None)

    def post(self, *parts: str, content: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Have the API change something, and return what it says."""
        return self._ask("POST", _path(parts), json.dumps(content or {}).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {ADMIN_TOKEN_HEADER: self._token, "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._not_reached(error) from error
        return self._content(response.status, data)

    def _content(self, status: int, data: bytes) -> dict[str, Any]:
        where = f"http://{self._host}:{self._port}"
        try:
            content = json.loads(data)
            if not isinstance(content, dict):
                raise ValueError
        except ValueError as error:
            if status == 403:
                raise ServerError(f"{where}: {data.decode('utf-8', 'replace').strip()[:500]}") from error
            raise NotRunningError(
                f"{self._hint or where + ' '}answers with status {status} and no JSON: "
                "something else uses that address now."
            ) from error
        if status == 401:
            raise ServerError(
                f"The server at {where} doesn't take the token: it is another one, or was started again; "
                f"give its {SERVER_FILE} as --token-file, or its --data-dir."
            )
        if status >= 400:
            told = content.get("error", {})
            kind = NotFoundError if told.get("code") in ("no-such-task", "no-such-queue") else ServerError
            raise kind(str(told.get("message", f"The server answered with status {status}.")))
        return content

    def _not_reached(self, error: Exception) -> ServerError:
        if isinstance(error, TimeoutError):
            return ServerError(f"The server at {self._host}:{self._port} gave no answer in {_TIMEOUT_SECONDS:.0f} s.")
        if self._hint:
            return NotRunningError(f"{self._hint}doesn't answer any more; start it with 'deferred-middleware serve'.")
        return NotRunningError(f"No server answers at {self._host}:{self._port} ({error}).")


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme not in ("", "http") or not parts.hostname or not port or parts.path not in ("", "/"):
        raise ServerError(f"--admin {url!r} is not a server's URL, such as http://127.0.0.1:8000.")
    return parts.hostname, port


def _token(path: Path | None, told: RunningServer | None, default: Path) -> str:
    if path is None:
        if told is None:
            raise ServerError(
                f"The server's token is in the {SERVER_FILE} of its data directory, and there is no {default}: "
                "give a copy of it as --token-file."
            )
        return told.token
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"--token-file {path} can't be read: {error}.") from error
    if text.startswith("{"):
        server = read_server_file(path)
        assert server is not None, "it was there just now"
        return server.token
    if not text.isascii() or not text.isprintable() or not text:
        raise ServerError(f"--token-file {path} holds no token: one line of letters and digits.")
    return text


def _path(parts: tuple[str, ...]) -> str:
    return "/".join([_API_PREFIX, *(quote(part, safe="") for part in parts)])


def task_path(task: str) -> tuple[str, ...]:
    """Return the parts of the API's path to the task that a person named: by its ID, or as ``QUEUE/NAME``.

    Raises :class:`ServerError` for anything else.
    """
    queue, slash, name = task.partition("/")
    if slash and queue and name and "/" not in name:
        return ("tasks", queue, name)
    if not slash and task.isdecimal():
        return ("tasks", task)
    raise ServerError(f"A task is named by its ID, such as 42, or as QUEUE/NAME; got {task!r}.")
