"""The data directory: one server's at a time, and closed to other users.

It is opened before anything else of the server is even imported, so that a second server on it ends at once:

    with DataDirectory(Path(".deferred")) as data_dir:
        ...                     # data_dir.path, and data_dir.notes for the person at the terminal

Whoever could read it could read every task's arguments, and the key that tasks are signed with.

The key with which tasks are signed on this machine: made once, kept in the data directory.

The platform's front end keeps strangers from the task queue's URLs; here a signature does. The app processes get the
key as ``DEFERRED_SECRET_KEYS``, unless the environment has one of its own.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
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


SECRET_KEYS_VARIABLE = "DEFERRED_SECRET_KEYS"
"""The setting that tells an app which keys there are."""
SECRET_KEY_FILE = "secret.key"
"""Name of the key's file in the data directory."""

_KEY_MODE = 0o600
_KEY_BYTES = 48
_MAX_FILE_BYTES = 4096
# A comma would make two keys of it, as the variable is written.
_KEY = re.compile(r"[!-+\--~]{32,}")


class SecretKey:
    """The key in ``directory``, made if there is none; ``text`` is what the variable takes.

    ``notes`` are sentences about what had to be changed. Raises :class:`ServerError` for a file that can't be used.
    """

    def __init__(self, directory: Path) -> None:
        self.notes: list[str] = []
        self._path = directory / SECRET_KEY_FILE
        try:
            # With the directory locked no other server makes one at the same time.
            if not os.path.lexists(self._path):
                self._make()
            self.text = self._read()
        except OSError as error:
            raise ServerError(f"{self._path} can't be used: {error.strerror}.") from error

    def derive(self, purpose: str) -> str:
        """Return a secret that depends on the key and on ``purpose``, and tells nothing about the key."""
        return hmac.new(self.text.encode(), purpose.encode(), hashlib.sha256).hexdigest()

    def _make(self) -> None:
        temporary = self._path.with_name(f"{SECRET_KEY_FILE}.new")
        temporary.unlink(missing_ok=True)  # of a server that died in the middle of this
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _KEY_MODE), "w") as stream:
            stream.write(secrets.token_urlsafe(_KEY_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _read(self) -> str:
        # Not blocking, should it be a pipe that somebody put there.
        with open(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise ServerError(f"{self._path} is not a file of yours; move it away to have a new key made.")
            if stat.S_IMODE(found.st_mode) & 0o177:
                os.fchmod(stream.fileno(), _KEY_MODE)
                self.notes.append(
                    f"{self._path} was open to other users (mode {stat.S_IMODE(found.st_mode):04o}); it is closed to "
                    "them now (0600). If one may have read it, stop, remove it, and start again with a new key."
                )
            text = stream.read(_MAX_FILE_BYTES).decode("ascii", "replace").strip()
        if not _KEY.fullmatch(text):
            raise ServerError(
                f"{self._path} holds no key (one line of at least 32 characters, without spaces and commas); "
                "put a copy of it back, or remove it to have a new one made, which waiting tasks are not signed with."
            )
        return text
