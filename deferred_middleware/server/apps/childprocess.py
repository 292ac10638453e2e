"""A child process that leads a process group of its own: wait for its end, end it, and say how it ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess

_logger = logging.getLogger(__name__)


def peek_status(process: subprocess.Popen[bytes]) -> int:
    """Wait until ``process`` has ended; return its status as ``Popen.returncode`` has it.

    Where the system can, it is left to be reaped, so that its ID stays its own.
    """
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return process.wait()
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if ended is None:
        return 0
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End ``process``, which is not reaped yet, and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # The latter is what macOS says of a group of zombies.
        _logger.debug("Nothing is left of process %d.", process.pid)


def describe_end(returncode: int) -> str:
    """Say how a process ended: ``ended with status 3``, ``was killed by signal 9 (SIGKILL)``."""
    if returncode >= 0:
        return f"ended with status {returncode}"
    try:
        name = f" ({signal.Signals(-returncode).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-returncode}{name}"
