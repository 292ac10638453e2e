"""The RPC protocol between the SDK and the queue process."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from google.appengine.api import apiproxy_stub, apiproxy_stub_map
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb
from google.appengine.runtime import apiproxy_errors
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.api.rpc import MAX_CALL_BYTES, MAX_HTTP_BODY_BYTES, RpcApplication, _ticket_in
from deferred_middleware.server.apps.app_server import AppServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TICKET = "ticket"


class Stub(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
    """A taskqueue service with one method; a test chooses the error that it raises."""

    def __init__(self) -> None:
        super().__init__("taskqueue")
        self.error: Exception | None = None
        self.got: list[str] = []

    def _Dynamic_Add(self, request: Any, response: Any) -> None:
        self.got.append(request.url.decode())
        if self.error is not None:
            raise self.error
        response.chosen_task_name = b"chosen"


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A stub that succeeds."""
    return Stub()


def _request(stub: Stub, body: bytes, *, method: str = "POST", path: str = "/rpc_http", pages: Any = None) -> Any:
    stub_map = apiproxy_stub_map.APIProxyStubMap()
    stub_map.RegisterStub("taskqueue", stub)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    setup_testing_defaults(environ)
    started: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.extend([status, dict(headers)])

    result = validator(RpcApplication(stub_map, ["other", TICKET], pages=pages))(environ, start_response)
    answer = b"".join(result)
    result.close()  # type: ignore[attr-defined]
    return started[0], started[1], answer


def _call(
    stub: Stub, *, service: str = "taskqueue", method: str = "Add", ticket: str = TICKET, body: Any = None
) -> Any:
    if body is None:
        body = taskqueue_pb.TaskQueueAddRequest(
            queue_name=b"default", task_name=b"", eta_usec=0, url=b"/work"
        ).SerializeToString()
    call = remote_api_pb.Request(service_name=service, method=method, request=body, request_id=ticket)
    status, _headers, answer = _request(stub, call.SerializeToString())
    assert status == "200 OK"
    return remote_api_pb.Response.FromString(answer)


def test_a_call_is_answered_by_its_stub(stub: Stub) -> None:
    """The stub gets the request, and the client gets the stub's response."""
    answer = taskqueue_pb.TaskQueueAddResponse.FromString(_call(stub).response)
    assert stub.got == ["/work"]
    assert answer.chosen_task_name == b"chosen"


@pytest.mark.parametrize("ticket", ["", "wrong", "tickét"])
def test_a_call_without_the_ticket_is_refused(stub: Stub, ticket: str) -> None:
    """A call without the right ticket is refused before it reaches a stub."""
    response = _call(stub, ticket=ticket)
    assert response.rpc_error.code == remote_api_pb.RpcError.SECURITY_VIOLATION
    assert stub.got == []


@pytest.mark.parametrize(
    ("service", "method"),
    [("nothing", "Add"), ("taskqueue", "Nothing"), ("taskqueue", "BulkAdd"), ("memcache", "Get")],
)
def test_an_unknown_call_is_not_found(stub: Stub, service: str, method: str) -> None:
    """An unknown service or method, and a service without a stub, give CALL_NOT_FOUND."""
    response = _call(stub, service=service, method=method, body=b"")
    assert response.rpc_error.code == remote_api_pb.RpcError.CALL_NOT_FOUND


def test_an_application_error_keeps_code_and_detail(stub: Stub) -> None:
    """An application error reaches the client with its code and detail."""
    stub.error = apiproxy_errors.ApplicationError(10, "exists")
    response = _call(stub)
    assert (response.application_error.code, response.application_error.detail) == (10, "exists")
    assert not response.HasField("rpc_error")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (apiproxy_errors.RequestTooLargeError("big"), remote_api_pb.RpcError.REQUEST_TOO_LARGE),
        (apiproxy_errors.DeadlineExceededError("slow"), remote_api_pb.RpcError.DEADLINE_EXCEEDED),
        (apiproxy_errors.RPCFailedError("store failed"), remote_api_pb.RpcError.UNKNOWN),
    ],
)
def test_a_transport_error_keeps_its_kind(stub: Stub, error: Exception, code: int) -> None:
    """The client gets the code and message of the exception that the stub raised."""
    stub.error = error
    response = _call(stub)
    assert (response.rpc_error.code, response.rpc_error.detail) == (code, str(error))


