"""Who may see the pages: the user who started the server, and whoever shows the token of this run.

A task's arguments may be secrets, and other users of the machine can connect to loopback too. On Linux, the kernel says
which user's process has opened a connection of this machine (``/proc/net/tcp``), so the user of the server needs no
password. Everybody else, such as a person on another machine or behind a container's port, signs in with the token.

A cookie keeps them signed in until the server ends. Browsers send a host's cookies to all its ports, so another server
on the same host, which such a person visits, can read it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT_USER = 0
_CONNECTIONS = Path("/proc/net/tcp")
# Columns of the file: https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html
_LOCAL, _REMOTE, _USER = 1, 2, 7


class Visitors:
    """Tells whether a request may see the pages. ``token`` is that of this run."""

    def __init__(self, token: str, *, connections: Path = _CONNECTIONS, user: int | None = None) -> None:
        self._token = token
        self._connections = connections
        self._users = {ROOT_USER, os.getuid() if user is None else user}
        self.session: str = hmac.new(token.encode(), b"session of a visitor", hashlib.sha256).hexdigest()

    @property
    def knows_users(self) -> bool:
        """Whether this machine says whose connection it is, so that its user needs no token."""
        return self._connections.exists()

    def may_see(self, environ: Mapping[str, Any], session: str) -> bool:
        """Tell whether the request is from the server's user, or has the ``session`` of somebody who signed in."""
        if hmac.compare_digest(session.encode("utf-8", "replace"), self.session.encode()):
            return True
        return self._user_of(environ) in self._users

    def is_token(self, shown: str) -> bool:
        """Tell whether somebody who signs in shows the right token."""
        return hmac.compare_digest(shown.strip().encode("utf-8", "replace"), self._token.encode())

    def _user_of(self, environ: Mapping[str, Any]) -> int | None:
        """Return the user whose process has opened the connection; None if it is not of this machine."""
        try:
            address = ipaddress.IPv4Address(environ.get("REMOTE_ADDR", ""))
            port = int(environ.get("REMOTE_PORT", ""))
            if not address.is_loopback:
                return None
            text = self._connections.read_text("ascii")
        except (ValueError, OSError):
            return None
        # The file has the address as a number in the byte order of the machine.
        opened_by = f"{int.from_bytes(address.packed, sys.byteorder):08X}:{port:04X}"
        served_at = f":{int(environ.get('SERVER_PORT') or 0):04X}"
        for line in text.splitlines():
            if opened_by in line:
                columns = line.split()
                if columns[_LOCAL] == opened_by and columns[_REMOTE].endswith(served_at):
                    return int(columns[_USER])
        return None
