"""Files that a sudden end can't damage, and locks that end with their process.

with replacing(path, mode=0o600) as stream:
stream.write(data)              # path has its old content until the block ends, then all of the new one

lock = FileLock(directory / "server.lock")
lock.release()
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deferred_middleware.errors import ServerError

_LOCK_MODE = 0o600
_MAX_LOCK_FILE_BYTES = 1024


@contextlib.contextmanager
def replacing(path: Path, *, mode: int, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a stream whose content replaces the file ``path`` at the end of the block.

    A reader of ``path`` finds the old file or the whole new one. If the block raises, the old file stays. ``durable``
    also protects against a power cut: the new file is on disk when the block ends. Raises :class:`OSError`.
    """
    temporary = path.with_name(f"{path.name}.new")
    # A process that was killed may have left one behind.
    temporary.unlink(missing_ok=True)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Write a directory's entries to disk. Without it, a new file's name may not survive a power cut."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class FileGoneError(ServerError):
    """An open file is no longer the one at its path."""


class OpenFiles:
    """The files that were at ``paths`` when this object was made, except those that did not exist."""

    def __init__(self, *paths: Path) -> None:
        self._identities = {path: _identity(path) for path in paths if path.exists()}

    def check(self) -> None:
        """Raise :class:`FileGoneError` if one of them was deleted, moved or replaced. What is written then is lost."""
        for path, identity in self._identities.items():
            try:
                found = _identity(path)
            except OSError as error:
                raise FileGoneError(f"{path} is gone: it was deleted or moved while the server used it") from error
            if found != identity:
                raise FileGoneError(f"{path} is another file than the one that the server has opened: it was replaced")


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


class FileLock:
    """Exclusive use of the directory that the file ``path`` is in, from construction until :meth:`release`.

    The operating system releases the lock when the process ends. The file stays; it says which process has the lock.
    Raises :class:`ServerError` at once if another process has it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _LOCK_MODE)
        except OSError as error:
            raise ServerError(f"{path} can't be opened: {error.strerror}; choose another --data-dir.") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(os.pread(self._descriptor, _MAX_LOCK_FILE_BYTES, 0))
            os.close(self._descriptor)
            raise ServerError(
                f"Another server ({holder}) is using {path.parent.absolute()}: stop it, or choose another --data-dir."
            ) from error
        os.fchmod(self._descriptor, _LOCK_MODE)
        os.ftruncate(self._descriptor, 0)
        since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "since": since}).encode() + b"\n", 0)

    def release(self) -> None:
        """Let another process take the lock. Further calls do nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _holder(content: bytes) -> str:
    try:
        owner = json.loads(content)
        return f"process {int(owner['pid'])}, since {owner['since']}"
    except (ValueError, TypeError, KeyError):
        # The other process has the lock, but has not written its entry yet.
        return "process unknown, started just now"