def test_a_defect_is_logged_with_its_traceback(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    """If a stub raises an unexpected exception, the call fails and the server logs the traceback."""
    stub.error = ZeroDivisionError("by zero")
    response = _call(stub)
    assert response.rpc_error.code == remote_api_pb.RpcError.UNKNOWN
    assert response.rpc_error.detail == "ZeroDivisionError: by zero"
    assert "taskqueue.Add" in caplog.text
    assert "_Dynamic_Add" in caplog.text


GOOD = remote_api_pb.Request(service_name="taskqueue", method="Add", request=b"", request_id=TICKET).SerializeToString()
UNFINISHED = b"\x22\xff\xff\xff\xff\x0f"
"""A field of 4 GB without its content."""
MALFORMED = [
    b"\xff\xff garbage",
    b"\x13" * 3,
    b"\x2a",
    b"\x2a\x07ticket",
    b"\x2a" + b"\xff" * 20,
    UNFINISHED,
    b"\x28" * 1_001,
    b"\x28\x01" * 1_000,
    b"\x0d\x01",
    b"\x0b\x0c",
    GOOD[:-1],
]


@pytest.mark.parametrize("body", MALFORMED)
@pytest.mark.parametrize("before", [b"", GOOD], ids=["alone", "after a call"])
def test_bytes_that_are_no_call_are_refused(
    stub: Stub, before: bytes, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that is malformed is refused, also if it has the ticket."""
    _status, _headers, answer = _request(stub, before + body)

    assert remote_api_pb.Response.FromString(answer).rpc_error.code == remote_api_pb.RpcError.BAD_REQUEST
    assert (stub.got, caplog.text) == ([], "")


@pytest.mark.parametrize("body", [b"\xff\xff garbage", b"", b"\x0a\x07default"])
def test_a_malformed_request_in_a_call_is_refused(stub: Stub, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A request that is no message, or lacks a field that the stub needs, is refused without a traceback."""
    stub.error = ValueError("a stub does not expect this")

    assert _call(stub, body=body).rpc_error.code == remote_api_pb.RpcError.BAD_REQUEST
    assert caplog.text == ""


def test_a_text_that_is_not_utf_8_is_refused(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    """A text of a service's request that is not UTF-8 is refused without a traceback."""
    stub_map = apiproxy_stub_map.APIProxyStubMap()

    class Modules(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
        def _Dynamic_GetVersions(self, request: Any, _response: Any) -> None:
            request.module.encode()

    stub_map.RegisterStub("modules", Modules("modules"))
    call = remote_api_pb.Request(
        service_name="modules", method="GetVersions", request=b"\x0a\x01\xff", request_id=TICKET
    )

    answer = RpcApplication(stub_map, [TICKET])._answer(call.SerializeToString())

    assert answer.rpc_error.code == remote_api_pb.RpcError.BAD_REQUEST
    assert caplog.text == ""


@pytest.mark.parametrize("ticket", [b"", b"wrong", b"\xff", b"\xed\xa0\x80"])
@pytest.mark.parametrize("last", [True, False])
def test_nothing_is_decoded_before_the_ticket(stub: Stub, ticket: bytes, last: bool) -> None:
    """Of a message with a wrong ticket, the rest is not decoded; if there are several tickets, the last one counts."""
    field = b"\x2a" + bytes([len(ticket)]) + ticket
    body = b"\x12\x01\xff\x22\x03bad" + (b"\x2a\x06ticket" + field if last else field)
    _status, _headers, answer = _request(stub, body)

    assert remote_api_pb.Response.FromString(answer).rpc_error.code == remote_api_pb.RpcError.SECURITY_VIOLATION


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_the_ticket_is_the_one_that_protobuf_reads(one: bytes, other: bytes) -> None:
    """For any bytes that are a message, the ticket is that of protobuf; and what is malformed has none."""
    body = one + GOOD + other
    try:
        read = remote_api_pb.Request.FromString(body).request_id
    except DecodeError:
        return
    with contextlib.suppress(ValueError):
        assert _ticket_in(body) == (read if isinstance(read, bytes) else read.encode())


def test_a_call_that_is_too_large_is_not_read(stub: Stub) -> None:
    """The body of a call with more than 32 MiB is not read, and the client learns why."""

    class NotRead(io.BytesIO):
        def read(self, _size: int | None = -1) -> bytes:
            raise AssertionError("it is read")

    started: list[Any] = []
    environ: Any = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/rpc_http",
        "CONTENT_LENGTH": str(MAX_CALL_BYTES + 1),
        "wsgi.input": NotRead(),
    }
    (answer,) = RpcApplication(None, [TICKET])(environ, lambda *given: started.extend(given))  # type: ignore[arg-type] # only the status is looked at

    assert remote_api_pb.Response.FromString(answer).rpc_error.code == remote_api_pb.RpcError.REQUEST_TOO_LARGE


def test_the_server_bounds_bodies() -> None:
    """The server answers 413 to a longer body before it has read the body."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = AppServer(RpcApplication(None, [TICKET]), listener, threads=1, max_body_bytes=MAX_HTTP_BODY_BYTES)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"POST /rpc_http HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
            assert b" 413 " in connection.recv(100)
    finally:
        server.request_stop()
        thread.join()


def test_calls_are_posted(stub: Stub) -> None:
    """A method other than POST gets 405 with an Allow header."""
    status, headers, _answer = _request(stub, b"", method="GET")
    assert status == "405 Method Not Allowed"
    assert headers["Allow"] == "POST"


def test_other_paths_go_to_the_pages(stub: Stub) -> None:
    """Other paths go to the pages; without pages, they give 404."""

    def pages(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    assert _request(stub, b"", method="GET", path="/")[0] == "404 Not Found"
    status, _headers, answer = _request(stub, b"", method="GET", path="/tasks", pages=pages)
    assert (status, answer) == ("200 OK", b"/tasks")
