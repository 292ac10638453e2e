"""Starts the real server again and again, without importing it anew each time.

Most of a start's time is that of imports, which a kill doesn't touch. So this process imports all there is and then
forks: ``python -m tests.support.killing.forkserver serve …`` reads one line for each start, forks a process that does
exactly what ``deferred-middleware serve …`` does, writes its process ID, and waits for its end.
"""

from __future__ import annotations

import os
import sys

import deferred_middleware.server.supervisor  # noqa: F401 - imported now, so that it needn't be after each fork
from deferred_middleware.cli.main import main


def run() -> None:
    """Fork a server for each line of the standard input."""
    for _line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            os._exit(main(sys.argv[1:]))
        os.write(1, b"%d\n" % pid)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    run()
