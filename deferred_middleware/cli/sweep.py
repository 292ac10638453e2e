"""``deferred-middleware sweep``: remove expired payloads from the datastore."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deferred_middleware.cli.engine import connect
from deferred_middleware.errors import ServerError

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "sweep",
        help="remove expired payloads from the datastore",
        description="Remove payloads too large for a task, and receipts of such, whose time is over. It needs the "
        "datastore that the app's SDK reaches: on the local server, the variables API_HOST, API_PORT and "
        "HTTP_X_APPENGINE_API_TICKET. On App Engine call deferred_middleware.wire.overflow.sweep() in a handler that "
        "cron.yaml names.",
    )
    parser.add_argument("--max-seconds", type=float, default=300.0, help="when to end at the latest (default: 300)")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Remove what has expired, and say how much. Raises :class:`ServerError` when there is no datastore to ask."""
    from google.appengine.api import apiproxy_stub_map, datastore_errors
    from google.appengine.runtime import apiproxy_errors

    from deferred_middleware.wire.overflow import sweep

    connect()
    if apiproxy_stub_map.apiproxy.GetStub("datastore_v3") is None:
        raise ServerError("There is no datastore here: set API_HOST, API_PORT and HTTP_X_APPENGINE_API_TICKET.")
    try:
        removed = sweep(max_seconds=arguments.max_seconds)
    except (datastore_errors.Error, apiproxy_errors.Error) as error:
        raise ServerError(f"The datastore could not be swept: {error or type(error).__name__}.") from error
    print(f"{removed} expired entities removed.")
    return 0
