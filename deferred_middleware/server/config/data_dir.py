"""The data directory, and the key in it that signs this machine's tasks.

The data directory belongs to one server at a time and is closed to other users: whoever can read it can read the
arguments of every task and the signing key. The server opens it before it imports the rest of its code, so that a
second server on the same directory fails at once:

    with DataDirectory(Path(".deferred")) as data_dir:
        ...                     # data_dir.path, and data_dir.notes for the person at the terminal

On App Engine, the platform's front end keeps strangers away from the URLs of tasks. On this machine, a signature does.
The server passes its key to the app processes as ``DEFERRED_SECRET_KEYS``, unless the environment already has keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shlex
import stat
from pathlib import Path

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import FileLock, replacing

LOCK_FILE = "server.lock"
"""Name of the file that the running server has locked. It names that server's process."""

_DIRECTORY_MODE = 0o700
# A directory with one of these files was a server's data directory before. The server does not change the mode of any
# other directory that has files in it.
_OWN_FILES = (LOCK_FILE, "tasks.sqlite", "secret.key")


class DataDirectory:
    """The directory ``path``, which belongs to this process until :meth:`close`; created if it does not exist.

    ``notes`` are sentences about what had to be changed. Raises :class:`ServerError` if another server has the
    directory, or if it can't be created, written to, or closed to other users.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self._prepare()
        self._lock = FileLock(path / LOCK_FILE)

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another server use the directory."""
        self._lock.release()

    def _prepare(self) -> None:
        path = self.path
        try:
            if not path.exists():
                path.mkdir(mode=_DIRECTORY_MODE, parents=True)
                # Keep tasks and keys out of version control.
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
                f"choose another directory, or run chmod 700 {path}."
            )
        path.chmod(_DIRECTORY_MODE)
        self.notes.append(f"{path} was open to other users (mode {mode:04o}); it is closed to them now (0700).")


PROJECT_FILE = "project"
"""Name of the file in the data directory that says which project its tasks and entities belong to."""

_PROJECT_MODE = 0o600
_MAX_PROJECT_FILE_BYTES = 1024


def check_project(directory: Path, project: str) -> None:
    """Note that the data in ``directory`` is that of ``project``, unless the project is noted already.

    The project is a part of every key of an entity and of every signature. Under another one the datastore would look
    empty, and all waiting calls would be refused. Raises :class:`ServerError` if the directory has another project's
    data, or if the file can't be used. The caller has locked the directory.
    """
    path = directory / PROJECT_FILE
    try:
        if not os.path.lexists(path):
            with replacing(path, mode=_PROJECT_MODE) as stream:
                stream.write(f"{project}\n".encode())
            return
        # O_NONBLOCK: if someone put a pipe there, opening it must not block.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            noted = stream.read(_MAX_PROJECT_FILE_BYTES).decode("utf-8", "backslashreplace").strip()
    except OSError as error:
        raise ServerError(f"{path} can't be used: {error.strerror}.") from error
    if noted != project:
        raise ServerError(
            f"{directory} has the tasks and entities of project {noted!r}, and this is project {project!r}; set "
            f"GOOGLE_CLOUD_PROJECT={shlex.quote(noted)}, or choose another --data-dir."
        )


SECRET_KEYS_VARIABLE = "DEFERRED_SECRET_KEYS"
"""The setting that gives an app its keys."""
SECRET_KEY_FILE = "secret.key"
"""Name of the key's file in the data directory."""

_KEY_MODE = 0o600
_KEY_BYTES = 48
_MAX_KEY_FILE_BYTES = 4096
# DEFERRED_SECRET_KEYS separates keys by commas, so a key has none.
_KEY = re.compile(r"[!-+\--~]{32,}")


class SigningKeyFile:
    """The key file in ``directory``, created with a random key if it does not exist.

    ``text`` is the key as ``DEFERRED_SECRET_KEYS`` takes it. ``notes`` are sentences about what had to be changed.
    Raises :class:`ServerError` if the file can't be used.
    """

    def __init__(self, directory: Path) -> None:
        self.notes: list[str] = []
        self._path = directory / SECRET_KEY_FILE
        try:
            # The caller has locked the directory, so no other server creates the file at the same time.
            if not os.path.lexists(self._path):
                with replacing(self._path, mode=_KEY_MODE) as stream:
                    stream.write(f"{secrets.token_urlsafe(_KEY_BYTES)}\n".encode())
            self.text: str = self._read()
        except OSError as error:
            raise ServerError(f"{self._path} can't be used: {error.strerror}.") from error

    def derive(self, purpose: str) -> str:
        """Return a secret that depends on the key and on ``purpose``, and does not reveal the key."""
        return hmac.new(self.text.encode(), purpose.encode(), hashlib.sha256).hexdigest()

    def _read(self) -> str:
        # O_NONBLOCK: if someone put a pipe there, opening it must not block.
        with open(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise ServerError(f"{self._path} is not a file of yours; move it away to have a new key made.")
            if stat.S_IMODE(found.st_mode) & 0o177:
                os.fchmod(stream.fileno(), _KEY_MODE)
                self.notes.append(
                    f"{self._path} was open to other users (mode {stat.S_IMODE(found.st_mode):04o}); it is closed to "
                    "them now (0600). If another user may have read it, stop the server, remove the file, and start "
                    "the server again with a new key."
                )
            text = stream.read(_MAX_KEY_FILE_BYTES).decode("ascii", "replace").strip()
        if not _KEY.fullmatch(text):
            raise ServerError(
                f"{self._path} holds no key (one line of at least 32 characters, without spaces and commas). "
                "Put a copy of the key back, or remove the file to have a new key made; waiting tasks are signed with "
                "the old key and will be refused."
            )
        return text
