"""The client of a running server's JSON API.

It finds the server by the file ``server.json`` in the server's data directory, which has the address and the token of
the run. With ``--admin`` it uses another address, such as a tunnel's, and with ``--token-file`` another file's token.
"""

from __future__ import annotations

import argparse
import getpass
import http.client
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from deferred_middleware.errors import ServerError
from deferred_middleware.errors.text import printable
from deferred_middleware.server.admin.change_log import COMMAND_USER_AGENT
from deferred_middleware.server.admin.server_file import SERVER_FILE, RunningServer, read_server_file
from deferred_middleware.wire.protocol import ADMIN_TOKEN_HEADER

WRONG_USAGE = 2
"""Exit status: the arguments don't fit together. argparse has the same one."""
NOT_RUNNING = 3
"""Exit status: no server answers."""
NOT_FOUND = 4
"""Exit status: there is no such task, or no such queue."""

_NOT_FOUND = frozenset(
    {"no-such-task", "no-such-queue", "no-such-failure", "no-such-function", "no-such-entry", "no-such-kind"}
)

MOST_COUNTED = 10_000
"""The server stops counting a queue's waiting tasks here, for each target; see the API's documentation."""

_TIMEOUT_SECONDS = 60.0
_API_PREFIX = "/api/v1"


class UsageError(ServerError):
    """Arguments don't fit together."""

    exit_status = WRONG_USAGE


class NotRunningError(ServerError):
    """No server answers."""

    exit_status = NOT_RUNNING


class NotFoundError(ServerError):
    """The server has no such task or queue."""

    exit_status = NOT_FOUND


def add_client_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that needs a running server."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(".deferred"),
        metavar="DIRECTORY",
        help="the server's data directory (default: %(default)s)",
    )
    parser.add_argument(
        "--admin", metavar="URL", help="the server's address, if it differs from the one in its data directory"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="PATH",
        help=f"a copy of the server's {SERVER_FILE}, or a file with only the token",
    )
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")


def add_yes_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that :func:`confirm`."""
    parser.add_argument("-y", "--yes", action="store_true", help="don't ask")


def confirm(arguments: argparse.Namespace, question: str) -> None:
    """Ask the person at the terminal, unless ``--yes`` is given. Raises :class:`UsageError` for any answer but yes."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("This deletes tasks, and there is no terminal to ask at; give --yes.")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("Nothing was deleted.")


class AdminClient:
    """A client of the server that the arguments name. Raises :class:`NotRunningError` if they name none."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        path: Path = arguments.data_dir / SERVER_FILE
        server = read_server_file(path)
        self._found_in_file = ""
        if arguments.admin is None:
            if server is None:
                raise NotRunningError(
                    f"No server is running on {arguments.data_dir}; start it with 'deferred-middleware serve', "
                    "or give its --data-dir or its --admin URL."
                )
            self._found_in_file = f"{path} names a server (process {server.pid}, since {server.since}) that "
        self._host, self._port = _parse_address(arguments.admin or (server.admin if server else ""))
        self._token = _read_token(arguments.token_file, server, path)
        self._connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)

    def get(self, *parts: str, **query: str | int | None) -> dict[str, Any]:
        """Return the API's answer for the path of these ``parts``, with the items of ``query`` that aren't None."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._request("GET", _api_path(parts) + (f"?{urlencode(given)}" if given else ""), None)

    def post(self, *parts: str, content: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Post ``content`` as JSON to the path of these ``parts``, and return the API's answer."""
        return self._request("POST", _api_path(parts), json.dumps(content or {}).encode())

    def _request(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {ADMIN_TOKEN_HEADER: self._token, "Accept": "application/json", "User-Agent": _user_agent()}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._connection_error(error) from error
        return self._parse_answer(response.status, data)

    def _parse_answer(self, status: int, data: bytes) -> dict[str, Any]:
        address = f"http://{self._host}:{self._port}"
        try:
            content = json.loads(data)
            if not isinstance(content, dict):
                raise ValueError
        except (ValueError, RecursionError) as error:
            if status == 403:
                raise ServerError(f"{address}: {printable(data.decode('utf-8', 'replace').strip()[:500])}") from error
            raise NotRunningError(
                f"{self._found_in_file or address + ' '}answers with status {status} and no JSON: "
                "another program uses that address now."
            ) from error
        if status == 401:
            raise ServerError(
                f"The server at {address} doesn't accept the token: it is another server, or it was restarted. "
                f"Give its --data-dir, or its {SERVER_FILE} as --token-file."
            )
        if status >= 400:
            problem = content.get("error", {})
            kind = NotFoundError if problem.get("code") in _NOT_FOUND else ServerError
            message = problem.get("message") if isinstance(problem, dict) else None
            raise kind(printable(str(message or f"The server answered with status {status}.")))
        return content

    def _connection_error(self, error: Exception) -> ServerError:
        if isinstance(error, TimeoutError):
            return ServerError(f"The server at {self._host}:{self._port} gave no answer in {_TIMEOUT_SECONDS:.0f} s.")
        if self._found_in_file:
            return NotRunningError(
                f"{self._found_in_file}doesn't answer any more; start it with 'deferred-middleware serve'."
            )
        return NotRunningError(f"No server answers at {self._host}:{self._port} ({error}).")


def _parse_address(url: str) -> tuple[str, int]:
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme not in ("", "http") or not parts.hostname or not port or parts.path not in ("", "/"):
        raise ServerError(f"--admin {url!r} is not a server's URL, such as http://127.0.0.1:8000.")
    return parts.hostname, port


def _read_token(path: Path | None, server: RunningServer | None, default: Path) -> str:
    """Return the token in the file ``path``, or without one that of ``server``, whose file is ``default``."""
    if path is None:
        if server is None:
            raise ServerError(
                f"The server's token is in the {SERVER_FILE} of its data directory, and {default} doesn't exist; "
                "give a copy of it as --token-file."
            )
        return server.token
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"--token-file {path} can't be read: {error}.") from error
    if text.startswith("{"):
        copied = read_server_file(path)
        assert copied is not None, "the file was there just now"
        return copied.token
    if not text.isascii() or not text.isprintable() or not text:
        raise ServerError(f"--token-file {path} has no token: one line of letters and digits.")
    return text


def _user_agent() -> str:
    """Return the header with which the server's log of changes says who did it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        user = "unknown user"
    return f"{COMMAND_USER_AGENT} ({printable(user).encode('ascii', 'replace').decode()})"


def _api_path(parts: tuple[str, ...]) -> str:
    return "/".join([_API_PREFIX, *(quote(part, safe="") for part in parts)])


def task_path(task: str) -> tuple[str, ...]:
    """Return the parts of the API's path to a task, which the command line gives as its ID or as ``QUEUE/NAME``.

    Raises :class:`ServerError` for anything else.
    """
    queue, slash, name = task.partition("/")
    if slash and queue and name and "/" not in name:
        return ("tasks", queue, name)
    if not slash and task.isdecimal():
        return ("tasks", task)
    raise ServerError(f"A task is given by its ID, such as 42, or as QUEUE/NAME; got {task!r}.")
