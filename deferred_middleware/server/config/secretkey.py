"""The key with which tasks are signed on this machine: made once, kept in the data directory.

The platform's front end keeps strangers from the task queue's URLs; here a signature does. The app processes get the
key as ``DEFERRED_SECRET_KEYS``, unless the environment has one of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from deferred_middleware.errors import ServerError

SECRET_KEYS_VARIABLE = "DEFERRED_SECRET_KEYS"
"""The setting that tells an app which keys there are."""
SECRET_KEY_FILE = "secret.key"
"""Name of the key's file in the data directory."""

_MODE = 0o600
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
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "w") as stream:
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
                os.fchmod(stream.fileno(), _MODE)
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
