"""API calls of an app process over its own connections: as with the SDK's client, but for the threads."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from google.appengine.api import apiproxy_stub_map
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors, default_api_stub

from deferred_middleware.server.api.connections import ApiConnections
from deferred_middleware.server.api.rpc import RpcApplication
from deferred_middleware.server.apps import api_client
from deferred_middleware.server.apps.api_client import MAX_DIRECT_CALLS, ApiStub

TICKET = "the ticket of this app"
WAIT_SECONDS = 10.0


class Queue:
    """A taskqueue service. A task's URL says what the service does: wait, fail, or answer with that URL."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.go_on = threading.Event()
        self.error: Exception | None = None

    def MakeSyncCall(self, service: str, call: str, request: Any, response: Any, request_id: str | None = None) -> None:
        """Answer a call."""
        url = request.url.decode()
        self.got.append(url)
        if url.startswith("/wait"):
            assert self.go_on.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        response.chosen_task_name = url[1:].encode()


@pytest.fixture
def queue() -> Queue:
    """The service that answers."""
    return Queue()


@pytest.fixture
def server(queue: Queue) -> RpcApplication:
    """The queue process's answers."""
    stub_map = apiproxy_stub_map.APIProxyStubMap()
    stub_map.RegisterStub("taskqueue", queue)
    return RpcApplication(stub_map, [TICKET])


@pytest.fixture
def ticket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This thread handles a request."""
    monkeypatch.setenv(default_api_stub.TICKET_HEADER, TICKET)
    default_api_stub.DefaultApiStub.SetUseRequestSecurityTicketForThread(True)
    yield
    default_api_stub.DefaultApiStub.SetUseRequestSecurityTicketForThread(False)


@pytest.fixture
def stub(server: RpcApplication, ticket: None) -> Iterator[ApiStub]:
    """The stub under test."""
    with ApiConnections(server.answer).control_socket("default") as control:
        made = ApiStub(control)
        yield made
        made._threads.shutdown()
        for connection in made._idle:
            connection.close()


@pytest.fixture
def stub_map(stub: ApiStub) -> apiproxy_stub_map.APIProxyStubMap:
    """The SDK's map with the stub under test."""
    return apiproxy_stub_map.APIProxyStubMap(stub)


def add(url: str) -> Any:
    """Return a request that adds a task."""
    return taskqueue_pb.TaskQueueAddRequest(queue_name=b"default", task_name=b"", eta_usec=0, url=url.encode())


def started(stub_map: Any, url: str, deadline: float | None = None) -> Any:
    """Start a call through the SDK."""
    rpc = apiproxy_stub_map.UserRPC("taskqueue", deadline=deadline, stubmap=stub_map)
    rpc.make_call("Add", add(url), taskqueue_pb.TaskQueueAddResponse())
    return rpc


def await_calls(queue: Queue, number: int) -> None:
    """Wait until the service has got so many calls."""
    deadline = time.monotonic() + WAIT_SECONDS
    while len(queue.got) < number:
        assert time.monotonic() < deadline, f"{len(queue.got)} of {number} calls arrived"
        time.sleep(0.005)


def name_of(rpc: Any) -> str:
    """Wait for a call; return the task's name in its answer."""
    rpc.check_success()
    name: str = rpc.response.chosen_task_name.decode()
    return name


def test_a_call_is_answered(stub_map: Any) -> None:
    """Synchronous and asynchronous calls get their own answers, over connections that are used again."""
    response = taskqueue_pb.TaskQueueAddResponse()
    stub_map.MakeSyncCall("taskqueue", "Add", add("/sync"), response)
    assert response.chosen_task_name == b"sync"
    for number in range(3):
        rpcs = [started(stub_map, f"/{number}-{n}") for n in range(5)]
        assert [name_of(rpc) for rpc in reversed(rpcs)] == [f"{number}-{n}" for n in reversed(range(5))]
    assert len(stub_map.GetStub("taskqueue")._idle) == 5


def test_a_direct_call_needs_no_thread(stub_map: Any) -> None:
    """A call that one thread makes and waits for starts no other thread in the app process."""
    name_of(started(stub_map, "/first"))
    before = {thread.name for thread in threading.enumerate()}
    name_of(started(stub_map, "/second"))
    assert {thread.name for thread in threading.enumerate()} == before


