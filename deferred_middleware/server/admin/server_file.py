"""The files that say where a running server answers; they exist only while it does.

``--ready-file`` is for the person's own scripts. ``server.json`` in the data directory is for the other commands, and
for whoever may use them: it has the token of this run, so nobody else may read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from deferred_middleware import __version__
from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import replacing

SERVER_FILE = "server.json"
"""Name of the file in the data directory."""

_MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """What ``server.json`` says: ``admin`` and ``services`` are URLs, ``since`` is when it started, in ISO 8601."""

    pid: int
    since: str
    admin: str
    token: str
    services: Mapping[str, str]


class AddressFile:
    """A file that is written whole or not at all, and removed at the end of the context; None for none.

    ``option`` names it in errors.
    """

    def __init__(self, path: Path | None, *, option: str, mode: int = 0o666) -> None:
        self._path = path
        self._option = option
        self._mode = mode

    def __enter__(self) -> AddressFile:
        if self._path is not None:
            if not self._path.parent.is_dir():
                raise ServerError(
                    f"{self._option} {self._path}: there is no directory {self._path.parent}; make it first."
                )
            # One that a killed server left behind would be believed.
            self.remove()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.remove()

    def write(self, content: Mapping[str, object]) -> None:
        """Write the file as JSON."""
        if self._path is None:
            return
        try:
            with replacing(self._path, mode=self._mode, durable=False) as stream:
                stream.write(json.dumps(content).encode() + b"\n")
        except OSError as error:
            raise ServerError(f"{self._option} {self._path} can't be written: {error.strerror}.") from error

    def remove(self) -> None:
        """Remove the file, if it is there."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise ServerError(f"{self._option} {self._path} can't be written: {error.strerror}.") from error


def server_file(data_dir: Path) -> AddressFile:
    """Return the file ``server.json`` of a data directory; write :func:`dataclasses.asdict` of a RunningServer."""
    return AddressFile(data_dir / SERVER_FILE, option="--data-dir", mode=0o600)


def content_of(server: RunningServer) -> dict[str, object]:
    """Return what :func:`read_server_file` reads."""
    return asdict(server)


def about(server: RunningServer, data_dir: Path) -> dict[str, object]:
    """Return what may be told of a server to who has its token."""
    told = content_of(server)
    del told["token"]
    return {"version": __version__, **told, "data_dir": str(data_dir.absolute())}


def read_server_file(path: Path) -> RunningServer | None:
    """Return what the file says, None when there is none. Raises :class:`ServerError` for one that can't be read."""
    try:
        with path.open("rb") as stream:
            told = json.loads(stream.read(_MAX_FILE_BYTES))
        return RunningServer(
            pid=int(told["pid"]),
            since=str(told["since"]),
            admin=str(told["admin"]),
            token=str(told["token"]),
            services=dict(told["services"]),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ServerError(f"{path} is not what a server writes: {error!r}; is it another version's?") from error
