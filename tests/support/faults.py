"""An API server that speaks ``/rpc_http`` over real sockets, records its requests, and fails on demand."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

from google.appengine.api import apiproxy_stub_map
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.ext import testbed
from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb
from google.appengine.runtime import default_api_stub

from tests.support.threadedserver import ThreadedHTTPServer

Code = taskqueue_pb.TaskQueueServiceError
BOUND_SECONDS = 60


class Fault:
    """What the server does with one add instead of a normal answer; ``added`` says whether the add takes effect."""

    def __init__(self, added: bool = False) -> None:
        self.added = added

    def taken(self, request: Any) -> Any:
        """Return the part of a BulkAdd that takes effect, or None."""
        return request if self.added else None

    def answer(self, handler: Handler, results: Any) -> None:
        """Answer, or fail to; ``results`` is the response for the part of the BulkAdd that took effect."""
        raise NotImplementedError


class Results(Fault):
    """Answer with a code for each task. The last code is for all further tasks; without codes the answer is empty."""

    def __init__(self, *codes: int, added: bool = False) -> None:
        super().__init__(added)
        self.codes = codes

    def answer(self, handler: Handler, results: Any) -> None:
        """Send the codes."""
        response = taskqueue_pb.TaskQueueBulkAddResponse()
        for place in range(handler.count if self.codes else 0):
            response.taskresult.add().result = self.codes[min(place, len(self.codes) - 1)]
        handler.send(remote_api_pb.Response(response=response.SerializeToString()))


class Half(Fault):
    """Add every second task, and answer for each of the others that the queue has failed."""

    def taken(self, request: Any) -> Any:
        """Return every second task."""
        some = list(request.add_request)[1::2]
        return taskqueue_pb.TaskQueueBulkAddRequest(add_request=some) if some else None

    def answer(self, handler: Handler, results: Any) -> None:
        """Send the results."""
        response = taskqueue_pb.TaskQueueBulkAddResponse()
        for place in range(handler.count):
            result = response.taskresult.add(result=Code.TRANSIENT_ERROR)
            if place % 2 and results.taskresult:
                result.CopyFrom(results.taskresult[place // 2])
        handler.send(remote_api_pb.Response(response=response.SerializeToString()))


class ApplicationError(Fault):
    """Answer with one code for the whole add."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def answer(self, handler: Handler, results: Any) -> None:
        """Send the error."""
        response = remote_api_pb.Response()
        response.application_error.code = self.code
        response.application_error.detail = "as told"
        handler.send(response)


class RpcError(Fault):
    """Answer that the call failed."""

    def __init__(self, code: int, added: bool = False) -> None:
        super().__init__(added)
        self.code = code

    def answer(self, handler: Handler, results: Any) -> None:
        """Send the error."""
        response = remote_api_pb.Response()
        response.rpc_error.code = self.code
        response.rpc_error.detail = "as told"
        handler.send(response)


class Closed(Fault):
    """Close the connection instead of answering."""

    def answer(self, handler: Handler, results: Any) -> None:
        """Answer nothing."""
        handler.close_connection = True


class Silent(Fault):
    """Send no answer until the server ends, so that the client times out."""

    def answer(self, handler: Handler, results: Any) -> None:
        """Wait for the server's end."""
        handler.api.ended.wait(BOUND_SECONDS)
        handler.close_connection = True


class Held(Fault):
    """Wait until the test releases the answer; then send the add's result or a code."""

    def __init__(self, code: int | None = None) -> None:
        super().__init__(added=code is None)
        self.code = code
        self.came = threading.Event()
        self.let_go = threading.Event()

    def answer(self, handler: Handler, results: Any) -> None:
        """Wait for the release, then answer."""
        self.came.set()
        assert self.let_go.wait(BOUND_SECONDS)
        if self.code is None:
            handler.send(remote_api_pb.Response(response=results.SerializeToString()))
        else:
            Results(self.code).answer(handler, results)


class HttpStatus(Fault):
    """Answer with an HTTP status other than 200."""

    def answer(self, handler: Handler, results: Any) -> None:
        """Send the status."""
        handler.send_response(502)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


class Unreadable(Fault):
    """Answer with bytes that are not an API response."""

    def answer(self, handler: Handler, results: Any) -> None:
        """Send the bytes."""
        handler.send_bytes(b"\xff\xff\xff\xff")


