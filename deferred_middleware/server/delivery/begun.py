"""Memory that an app process shares with the queue process: when the task in each slot began, and whether it has ended.

The queue process reads it after the app process has died, when nothing else can say which of the delivered tasks had
begun. A slot is one number, so that a process that is killed in the middle leaves the old number or the new one. The
numbers above zero are times of the monotonic clock, which the processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final

NOT_BEGUN: Final = 0.0
ENDED: Final = -1.0
"""The app has responded, and the response is not a plain success."""
SUCCEEDED: Final = -2.0
"""The app has responded with a status of 2xx and without an ``X-Deferred-Outcome``."""

_BYTES: Final = 8


class Begun:
    """The numbers of all slots, in the memory of an open file, which is closed here.

    Each process changes a slot only while it is its turn: the queue process until it sends the delivery, the app
    process after that.
    """

    def __init__(self, descriptor: int) -> None:
        try:
            self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        self.slots: memoryview[float] = memoryview(self._map).cast("d")

    def close(self) -> None:
        """Unmap the memory."""
        self.slots.release()
        self._map.close()


def open_memory(slots: int) -> int:
    """Return the descriptor of a file with so many slots, each :data:`NOT_BEGUN`, for a child process to inherit."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("deferred-begun")
    else:  # macOS
        descriptor, path = tempfile.mkstemp(prefix="deferred-begun-")
        os.unlink(path)
    os.truncate(descriptor, slots * _BYTES)
    return descriptor
