"""``breakpoint()`` in an app process: it opens the debugger at the server's terminal, or says how to debug.

An app process is in a session of its own, so it has no controlling terminal. But it can read from the server's terminal
if it inherits it, and then has it as standard input: ``pdb``, other debuggers and ``input()`` work as usual. Without a
terminal, the debugger would read the end of its input and raise ``BdbQuit`` in the request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import termios
from collections.abc import Iterator
from typing import Final

_VARIABLE = "PYTHONBREAKPOINT"
# The values that mean the debugger of the standard library, which reads from standard input.
_READS_STANDARD_INPUT = ("", "pdb.set_trace")

logger: Final = logging.getLogger(__name__)


def is_at_terminal() -> bool:
    """Tell whether standard input is a terminal at which the server runs in the foreground."""
    if not os.isatty(0) or not (os.isatty(1) or os.isatty(2)):
        return False
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return True  # it is not this session's terminal, so the server has no background there


def set_standard_input(terminal_fd: int | None) -> None:
    """Make the terminal, or without one an empty file, this process's standard input; prepare ``breakpoint()``."""
    descriptor = os.open(os.devnull, os.O_RDONLY) if terminal_fd is None else terminal_fd
    os.dup2(descriptor, 0)
    os.close(descriptor)
    if terminal_fd is None:
        sys.breakpointhook = _explain_or_break


def _explain_or_break(*args: object, **kwargs: object) -> object:
    """Call the debugger that ``PYTHONBREAKPOINT`` names; without one, log that there is no terminal, and go on."""
    if os.environ.get(_VARIABLE, "") not in _READS_STANDARD_INPUT:
        return sys.__breakpointhook__(*args, **kwargs)
    caller = sys._getframe(1)
    logger.warning(
        "breakpoint() at %s:%d opens no debugger, because the server doesn't run in the foreground of a terminal. "
        "Start it there, or set %s to a debugger that needs no terminal, such as remote_pdb.set_trace.",
        caller.f_code.co_filename,
        caller.f_lineno,
        _VARIABLE,
    )
    return None


@contextlib.contextmanager
def terminal_restored() -> Iterator[None]:
    """Restore the terminal's settings at the end: a process that is killed in a debugger leaves it without echo."""
    try:
        before = termios.tcgetattr(0) if is_at_terminal() else None
    except termios.error:
        before = None
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, before)