class Handler(BaseHTTPRequestHandler):
    """A connection of the SDK's client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one write for a response's headers and body
    api: FaultyServer
    count = 0

    def do_POST(self) -> None:
        """Answer an API call."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.api.answer(self, remote_api_pb.Request.FromString(body))

    def send(self, response: Any) -> None:
        """Send an API response."""
        self.send_bytes(response.SerializeToString())

    def send_bytes(self, body: bytes) -> None:
        """Send the body of an HTTP response."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class FaultyServer:
    """The server. Each add gets the next of ``faults``; if ``lasting``, the last one repeats. None is no fault."""

    def __init__(self) -> None:
        self.faults: list[Fault | None] = []
        self.lasting = False
        self.attempts: list[list[str]] = []
        """The task names of each add that arrived."""
        self.tasks: list[Any] = []
        """The adds that took effect."""
        self.ended = threading.Event()
        self._names: set[tuple[bytes, bytes]] = set()
        self._lock = threading.Lock()
        handler = type("OwnHandler", (Handler,), {"api": self})
        self._server = ThreadedHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.002,), daemon=True)
        self._thread.start()
        self.port: int = self._server.server_address[1]

    def fail(self, *faults: Fault | None, lasting: bool = False) -> None:
        """Apply ``faults`` to the next adds."""
        self.faults, self.lasting = list(faults), lasting

    def answer(self, handler: Handler, call: Any) -> None:
        """Answer an API call, which must be an add."""
        request = taskqueue_pb.TaskQueueBulkAddRequest.FromString(call.request)
        self.answer_add(
            handler, request, lambda taken: remote_api_pb.Response(response=self.add(taken).SerializeToString())
        )

    def answer_add(self, handler: Handler, request: Any, add: Callable[[Any], Any]) -> None:
        """Answer an add, or apply the next fault; ``add`` adds tasks and returns the response of the API."""
        handler.count = len(request.add_request)
        fault = self.next_fault(request)
        taken = request if fault is None else fault.taken(request)
        response = None if taken is None else add(taken)
        if fault is None:
            handler.send(response)
        else:
            added = b"" if response is None else response.response
            fault.answer(handler, taskqueue_pb.TaskQueueBulkAddResponse.FromString(added))

    def next_fault(self, request: Any) -> Fault | None:
        """Record an attempt, and return the fault for it."""
        with self._lock:
            self.attempts.append(names_of(request.add_request))
            if not self.faults:
                return None
            return self.faults[0] if self.lasting and len(self.faults) == 1 else self.faults.pop(0)

    def add(self, request: Any) -> Any:
        """Add the tasks as the platform does: a name is unique in its queue."""
        response = taskqueue_pb.TaskQueueBulkAddResponse()
        with self._lock:
            for add in request.add_request:
                result = response.taskresult.add()
                name = add.task_name or f"chosen{len(self.tasks)}".encode()
                if (add.queue_name, name) in self._names:
                    result.result = Code.TASK_ALREADY_EXISTS
                    continue
                self._names.add((add.queue_name, name))
                self.tasks.append(add)
                result.result = Code.OK
                if not add.task_name:
                    result.chosen_task_name = name
        return response

    def close(self) -> None:
        """Stop the server, and release all waiting handlers."""
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(BOUND_SECONDS)


@contextlib.contextmanager
def connected(server: FaultyServer, prepare: Callable[[testbed.Testbed], object] = lambda bed: None) -> Iterator[None]:
    """Connect the SDK's own taskqueue client in this process to ``server``, as in a request.

    ``prepare`` is called with the testbed and can add other services of the SDK's stubs.
    """
    bed = testbed.Testbed()
    bed.activate()
    bed.setup_env(
        DEFAULT_VERSION_HOSTNAME="app.example.com",
        HTTP_HOST="app.example.com",
        API_HOST="127.0.0.1",
        API_PORT=str(server.port),
        HTTP_X_APPENGINE_API_TICKET="ticket",
        overwrite=True,
    )
    prepare(bed)
    stub = default_api_stub.DefaultApiStub()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    stub.SetUseRequestSecurityTicketForThread(True)
    try:
        yield
    finally:
        stub.SetUseRequestSecurityTicketForThread(False)
        server.ended.set()
        stub.thread_pool.shutdown()
        stub.http.clear()
        bed.deactivate()
        assert os.environ.get("API_PORT") != str(server.port)


def names_of(tasks: Sequence[Any]) -> list[str]:
    """Return the task names of adds."""
    return [add.task_name.decode() for add in tasks]
