"""A record of the last acknowledged commit, in a file of its own beside the database.

Each durable commit writes a *stamp* into the database, a time that only grows. After the commit, and before anybody
hears of it, the stamp is also written to this file. If the database has an older stamp than the file when it is opened,
then acknowledged commits are missing.

The file isn't synced, so that a commit costs no second sync. ``kill -9`` doesn't undo the write. A power cut may, and
then the file has an older stamp, which is still one that the database must have. A record that a power cut has torn is
not valid; there are two of them, which are written in turn.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deferred_middleware.server.store.upkeep.steady_clock import elapsed_seconds

logger: Final = logging.getLogger(__name__)

_MAGIC = b"commit1\n"
# The stamp, the time of the wall clock, the number of stored tasks. Then follows the checksum.
_FIELDS = struct.Struct("<8sQqQ")
_CHECKSUM = struct.Struct("<I")
# Two sectors of a disk, so that a power cut damages at most one record.
_SLOT_BYTES = 512
_MODE = 0o600

_READ_STAMP = "SELECT number FROM counts WHERE queue = '' AND state = 'committed'"
_WRITE_STAMP = """
    INSERT INTO counts VALUES ('', 'committed', ?) ON CONFLICT (queue, state) DO UPDATE SET number = excluded.number"""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The last commit that was recorded: its stamp, the wall clock's time, and the number of stored tasks."""

    stamp_usec: int
    wall_usec: int
    tasks: int


def read_stamp(connection: sqlite3.Connection) -> int:
    """Return the stamp of the last durable commit that the database has, 0 if there is none."""
    try:
        found = connection.execute(_READ_STAMP).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return 0  # the file is empty, or an earlier version wrote it
    return int(found[0]) if found else 0


def read_record(path: Path) -> Recorded | None:
    """Return the newest valid record in the file ``path``, None if there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    found = []
    for start in (0, _SLOT_BYTES):
        fields = content[start : start + _FIELDS.size]
        checksum = content[start + _FIELDS.size : start + _FIELDS.size + _CHECKSUM.size]
        if len(fields) == _FIELDS.size and checksum == _CHECKSUM.pack(zlib.crc32(fields)):
            magic, stamp_usec, wall_usec, tasks = _FIELDS.unpack(fields)
            if magic == _MAGIC:
                found.append(Recorded(stamp_usec=stamp_usec, wall_usec=wall_usec, tasks=tasks))
    return max(found, key=lambda record: record.stamp_usec, default=None)


class CommitStamps:
    """Stamps the durable commits of a database, and records them in the file ``path``.

    ``now_usec`` returns the time that stamps have, ``wall_usec`` the wall clock's, and ``last_usec`` is the last stamp.
    ``elapsed`` returns seconds that only grow. Only the thread that commits calls the methods.
    """

    def __init__(
        self,
        path: Path,
        *,
        last_usec: int,
        now_usec: Callable[[], int],
        wall_usec: Callable[[], int],
        elapsed: Callable[[], float] = elapsed_seconds,
    ) -> None:
        self._elapsed = elapsed
        # Other threads read these two: when the current commit began, and how long the last one took.
        self._began = math.inf
        self._seconds = math.inf
        self._path = path
        self._now_usec = now_usec
        self._wall_usec = wall_usec
        self._last_usec = last_usec
        self._slot = 0
        self._failed = False
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
        except OSError as error:  # a full disk must not keep the server from running the tasks that it has
            self._descriptor = -1
            self._report(error)

    def write(self, connection: sqlite3.Connection) -> None:
        """Write the stamp of a commit into the database, inside its transaction."""
        # If the transaction fails, this stamp is never used again, which does no harm.
        self._last_usec = max(self._last_usec + 1, self._now_usec())
        connection.execute(_WRITE_STAMP, (self._last_usec,))
        self._began = self._elapsed()

    @property
    def seconds(self) -> float:
        """How long the last commit took, or the current one takes already if that is longer; infinity without any."""
        return max(self._seconds, self._elapsed() - self._began)

    def committed(self, tasks: int) -> None:
        """Record the last stamp, after its commit has returned; ``tasks`` is the number of stored tasks."""
        self._seconds = self._elapsed() - self._began
        self._began = math.inf
        fields = _FIELDS.pack(_MAGIC, self._last_usec, self._wall_usec(), tasks)
        self._slot ^= 1
        try:
            os.pwrite(self._descriptor, fields + _CHECKSUM.pack(zlib.crc32(fields)), self._slot * _SLOT_BYTES)
        except OSError as error:
            # The commit itself is on disk. Without the record, later damage may not be noticed.
            self._report(error)

    def restart(self, connection: sqlite3.Connection, tasks: int) -> None:
        """Stamp the database as it is now, so that a loss is reported once; ``tasks`` is the number of stored tasks."""
        self.write(connection)
        self.committed(tasks)
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._report(error)

    def close(self) -> None:
        """Close the file. Further calls do nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _report(self, error: OSError) -> None:
        if not self._failed:
            logger.error("%s can't be written (%s): lost commits may not be noticed.", self._path, error.strerror)
        self._failed = True
