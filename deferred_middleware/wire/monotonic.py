"""A monotonic clock that runs on while a test has stopped the time.

A timeout needs it. Libraries such as freezegun stop ``time.monotonic`` too, so a timeout would never end. They may also
have stopped it while a module is imported, which would keep the stopped clock in the default of an argument. Times that
others see come from ``time.time()``, which has to be looked up for each use: who signs a task and who checks it have
to have the same time, stopped or not.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Final

# Nobody stops clock_gettime() for this clock. Windows does not have it.
monotonic: Final[Callable[[], float]] = (
    functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic
)
"""Return the seconds since some moment in the past."""
