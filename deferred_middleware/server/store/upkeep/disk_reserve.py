"""Disk space that is kept in reserve for a full disk.

On a full disk, SQLite can't even delete rows, because it writes each change to its log first. Therefore a file beside
the database occupies some space. When the disk is full, the server frees that space: it can then finish and delete the
tasks that it has, but it accepts no new tasks until the reserve file has its space again.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deferred_middleware.errors import ServerError

logger: Final = logging.getLogger(__name__)

RESERVE_BYTES = 8 * 1024 * 1024
"""SQLite copies its log into the database when the log has 4 MB; this is twice as much."""

_RETRY_SECONDS = 1.0


class StoreFullError(ServerError):
    """The store accepts no tasks, because the disk is full."""


class DiskReserve:
    """The file ``path`` of ``size`` bytes, allocated at once if the disk has the space. ``elapsed`` counts seconds."""

    def __init__(self, path: Path, *, size: int = RESERVE_BYTES, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._size = size
        self._elapsed = elapsed
        # Guards both fields below. The writer thread frees the space; any thread that adds tasks allocates it again.
        self._lock = threading.Lock()
        self._is_allocated = self._allocate()
        self._next_try = 0.0
        if not self._is_allocated:
            logger.warning("The disk of %s is full: no tasks are accepted until there is space again.", path.parent)

    @property
    def is_free(self) -> bool:
        """Whether the space was freed because the disk is full. It may have space again by now."""
        return not self._is_allocated

    @property
    def full_error(self) -> StoreFullError:
        """A new error for a caller that wants to add tasks."""
        return StoreFullError(
            f"The disk is full, so that no task can be taken: make space where {self._path.parent} is. "
            "The tasks that are already stored are still run."
        )

    def free(self) -> bool:
        """Free the space; return whether it was allocated."""
        with self._lock:
            if not self._is_allocated:
                return False
            self._is_allocated = False
            os.truncate(self._path, 0)
        logger.error(
            "The disk of %s is full: stored tasks are run with the space that was kept in reserve, and no tasks are "
            "accepted until there is space again.",
            self._path.parent,
        )
        return True

    def ensure_allocated(self) -> bool:
        """Return whether the space is allocated; if it was freed, first try to allocate it, at most once a second."""
        with self._lock:
            if self._is_allocated:
                return True
            if self._elapsed() < self._next_try:
                return False
            self._next_try = self._elapsed() + _RETRY_SECONDS
            self._is_allocated = self._allocate()
            if not self._is_allocated:
                return False
        logger.warning("The disk of %s has space again: tasks are accepted.", self._path.parent)
        return True

    def _allocate(self) -> bool:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, self._size)
            else:  # macOS
                os.pwrite(descriptor, bytes(self._size), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            # A part of the space may have been allocated.
            os.ftruncate(descriptor, 0)
            return False
        finally:
            os.close(descriptor)
        return True


def is_disk_full(error: BaseException) -> bool:
    """Return whether SQLite failed because the disk is full."""
    # Only Python 3.11 and later give the error's code.
    return isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error)
