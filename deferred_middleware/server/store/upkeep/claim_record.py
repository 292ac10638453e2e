"""A record of the claimed tasks, in a file beside the database, for the server that comes after a crash.

Claims are kept in memory. The file tells the next server which tasks were claimed, so that it can say how many are run
again, and can make them due even if the clock was set back in between. The file is mapped into memory and never synced:
a note costs less than a microsecond. ``kill -9`` doesn't undo it. A power cut may, or may bring old notes back;
therefore a note counts only if the task still has the number of attempts that it had when it was claimed.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from pathlib import Path
from typing import Final

logger: Final = logging.getLogger(__name__)

_SLOTS = 16 * 1024
# The task's ID and its number of attempts. An ID is never 0.
_NOTE = struct.Struct("=QQ")
_MODE = 0o600
_NO_SLOT = -1


def read_claims(path: Path) -> list[tuple[int, int]]:
    """Return the ID and the number of attempts of each task that the last server had claimed."""
    try:
        with path.open("rb") as record:
            content = record.read(_SLOTS * _NOTE.size)
    except FileNotFoundError:
        return []
    return [note for note in _NOTE.iter_unpack(content[: len(content) // _NOTE.size * _NOTE.size]) if note[0]]


class ClaimRecord:
    """The record in the file ``path``, without any claims at first. Its owner guards it with a lock."""

    def __init__(self, path: Path) -> None:
        self._map: mmap.mmap | None = None
        self._free = list(range(_SLOTS))
        size = _SLOTS * _NOTE.size
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
            try:
                # The space is allocated here, because a write to the map can't report a full disk.
                os.pwrite(descriptor, bytes(size), 0)
                os.ftruncate(descriptor, size)
                self._map = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:  # a full disk must not keep the server from running the tasks that it has
            logger.warning(
                "%s can't be written (%s): after a crash, the server can't say which tasks were running.",
                path,
                error.strerror,
            )

    def add(self, task_id: int, retry_count: int) -> int:
        """Note a claim; return its slot."""
        if self._map is None or not self._free:
            return _NO_SLOT
        slot = self._free.pop()
        _NOTE.pack_into(self._map, slot * _NOTE.size, task_id, retry_count)
        return slot

    def remove(self, slot: int) -> None:
        """Delete the note in ``slot``."""
        if slot != _NO_SLOT and self._map is not None:
            _NOTE.pack_into(self._map, slot * _NOTE.size, 0, 0)
            self._free.append(slot)

    def close(self) -> None:
        """Close the file. Further calls do nothing, and nothing is noted any more."""
        if self._map is not None:
            self._map.close()
            self._map = None
