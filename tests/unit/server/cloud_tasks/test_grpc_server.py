"""The API over gRPC: what a client's own messages can't show."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.cloud import tasks_v2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from deferred_middleware.server.cloud_tasks.grpc_server import GrpcServer
from deferred_middleware.server.cloud_tasks.methods import CLOUD_TASKS
from deferred_middleware.server.store.store import TaskStore
from tests.support.cloud_api import QUEUE, Api
from tests.support.storing import Clock


class Channel:
    """Sends bytes to a server."""

    def __init__(self, channel: grpc.Channel, api: Api) -> None:
        self._channel = channel
        self.methods = api.methods

    def call(self, method: str, data: bytes, *, timeout: float | None = 10, service: str = CLOUD_TASKS) -> bytes:
        """Call a method with bytes, and return those of the response."""
        call: Any = self._channel.unary_unary(f"/{service}/{method}")
        answer: bytes = call(data, timeout=timeout)
        return answer


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    """Connect to a server with one queue."""
    store = TaskStore(tmp_path_factory.mktemp("grpc") / "tasks.sqlite")
    api = Api(store, Clock())
    api.make_queue()
    # A socket's path may have about 100 characters; pytest's directories are longer.
    with tempfile.TemporaryDirectory() as folder:
        server = GrpcServer(api.methods, f"unix:{folder}/s")
        server.start()
        with grpc.insecure_channel(f"unix:{folder}/s") as opened:
            yield Channel(opened, api)
        server.stop(0)
    store.close()


def refused(caught: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str]:
    """Return the code and the details of an error."""
    error: Any = caught.value
    return error.code(), error.details()


def test_bytes_that_are_no_message(channel: Channel) -> None:
    """The answer is INVALID_ARGUMENT."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.call("CreateTask", b"\xff\xff\xff")
    assert refused(caught) == (grpc.StatusCode.INVALID_ARGUMENT, "The request is not a valid message.")


def test_a_deadline_that_is_too_late(channel: Channel) -> None:
    """The service takes no deadline of more than 30 seconds."""
    # Other tests delete queues of the same server.
    request = tasks_v2.ListQueuesRequest.pb()(parent=QUEUE.partition("/queues/")[0]).SerializeToString()
    channel.call("ListQueues", request, timeout=30)
    channel.call("ListQueues", request, timeout=None)
    with pytest.raises(grpc.RpcError) as caught:
        channel.call("ListQueues", request, timeout=60)
    code, details = refused(caught)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("The request deadline is 20")
    assert details.endswith("The deadline cannot be more than 30s in the future.")


def test_an_error_has_a_link_for_people(channel: Channel) -> None:
    """The details of an error are those that the service attaches."""
    request = tasks_v2.GetTaskRequest.pb()(name=f"{QUEUE}/tasks/a b").SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        channel.call("GetTask", request)
    error: Any = caught.value
    (details,) = (value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    status = status_pb2.Status.FromString(details)
    help_message = error_details_pb2.Help()
    assert status.details[0].Unpack(help_message)
    assert help_message.links[0].description == "Definition of task ID"
    assert (status.code, status.message) == (error.code().value[0], error.details())


@pytest.mark.parametrize("method", ["SetIamPolicy", "GetIamPolicy", "TestIamPermissions", "GetCmekConfig", "Unknown"])
def test_what_is_not_implemented(channel: Channel, method: str) -> None:
    """The answer is UNIMPLEMENTED."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.call(method, b"")
    assert refused(caught)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_every_method_of_the_client_is_there(channel: Channel) -> None:
    """No method that Google's client has is missing."""
    from google.cloud.tasks_v2.services.cloud_tasks.transports import CloudTasksTransport

    names = {
        "".join(part.capitalize() for part in name.split("_"))
        for name, value in vars(CloudTasksTransport).items()
        if isinstance(value, property) and name not in ("kind", "host", "operations_client")
    }
    ours = {method.name for method in channel.methods.all}
    assert names - ours == set()


ALLOWED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
}


@settings(max_examples=200)
@given(data=st.data())
def test_any_message_has_an_answer(channel: Channel, data: st.DataObject) -> None:
    """Whatever fields a message has, the answer is a result or an error of the client's."""
    method = data.draw(st.sampled_from(channel.methods.all))
    request = method.request()
    data.draw(messages(request))
    try:
        channel.call(method.name, request.SerializeToString(), service=method.service)
    except grpc.RpcError as error:
        failure: Any = error
        assert failure.code() in ALLOWED, failure.details()


@settings(max_examples=100)
@given(data=st.binary(max_size=200), position=st.integers(0, 50))
def test_any_bytes_have_an_answer(channel: Channel, data: bytes, position: int) -> None:
    """Random bytes, also inside a message, have an answer."""
    whole = tasks_v2.CreateTaskRequest.pb()(
        parent=QUEUE, task={"http_request": {"url": "http://a"}}
    ).SerializeToString()
    try:
        channel.call("CreateTask", whole[:position] + data + whole[position:])
    except grpc.RpcError as error:
        failure: Any = error
        assert failure.code() in ALLOWED, failure.details()


STRINGS = st.text(max_size=30) | st.sampled_from(
    [QUEUE, QUEUE.rpartition("/queues")[0], f"{QUEUE}/tasks/a", "http://localhost", "https://a.b", "/x", "a@b.c"]
)


@st.composite
def messages(draw: st.DrawFn, message: Any, depth: int = 0) -> Any:
    """Fill a message with anything that its fields can hold."""
    for field in message.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entries = getattr(message, field.name)
            if field.message_type.fields_by_name["value"].message_type is None:
                entries[draw(STRINGS)] = draw(STRINGS)
        elif field.message_type is not None:
            if depth > 4:
                continue
            if field.is_repeated:
                for _ in range(draw(st.integers(0, 3))):
                    draw(messages(getattr(message, field.name).add(), depth + 1))
            else:
                part = getattr(message, field.name)
                part.SetInParent()
                draw(messages(part, depth + 1))
        else:
            value = draw(scalars(field))
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


def scalars(field: Any) -> st.SearchStrategy[Any]:
    """Return values of a field."""
    kinds: dict[int, st.SearchStrategy[Any]] = {
        field.CPPTYPE_STRING: STRINGS if field.type == field.TYPE_STRING else st.binary(max_size=30),
        field.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 20),
        field.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 100),
        field.CPPTYPE_DOUBLE: st.floats() | st.floats(0, 10),
        field.CPPTYPE_BOOL: st.booleans(),
        field.CPPTYPE_ENUM: st.integers(-3, 12),
    }
    return kinds[field.cpp_type]
