"""Space that is kept for the day the disk is full.

On a full disk SQLite can't even delete, because a change is written to its log first. So a file beside the store takes
space that nobody needs. When the disk is full its space is given up: what is there can be finished and deleted then,
and no more tasks are taken until the file has its space again.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

from deferred_middleware.errors import ServerError

_log = logging.getLogger(__name__)

RESERVE_BYTES = 8 * 1024 * 1024
"""Enough for the log between two of its foldings into the database, which is after 4 MB, and as much again."""

_TRY_AGAIN_SECONDS = 1.0


class StoreFullError(ServerError):
    """No task can be taken, because the disk is full."""


class DiskReserve:
    """A file at ``path`` of which only the size matters; made at once if there is space for it."""

    def __init__(self, path: Path, *, size: int = RESERVE_BYTES) -> None:
        self._path = path
        self._size = size
        self._lock = threading.Lock()
        self._spent = False
        self._next_try = 0.0
        if not self._fill():
            self._spent = True
            _log.warning("The disk of %s is full: no tasks are taken until there is space again.", path.parent)

    @property
    def full_error(self) -> StoreFullError:
        """What to tell whoever wants a task to be taken."""
        return StoreFullError(
            f"The disk is full, so that no task can be taken: make space where {self._path.parent} is. "
            "Tasks that are there already are run meanwhile."
        )

    def spend(self) -> bool:
        """Give the space up; return whether there was any left."""
        with self._lock:
            if self._spent:
                return False
            self._spent = True
            os.truncate(self._path, 0)
        _log.error(
            "The disk of %s is full: what is there is run with what was kept for that, and no tasks are taken until "
            "there is space again.",
            self._path.parent,
        )
        return True

    def is_whole(self) -> bool:
        """Return whether the space is there, or can be had again; if not, so soon it isn't tried anew."""
        with self._lock:
            if not self._spent:
                return True
            if time.monotonic() < self._next_try:
                return False
            self._next_try = time.monotonic() + _TRY_AGAIN_SECONDS
            if not self._fill():
                return False
            self._spent = False
        _log.warning("There is space again where %s is: tasks are taken.", self._path.parent)
        return True

    def _fill(self) -> bool:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, self._size)
            else:  # macOS
                os.pwrite(descriptor, bytes(self._size), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            # It may have had a part of it.
            os.ftruncate(descriptor, 0)
            return False
        finally:
            os.close(descriptor)
        return True


def is_disk_full(error: BaseException) -> bool:
    """Tell whether SQLite failed because there is no space."""
    # Its code is told by Python 3.11 and later only.
    return isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error)
