"""Services whose app runs elsewhere, such as under gunicorn: ``--service NAME=http://127.0.0.1:9000``.

Such a service has no process of the local server's, and gets none of its secrets but those that it needs to use it: the
address of the APIs and a ticket for them, and the keys that tasks are signed with. It learns them from its environment,
which a person sets; so they stay the same across restarts of the server, as long as its ports do:

    app = external_app("background=http://127.0.0.1:9000")
    write_environ_file(environ_file(data_dir, app.service), environ)     # . .deferred/background.env
"""

from __future__ import annotations

import ipaddress
import shlex
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin.server_file import write_whole

_HTTP_PORT = 80


@dataclass(frozen=True, kw_only=True)
class ExternalApp:
    """A service, and where it answers; ``host`` is as in a URL."""

    service: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.host}:{self.port}"

    @property
    def is_remote(self) -> bool:
        """Whether it is, or may be, on another machine."""
        return not _is_loopback(self.host)


def external_app(option: str) -> ExternalApp:
    """Return the service that ``NAME=URL`` is. Raises :class:`ServerError` for a URL that can't be delivered to."""
    name, _, given = option.partition("=")
    try:
        url = urllib.parse.urlsplit(given)
        host, port = url.hostname or "", url.port or _HTTP_PORT
    except ValueError as error:
        raise ServerError(f"--service {option}: {given} is no URL ({error}).") from error
    if url.scheme != "http" or not host:
        raise ServerError(f"--service {option}: it takes a URL such as http://127.0.0.1:9000; got {given!r}.")
    if url.path not in ("", "/") or url.query or url.fragment or url.username is not None:
        raise ServerError(
            f"--service {option}: tasks go to paths of their own, so the URL ends with its port; "
            f"give http://{url.netloc.rpartition('@')[2]}."
        )
    return ExternalApp(service=name, host=f"[{host}]" if ":" in host else host, port=port)


def environ_file(data_dir: Path, service: str) -> Path:
    """Return the file that has what the app of a service needs in its environment."""
    return data_dir / f"{service}.env"


def exports(environ: Mapping[str, str]) -> str:
    """Return the line of shell that sets the variables."""
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in environ.items())


def write_environ_file(path: Path, environ: Mapping[str, str]) -> None:
    """Write the file that a shell sets the variables from, readable by nobody else."""
    try:
        write_whole(path, f"{exports(environ)}\n", mode=0o600)
    except OSError as error:
        raise ServerError(f"{path} can't be written: {error.strerror}.") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
