"""What the local server tells the person at the terminal, on standard output."""

from __future__ import annotations

import ipaddress
import logging
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from deferred_middleware.server.admin.server_file import RunningServer
from deferred_middleware.server.config.served import ServeConfig

_logger = logging.getLogger(__name__)


def say(text: str) -> None:
    """Tell the person at the terminal, if there still is one: a closed terminal must not upset an orderly stop."""
    try:
        print(text, flush=True)  # noqa: T201 - this is the one place that announces
    except OSError as error:
        _logger.debug("Standard output can't be written to: %s", error)
        # What could not be written would be tried again at exit, and fail again.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def say_table(rows: Sequence[tuple[str, str, str]]) -> None:
    """Tell rows of a name, where it answers, and what it is."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, where, what in rows:
        say(f"{name:<{widths[0]}}  {where:<{widths[1]}}  {what}")


def say_exposure(host: str, option: str, what: str) -> None:
    """Say what it means that other machines can reach ``what``, if they can, by the address given as ``option``."""
    address = socket.gethostbyname(host)
    if not ipaddress.ip_address(address).is_loopback:
        where = "any address of this machine" if address == "0.0.0.0" else address
        say(f"{option} {host}: whoever reaches {where} over the network reaches {what}. Nothing here is encrypted.")


def announce(config: ServeConfig, running: RunningServer) -> None:
    """Tell what is served where, and who can reach it."""
    served = config.served
    rows = [(app.service, running.services[app.service], app.description) for app in served.apps]
    rows += [(app.service, running.services[app.service], "runs elsewhere") for app in served.external]
    say_table([*rows, ("(admin)", running.admin, "answers the App Engine APIs")])
    say_exposure(config.host, "--host", "every service, and with it whatever the app lets anybody do")
    say_exposure(
        config.admin_host, "--admin-host", "the App Engine APIs (to who has an app's ticket) and the task queue's"
    )
    for app in served.external:
        if app.is_remote:
            say(f"Tasks of service {app.service!r} go to {app.url} unencrypted: whoever is on the way can read them.")
    if served.external and (not config.admin_port or (served.apps and not config.port)):
        say("With port 0 the ports change at each start, and what runs elsewhere has to be told; give fixed ones.")


def say_environ(service: str, exports: str, file: Path) -> None:
    """Tell what an app that runs elsewhere needs in its environment.

    The line to paste has secrets in it. It is for who sits at the terminal, not for a log; the file has it in any case.
    """
    say(f"What the app of service {service!r} needs in its environment is set by:  . {shlex.quote(str(file))}")
    if sys.stdout.isatty():
        say(exports)
