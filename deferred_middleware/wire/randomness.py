"""Random numbers for names and nonces, fetched from the system many at a time."""

from __future__ import annotations

import collections
import os
from typing import Final

_BYTES: Final = 16
_AT_ONCE: Final = 256


class Source:
    """Gives random numbers of 128 bits, evenly spread, each once: no thread and no forked process gets another's.

    They are no secrets, for they wait in memory.
    """

    def __init__(self) -> None:
        self._owner = 0
        self._waiting: collections.deque[str] = collections.deque()

    def hex32(self) -> str:
        """Return 32 random hexadecimal digits."""
        # The process is looked at each time: a server may fork its workers without telling Python.
        process = os.getpid()
        if self._owner != process:
            self._waiting = collections.deque()
            self._owner = process
        try:
            return self._waiting.popleft()
        except IndexError:
            digits = os.urandom(_BYTES * _AT_ONCE).hex()
            fetched = [digits[start : start + 2 * _BYTES] for start in range(0, len(digits), 2 * _BYTES)]
            self._waiting.extend(fetched[1:])
            return fetched[0]


hex32: Final = Source().hex32
"""Return 32 random hexadecimal digits, from the process's own source."""
