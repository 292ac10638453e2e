"""Starts the real server repeatedly without importing it each time.

Most of a start's time is spent on imports, which don't matter for a kill. Therefore this process imports everything and
then forks. ``python -m tests.support.killing.forkserver serve …`` reads one line for each start, forks a process that
does exactly what ``deferred-middleware serve …`` does, writes its process ID, and waits for its end. ``emulate`` is
the same.
"""

from __future__ import annotations

import os
import sys

import deferred_middleware.server.supervisor  # noqa: F401 - imported here, so that the forked processes don't import it
from deferred_middleware.cli.main import main


def run() -> None:
    """Fork a server for each line of standard input."""
    if sys.argv[1] == "emulate":
        import deferred_middleware.server.cloud_tasks.grpc_server  # noqa: F401 - see above
    for _line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            os._exit(main(sys.argv[1:]))
        os.write(1, b"%d\n" % pid)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    run()
