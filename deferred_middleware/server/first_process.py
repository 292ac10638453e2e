"""The first process of a container: it reaps, passes signals on, and runs the server as its child.

The system gives every process whose parent has ended to process 1, which has to reap it when it ends. Otherwise zombies
of what tasks start fill the container's process table. The queue process must not reap what it doesn't know, because it
waits for its app processes itself. So if the command is process 1, it forks:

    if os.getpid() == 1:
        return run_below_first_process(serve)
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

# A process can't block the first two. The last three are about reading and writing at a terminal, in the background.
_NOT_PASSED_ON = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCHLD,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
}
_KILLED_BY_SIGNAL = 128  # a shell adds the signal's number


def run_below_first_process(run: Callable[[], int]) -> int:
    """Run ``run`` in a child process and return its status there; in this process, reap until the child has ended.

    Call it before any thread is started. Signals are passed on to the child. The child's status is returned here too.
    """
    waited_for = set(signal.Signals) - _NOT_PASSED_ON
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for | {signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return run()
    while True:
        signum = signal.sigwait(waited_for | {signal.SIGCHLD})
        if signum != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signum)
        elif (status := _reap(child)) is not None:
            # The child has written all output. This process's copies of its buffers are those from before the fork.
            return status


def _reap(child: int) -> int | None:
    """Reap every process that has ended; return the status of ``child`` if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else _KILLED_BY_SIGNAL - code


def _take_terminal() -> None:
    """Lead a process group of its own, which the terminal sends Ctrl-C to.

    Process 1 would pass the signal on, and the child would get it twice.
    """
    os.setpgid(0, 0)
    ignored = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        os.tcsetpgrp(0, os.getpid())
    except OSError:
        pass  # standard input is no terminal, or not that of this session
    finally:
        signal.signal(signal.SIGTTOU, ignored)
