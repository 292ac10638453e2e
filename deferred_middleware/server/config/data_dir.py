"""The data directory: one server's at a time, and closed to other users.

It is opened before anything else of the server is even imported, so that a second server on it ends at once:

    with DataDirectory(Path(".deferred")) as data_dir:
        ...                     # data_dir.path, and data_dir.notes for the person at the terminal

Whoever could read it could read every task's arguments, and the key that tasks are signed with.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import stat
from pathlib import Path

from deferred_middleware.errors import ServerError

LOCK_FILE = "server.lock"
"""Name of the file that the running server has locked; it says who that is."""

_MODE = 0o700
_LOCK_BYTES = 1024
# A directory that has one of these has been a server's before. Any other that isn't empty holds somebody's files, and
# its mode is theirs to choose.
_OWN_FILES = (LOCK_FILE, "tasks.sqlite", "secret.key")


class DataDirectory:
    """The directory ``path``, made if it isn't there, this process's from its making until :meth:`close`.

    ``notes`` are sentences about what had to be changed. Raises :class:`ServerError` when another server has it, or
    when it can't be made, written to, or closed to others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._prepare()
        self._lock = self._take_lock()

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another server have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _prepare(self) -> None:
        path = self.path
        try:
            if not path.exists():
                path.mkdir(mode=_MODE, parents=True)
                # What is kept here is nobody's source code.
                (path / ".gitignore").write_text("*\n")
        except OSError as error:
            raise ServerError(f"--data-dir {path} can't be made: {error.strerror}; choose another.") from error
        if not path.is_dir():
            raise ServerError(f"--data-dir {path} is not a directory; choose another.")
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise ServerError(f"--data-dir {path} can't be written to; choose another, or change its permissions.")
        self._close_to_others()

    def _close_to_others(self) -> None:
        path = self.path
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.geteuid():
            raise ServerError(
                f"--data-dir {path} belongs to another user (ID {found.st_uid}), who could read all tasks; "
                "choose another."
            )
        if not mode & 0o077:
            return
        names = os.listdir(path)
        if names and not any(name in names for name in _OWN_FILES):
            raise ServerError(
                f"--data-dir {path} is open to other users (mode {mode:04o}) and holds other files; "
                f"choose a directory of its own, or say chmod 700 {path}."
            )
        path.chmod(_MODE)
        self.notes.append(f"{path} was open to other users (mode {mode:04o}); it is closed to them now (0700).")

    def _take_lock(self) -> int:
        path = self.path / LOCK_FILE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ServerError(f"{path} can't be opened: {error.strerror}; choose another --data-dir.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(os.pread(descriptor, _LOCK_BYTES, 0))
            os.close(descriptor)
            raise ServerError(
                f"Another server ({holder}) is using {self.path.absolute()}: stop it, or choose another --data-dir."
            ) from error
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)
        since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "since": since}).encode() + b"\n", 0)
        return descriptor


def _holder(content: bytes) -> str:
    try:
        told = json.loads(content)
        return f"process {int(told['pid'])}, since {told['since']}"
    except (ValueError, TypeError, KeyError):
        # It has the lock already, and is about to write who it is.
        return "process unknown, started just now"
