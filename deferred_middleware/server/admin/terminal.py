"""What the local server prints for the person at the terminal, on standard output."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deferred_middleware.errors.text import without_controls
from deferred_middleware.server.admin.server_file import RunningServer
from deferred_middleware.server.config.served import ServeConfig
from deferred_middleware.wire.protocol import is_loopback

logger: Final = logging.getLogger(__name__)


def print_line(text: str) -> None:
    """Print a line. If standard output is closed, the line is dropped, so that the server can still stop cleanly."""
    print_escaped(without_controls(text))


def print_escaped(text: str) -> None:
    """Print what has no control characters but the caller's own, such as colours."""
    try:
        print(text, flush=True)  # noqa: T201 - the one place that prints
    except OSError as error:
        logger.debug("Standard output can't be written to: %s", error)
        # Python would try to write the rest again at exit, and fail again.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _print_table(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print rows of a name, an address and a description."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, address, description in rows:
        print_line(f"{name:<{widths[0]}}  {address:<{widths[1]}}  {description}")


def _print_exposure(host: str, option: str, what: str) -> None:
    """Print a warning if other machines can reach ``what`` because of the address given as ``option``."""
    address = socket.gethostbyname(host)
    if not is_loopback(address):
        where = "any address of this machine" if address == "0.0.0.0" else address
        print_line(f"{option} {host}: whoever reaches {where} over the network reaches {what}. Nothing is encrypted.")


def print_services(config: ServeConfig, running: RunningServer) -> None:
    """Print the services, their addresses, and who can reach them."""
    served = config.served
    rows = [(app.service, running.services[app.service], app.description) for app in served.apps]
    rows += [(app.service, running.services[app.service], "runs elsewhere") for app in served.external]
    cloud_tasks = ("(cloud tasks)", running.cloud_tasks, "answers the Cloud Tasks API")
    if config.emulate:
        _print_table([cloud_tasks, *rows, ("(admin)", running.admin, "answers commands")])
        _print_exposure(config.host, "--host", "the Cloud Tasks API, which asks for no credentials")
        _print_exposure(config.admin_host, "--admin-host", "the admin server")
    else:
        _print_table([*rows, ("(admin)", running.admin, "answers the App Engine APIs"), cloud_tasks])
        _print_exposure(config.host, "--host", "every service, and with it whatever the app lets anybody do")
        _print_exposure(
            config.admin_host,
            "--admin-host",
            "the App Engine APIs (to who has an app's ticket), the task queue's, and the Cloud Tasks API",
        )
    for app in served.external:
        if app.is_remote:
            print_line(
                f"Tasks of service {app.service!r} go to {app.url} unencrypted: others on the network can read them."
            )
    if served.external and (not config.admin_port or (served.apps and not config.port)):
        print_line(
            "With port 0, the ports change at each start, and apps that run elsewhere need the new ones; "
            "use fixed ports."
        )


def print_environ(service: str, exports: str, file: Path) -> None:
    """Print how to set the environment of an app that runs elsewhere.

    The command with the values has secrets, so it is printed only to a terminal, not into a log. The file always has
    it.
    """
    print_line(f"To set the environment for the app of service {service!r}, run:  . {shlex.quote(str(file))}")
    if sys.stdout.isatty():
        print_line(exports)
