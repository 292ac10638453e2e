"""What the local server tells the person at the terminal, on standard output."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence

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
