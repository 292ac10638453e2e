"""What the server's processes have from whoever started them: standard input, the terminal, and signals.

``breakpoint()`` in an app process opens the debugger at the server's terminal, or says how to debug. An app process is
in a session of its own, so it has no controlling terminal. But it can read from the server's terminal if it inherits
it, and then has it as standard input: ``pdb``, other debuggers and ``input()`` work as usual. Without a terminal, the
debugger would read the end of its input and raise ``BdbQuit`` in the request.

A signal can't be missed, because a thread of its own reacts to it. Python runs a signal's handler in the main thread,
between two of its instructions. A main thread that waits in the operating system only gets there if the signal
interrupts that call. It doesn't if the kernel gives the signal to another thread, nor if it arrives in the instant
between Python's last look and the call. What Python does at once, in whichever thread, is to write the signal's number
to a descriptor (``signal.set_wakeup_fd``), which the thread reads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Final

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


# The signals that a thread reacts to, with their handlers from before. Only the main thread writes it.
_handlers_before: Final[dict[signal.Signals, Any]] = {}
# Each thread that forks has the signals that it blocked before.
_forking: Final = threading.local()


@contextlib.contextmanager
def reacting_to(signums: Iterable[signal.Signals], react: Callable[[int], None]) -> Iterator[None]:
    """While this is entered, call ``react`` with the number of each signal of ``signums`` that arrives.

    It is called in a thread of its own. A signal that was ignored before, such as by nohup, stays so. Has to be entered
    in the main thread, and by one at a time.
    """
    assert not _handlers_before
    ours, interpreters = socket.socketpair()
    with ours, interpreters:
        interpreters.setblocking(False)
        thread = threading.Thread(target=_read, args=(ours, react), name="signals")
        thread.start()
        signal.set_wakeup_fd(interpreters.fileno(), warn_on_full_buffer=False)
        for signum in signums:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                _handlers_before[signum] = signal.signal(signum, _do_nothing)
        try:
            yield
        finally:
            _restore_handlers()
            signal.set_wakeup_fd(-1)
            interpreters.close()
            thread.join()


def _restore_handlers() -> None:
    for signum, handler in _handlers_before.items():
        signal.signal(signum, handler)
    _handlers_before.clear()


# A child that is forked without a new program has the descriptor too, but a signal to it is not one to this process.
# So signals to the child wait until it has its own handlers again.
def _before_fork() -> None:
    _forking.blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, _handlers_before)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.blocked_before)


def _after_fork_in_child() -> None:
    if _handlers_before:
        signal.set_wakeup_fd(-1)
        _restore_handlers()
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.blocked_before)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _read(descriptor: socket.socket, react: Callable[[int], None]) -> None:
    while received := descriptor.recv(64):
        for signum in received:
            react(signum)


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """Handle a signal for Python, which writes to the descriptor only for signals that have a handler."""