class Quiet(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextlib.contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve an app over HTTP; yield its port."""
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield http.server_port
        http.shutdown()
        thread.join()


ERRORS = [
    apiproxy_errors.ApplicationError(7, "why"),
    apiproxy_errors.CallNotFoundError("why"),
    apiproxy_errors.ArgumentError("why"),
    apiproxy_errors.OverQuotaError("why"),
    apiproxy_errors.RequestTooLargeError("why"),
    apiproxy_errors.ResponseTooLargeError("why"),
    apiproxy_errors.CapabilityDisabledError("why"),
    apiproxy_errors.FeatureNotEnabledError("why"),
    apiproxy_errors.CancelledError("why"),
    apiproxy_errors.DeadlineExceededError("why"),
    ValueError("why"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_one_that_the_sdks_client_raises(
    stub_map: Any, server: RpcApplication, queue: Queue, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both clients raise the same class, with the server's reason; the connection carries the next call."""
    queue.error = error
    with pytest.raises(apiproxy_errors.Error) as ours:
        name_of(started(stub_map, "/fails"))
    with served(server) as port:
        monkeypatch.setenv("API_HOST", "127.0.0.1")
        monkeypatch.setenv("API_PORT", str(port))
        client = default_api_stub.DefaultApiStub()
        with pytest.raises(apiproxy_errors.Error) as theirs:
            name_of(started(apiproxy_stub_map.APIProxyStubMap(client), "/fails"))
        client.http.clear()
    assert type(ours.value) is type(theirs.value)
    assert "why" in str(ours.value)
    assert getattr(ours.value, "application_error", None) == getattr(theirs.value, "application_error", None)
    queue.error = None
    assert name_of(started(stub_map, "/works")) == "works"


def test_outside_of_a_request_there_is_no_call(stub_map: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a ticket, or in a thread that may not use it, a call fails as with the SDK's client."""
    monkeypatch.delenv(default_api_stub.TICKET_HEADER)
    with pytest.raises(apiproxy_errors.RPCFailedError):
        started(stub_map, "/no-ticket")
    monkeypatch.setenv(default_api_stub.TICKET_HEADER, TICKET)
    with futures.ThreadPoolExecutor(1) as pool, pytest.raises(apiproxy_errors.RPCFailedError):
        pool.submit(started, stub_map, "/other-thread").result()
    assert queue.got == []


def test_a_call_has_a_deadline(stub_map: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is not answered in time fails, and its connection is not used again."""
    monkeypatch.setattr(api_client, "_GRACE_SECONDS", 0.0)
    rpc = started(stub_map, "/wait", deadline=0.05)
    with pytest.raises(apiproxy_errors.DeadlineExceededError):
        name_of(rpc)
    queue.go_on.set()
    assert name_of(started(stub_map, "/next")) == "next"


def test_the_first_call_that_is_answered_ends_a_wait_for_any(stub_map: Any, queue: Queue) -> None:
    """``wait_any`` returns the call that was answered, not the first one of the list."""
    slow, fast = started(stub_map, "/wait"), started(stub_map, "/fast")
    assert apiproxy_stub_map.UserRPC.wait_any([slow, fast]) is fast
    queue.go_on.set()
    apiproxy_stub_map.UserRPC.wait_all([slow, fast])
    assert [name_of(slow), name_of(fast)] == ["wait", "fast"]


def test_the_state_of_a_call_changes_without_a_wait(stub_map: Any, queue: Queue) -> None:
    """Whoever looks at the state again and again sees the end of the call; the callback is called then."""
    rpc = stub_map.GetStub("taskqueue").CreateRPC()
    called = threading.Event()
    rpc.MakeCall("taskqueue", "Add", add("/wait"), taskqueue_pb.TaskQueueAddResponse(), callback=called.set)
    assert rpc.state == rpc.RUNNING
    queue.go_on.set()
    while rpc.state != rpc.FINISHING:
        assert not called.wait(0.01)
    assert called.is_set()
    rpc.CheckSuccess()


def test_an_error_of_a_callback_is_the_calls(stub_map: Any) -> None:
    """As with the SDK's client, the error of a callback of the RPC itself is raised by ``CheckSuccess``."""
    rpc = stub_map.GetStub("taskqueue").CreateRPC()
    rpc.MakeCall("taskqueue", "Add", add("/x"), taskqueue_pb.TaskQueueAddResponse(), callback=lambda: int("none"))
    rpc.Wait()
    with pytest.raises(ValueError, match="none"):
        rpc.CheckSuccess()


def test_many_calls_are_in_flight_at_a_time(stub_map: Any, queue: Queue) -> None:
    """More calls than direct ones are all sent before anybody waits, and all are answered."""
    rpcs = [started(stub_map, f"/wait{n}") for n in range(MAX_DIRECT_CALLS + 20)]
    await_calls(queue, len(rpcs))
    queue.go_on.set()
    assert [name_of(rpc) for rpc in rpcs] == [f"wait{n}" for n in range(MAX_DIRECT_CALLS + 20)]


def test_a_call_that_nobody_waits_for_is_made(stub_map: Any, queue: Queue) -> None:
    """A call is sent at once, and its place is free when the call is forgotten."""
    for number in range(3 * MAX_DIRECT_CALLS):
        started(stub_map, f"/{number}")
    free = stub_map.GetStub("taskqueue")._free
    deadline = time.monotonic() + WAIT_SECONDS
    while len(free) < MAX_DIRECT_CALLS:
        assert time.monotonic() < deadline
        gc.collect()
    assert name_of(started(stub_map, "/last")) == "last"
    await_calls(queue, 3 * MAX_DIRECT_CALLS + 1)


def test_several_threads_may_wait_for_a_call(stub_map: Any, queue: Queue) -> None:
    """All threads that wait for one call return when it is answered."""
    rpc = started(stub_map, "/wait")
    with futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(name_of, rpc) for _ in range(4)]
        queue.go_on.set()
        assert [one.result(WAIT_SECONDS) for one in waiting] == ["wait"] * 4


def test_the_end_of_the_queue_process_is_an_error(ticket: None) -> None:
    """A call fails if its connection ends before the answer, and if no connection can be opened."""
    ours, theirs = socket.socketpair()
    stub_map = apiproxy_stub_map.APIProxyStubMap(ApiStub(theirs))
    rpc = started(stub_map, "/x")
    _data, (descriptor,), _flags, _address = socket.recv_fds(ours, 1, 1)
    os.close(descriptor)
    with pytest.raises(apiproxy_errors.RPCFailedError):
        name_of(rpc)
    ours.close()
    theirs.close()
    with pytest.raises(apiproxy_errors.RPCFailedError):
        name_of(started(stub_map, "/y"))


def test_an_answer_that_makes_no_sense_is_an_error(ticket: None) -> None:
    """Bytes that are no message fail the call."""
    with ApiConnections(lambda _request: b"\xff\xff\xff").control_socket("default") as control:
        rpc = started(apiproxy_stub_map.APIProxyStubMap(ApiStub(control)), "/x")
        with pytest.raises(Exception, match="parsing"):
            name_of(rpc)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own(stub_map: Any, queue: Queue) -> None:
    """A child process doesn't read the answers to its parent's calls."""
    name_of(started(stub_map, "/before"))
    waiting = started(stub_map, "/wait")
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            status = int(name_of(started(stub_map, "/child")) != "child")
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    queue.go_on.set()
    assert name_of(waiting) == "wait"
    assert name_of(started(stub_map, "/after")) == "after"


def test_it_takes_the_place_of_the_sdks_client_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app's own default stub stays."""
    own, theirs = object(), default_api_stub.DefaultApiStub()
    ours, control = socket.socketpair()
    with ours, control:
        for default, installed in ((own, False), (None, False), (theirs, True)):
            stub_map = apiproxy_stub_map.APIProxyStubMap(default)
            monkeypatch.setattr(apiproxy_stub_map, "apiproxy", stub_map)
            assert api_client.install(control) is installed
            assert isinstance(stub_map.GetStub("taskqueue"), ApiStub) is installed
