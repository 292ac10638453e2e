"""The files with the addresses of a running server. They exist only while the server answers.

``--ready-file`` is for the user's own scripts. ``server.json`` in the data directory is for the other commands. It has
the token of this run, so only the user who started the server can read it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from deferred_middleware import __version__
from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import replacing

SERVER_FILE = "server.json"
"""Name of the file in the data directory."""

DEFAULT_DATA_DIR = Path(".deferred")
"""Where commands look for a server, from their working directory."""

_MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """The content of ``server.json``.

    ``admin`` and ``services`` are URLs, ``cloud_tasks`` is ``host:port``, and ``since`` is the start time in ISO 8601.
    """

    pid: int
    since: str
    admin: str
    token: str
    services: Mapping[str, str]
    cloud_tasks: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


class AddressFile:
    """A file that :meth:`write` writes atomically and the end of the context removes.

    ``option`` is the file's name in errors. If ``path`` is None, the methods do nothing.
    """

    def __init__(self, path: Path | None, *, option: str, mode: int = 0o666) -> None:
        self._path = path
        self._option = option
        self._mode = mode
        # The file that this process wrote. If the directory is replaced meanwhile, the path has another server's file.
        self._written: tuple[int, int] | None = None

    def __enter__(self) -> AddressFile:
        if self._path is not None:
            if not self._path.parent.is_dir():
                raise ServerError(
                    f"{self._option} {self._path}: there is no directory {self._path.parent}; make it first."
                )
            # A killed server may have left one behind, with wrong addresses.
            self._unlink(self._path)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.remove()

    def write(self, content: Mapping[str, object]) -> None:
        """Replace the file by ``content`` as JSON."""
        if self._path is None:
            return
        try:
            with replacing(self._path, mode=self._mode, durable=False) as stream:
                stream.write(json.dumps(content).encode() + b"\n")
                found = os.fstat(stream.fileno())
                self._written = found.st_dev, found.st_ino
        except OSError as error:
            raise ServerError(f"{self._option} {self._path} can't be written: {error.strerror}.") from error

    def remove(self) -> None:
        """Remove the file that :meth:`write` wrote, if it is still there."""
        if self._path is None or self._written is None:
            return
        try:
            found = self._path.stat()
        except OSError:
            return
        if (found.st_dev, found.st_ino) == self._written:
            self._unlink(self._path)

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ServerError(f"{self._option} {path} can't be written: {error.strerror}.") from error


def server_file(data_dir: Path) -> AddressFile:
    """Return the file ``server.json`` of a data directory; write :func:`content_of` a server into it."""
    return AddressFile(data_dir / SERVER_FILE, option="--data-dir", mode=0o600)


def content_of(server: RunningServer) -> dict[str, object]:
    """Return a server as the JSON that :func:`read_server_file` reads."""
    return asdict(server)


def data_dir_option(data_dir: Path) -> str:
    """Return what a command needs to find the server of a data directory; nothing for the usual one."""
    is_usual = data_dir.absolute() == DEFAULT_DATA_DIR.absolute()
    return "" if is_usual else f" --data-dir {shlex.quote(str(data_dir))}"


def about(server: RunningServer, data_dir: Path) -> dict[str, object]:
    """Return the description of a server for the JSON API, which is without secrets."""
    content = content_of(server)
    del content["token"], content["environ"]
    return {"version": __version__, **content, "data_dir": str(data_dir.absolute())}


def read_server_file(path: Path) -> RunningServer | None:
    """Return the content of the file; None if there is no file. Raises :class:`ServerError` if it can't be read."""
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(_MAX_FILE_BYTES))
        return RunningServer(
            pid=int(content["pid"]),
            since=str(content["since"]),
            admin=str(content["admin"]),
            token=str(content["token"]),
            services=dict(content["services"]),
            cloud_tasks=str(content.get("cloud_tasks", "")),
            environ=dict(content.get("environ", {})),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ServerError(
            f"{path} is not a file of this version's server ({error!r}); did another version write it?"
        ) from error
