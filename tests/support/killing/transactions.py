"""An app that kills itself during transactions with a task, and starts again at once.

``python -m tests.support.killing.transactions PORT`` imports everything, and then forks one process after the other:
each serves on the port until it kills itself. ``WITHOUT_SDK`` selects google-cloud-ndb in place of the SDK's ndb.

``POST /work/MARK/POINT`` writes an entity and adds a task in a transaction, and kills the process at a point:

* ``put``: between the writes and the commit,
* ``commit``: between the commit and the dispatch of the task,
* ``dispatch``: between the dispatch and the deletion of the entity in the outbox,
* ``none``: not at all.

``GET /exists/MARK`` tells whether the entity is there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deferred_middleware import DeferredMiddleware, defer
from deferred_middleware.engines.cloud_tasks import CloudTasksEngine
from tests.support.killing import marks

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

if TYPE_CHECKING or not os.environ.get("WITHOUT_SDK"):
    from tests.support.engines import with_sdk as platform
else:
    from tests.support.engines import without_sdk as platform

# Of a thread, because sweeps send tasks in other threads.
_doom = threading.local()
_send = CloudTasksEngine.send


def _kill(point: str) -> None:
    if getattr(_doom, "point", "none") == point:
        os.kill(os.getpid(), signal.SIGKILL)


def _killing_send(self: CloudTasksEngine, parent: str, serialized: bytes) -> None:
    """Send a task of the outbox, unless the process is to die before it; die afterwards if that is asked for."""
    _kill("commit")
    _send(self, parent, serialized)
    _kill("dispatch")


def _work(mark: str) -> None:
    platform.put_note("ndb", mark)
    defer(marks.ran, mark, _transactional=True)
    _kill("put")


def pages(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer the test."""
    _, verb, mark, *point = environ["PATH_INFO"].split("/")
    answer = b"done"
    if verb == "work":
        _doom.point = point[0]
        platform.run("ndb", lambda: _work(mark), xg=True)
    elif verb == "exists":
        answer = b"yes" if platform.has_note(mark) else b"no"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


def serve(listener: socket.socket) -> None:
    """Serve in this process, until it is killed."""
    from waitress.server import create_server

    CloudTasksEngine.send = _killing_send  # type: ignore[method-assign] # this is where the process dies
    server: Any = create_server(platform.wrap(DeferredMiddleware(pages)), sockets=[listener], threads=4)
    server.run()


def main(port: int) -> None:
    """Start one process after the other."""
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        pid = os.fork()
        if pid == 0:
            serve(listener)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
