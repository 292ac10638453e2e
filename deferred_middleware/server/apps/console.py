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
from dataclasses import dataclass
from types import FrameType
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


@contextlib.contextmanager
def reacting_to(signums: Iterable[signal.Signals], react: Callable[[int], None]) -> Iterator[None]:
    """While this is entered, call ``react`` with the number of each signal of ``signums`` that arrives.

    It is called in a thread of its own. A signal that was ignored before, such as by nohup, stays so. Has to be entered
    in the main thread.
    """
    handled = [signum for signum in signums if signal.getsignal(signum) is not signal.SIG_IGN]
    ours, interpreters = socket.socketpair()
    with ours, interpreters:
        interpreters.setblocking(False)
        thread = threading.Thread(target=_read, args=(ours, react), name="signals")
        thread.start()
        descriptor_before = signal.set_wakeup_fd(interpreters.fileno(), warn_on_full_buffer=False)
        handlers_before = {signum: signal.signal(signum, _do_nothing) for signum in handled}

        def restore() -> None:
            for signum, handler in handlers_before.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(descriptor_before)

        reaction = _Reaction(set(handled), restore)
        _REACTIONS.append(reaction)
        try:
            yield
        finally:
            _REACTIONS.remove(reaction)
            restore()
            interpreters.close()
            thread.join()


@dataclass
class _Reaction:
    """Signals that a thread reacts to, and what a child has to do that is forked without a new program.

    A signal to the child is not one to this process. So signals wait while a child has this process's descriptor.
    """

    signums: set[signal.Signals]
    restore: Callable[[], None]
    mask_before: Iterable[int] = ()

    def before_fork(self) -> None:
        self.mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, self.signums)

    def after_fork(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask_before)


_REACTIONS: Final[list[_Reaction]] = []


def _before_fork() -> None:
    for reaction in _REACTIONS:
        reaction.before_fork()


def _after_fork_in_parent() -> None:
    for reaction in reversed(_REACTIONS):
        reaction.after_fork()


def _after_fork_in_child() -> None:
    while _REACTIONS:
        reaction = _REACTIONS.pop()
        reaction.restore()
        reaction.after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _read(descriptor: socket.socket, react: Callable[[int], None]) -> None:
    while received := descriptor.recv(64):
        for signum in received:
            react(signum)


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """Handle a signal for Python, which writes to the descriptor only for signals that have a handler."""
