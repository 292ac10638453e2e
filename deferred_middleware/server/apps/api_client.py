"""API calls of an app process: the SDK's calls go to the queue process over connections of their own.

:func:`install` puts :class:`ApiStub` in the place of the SDK's HTTP client, with the SDK's public means. The app sees
no difference, but for the time: the thread that makes a call sends the request and reads the answer itself. The SDK's
client gives each call to another thread.

Only a call that somebody waits for with others (``UserRPC.wait_any``), and one that finds
:data:`MAX_DIRECT_CALLS` others in flight, gets a thread, because its future must be set when its answer arrives.

The SDK's client goes on working beside it: an app that runs elsewhere uses it, and so does a process that the app
starts.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING, Any

from google.appengine.api import apiproxy_rpc, apiproxy_stub_map
from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb
from google.appengine.runtime import apiproxy_errors, context, default_api_stub

from deferred_middleware.server.api.connections import receive_frame, send_frame

MAX_DIRECT_CALLS = 32
"""Up to so many calls at a time have a connection without a thread. A call that nobody waits for keeps its own."""

# As the SDK's client (runtime/default_api_stub.py).
_MAX_THREADS = 100
_TIMEOUT_SECONDS = 60.0
_GRACE_SECONDS = 1.0

_Code = remote_api_pb.RpcError
_ERRORS: dict[int, type[apiproxy_errors.Error]] = {
    _Code.UNKNOWN: apiproxy_errors.RPCFailedError,
    _Code.CALL_NOT_FOUND: apiproxy_errors.CallNotFoundError,
    _Code.PARSE_ERROR: apiproxy_errors.ArgumentError,
    _Code.OVER_QUOTA: apiproxy_errors.OverQuotaError,
    _Code.REQUEST_TOO_LARGE: apiproxy_errors.RequestTooLargeError,
    _Code.CAPABILITY_DISABLED: apiproxy_errors.CapabilityDisabledError,
    _Code.FEATURE_DISABLED: apiproxy_errors.FeatureNotEnabledError,
    _Code.RESPONSE_TOO_LARGE: apiproxy_errors.ResponseTooLargeError,
    _Code.CANCELLED: apiproxy_errors.CancelledError,
    _Code.DEADLINE_EXCEEDED: apiproxy_errors.DeadlineExceededError,
}


def install(control: socket.socket) -> bool:
    """Send the API calls of this process over ``control``; return false if the app has a default stub of its own."""
    stub_map = apiproxy_stub_map.apiproxy
    # No service has this name, so the map returns its default stub.
    if not isinstance(stub_map.GetStub("default"), default_api_stub.DefaultApiStub):
        return False
    stub_map.SetDefaultStub(ApiStub(control))
    return True


class ApiStub:
    """A stub as the SDK has them, for all services. Any thread may use it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # Any thread takes from these two lists and appends to them; both are atomic. There is no lock, because the
        # garbage collector ends forgotten calls in the middle of anything.
        self._idle: list[socket.socket] = []
        # Connections of calls, so that a forgotten call can close its own: otherwise both may be collected together.
        self._in_use: set[socket.socket] = set()
        self._free = [None] * MAX_DIRECT_CALLS
        self._threads = futures.ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="api-call")
        # A forked process would share its parent's connections and lacks its threads.
        os.register_at_fork(after_in_child=self._start_again)

    def MakeSyncCall(self, service: str, call: str, request: Any, response: Any) -> None:
        """Make a call, and wait for its answer."""
        rpc = self.CreateRPC()
        rpc.MakeCall(service, call, request, response)
        rpc.Wait()
        rpc.CheckSuccess()

    def CreateRPC(self) -> ApiCall:
        """Return a call that is not made yet."""
        return ApiCall(stub=self)

    def submit(self, work: Any) -> futures.Future[None]:
        """Have a thread do ``work``. Raises :class:`RuntimeError` if no thread can be started."""
        return self._threads.submit(work)

    def begin_direct(self) -> bool:
        """Take the place of a call without a thread; return false if there is none."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def end_direct(self) -> None:
        """Give back the place of a call without a thread."""
        self._free.append(None)

    def take(self) -> socket.socket:
        """Return a connection that no other call uses."""
        try:
            ours = self._idle.pop()
        except IndexError:
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    socket.send_fds(self._control, [b"c"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        self._in_use.add(ours)
        return ours

    def put_back(self, connection: socket.socket) -> None:
        """Keep a connection, whose answer was read, for the next call."""
        self._in_use.discard(connection)
        self._idle.append(connection)

    def drop(self, connection: socket.socket) -> None:
        """Close a connection whose answer was not read."""
        self._in_use.discard(connection)
        connection.close()

    def _start_again(self) -> None:
        self._idle, self._in_use, self._free = [], set(), [None] * MAX_DIRECT_CALLS
        self._threads = futures.ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="api-call")


if TYPE_CHECKING:
    # The SDK has no types: what is used of its class.
    class _SdkCall:
        IDLE: int
        RUNNING: int
        FINISHING: int
        package: str
        call: str
        request: Any
        response: Any
        deadline: float | None
        callback: Callable[[], object] | None
        stub: ApiStub

        def __init__(self, *arguments: Any, **options: Any) -> None: ...
        def MakeCall(self, service: str, call: str, request: Any, response: Any) -> None: ...
        def Wait(self) -> None: ...
        def CheckSuccess(self) -> None: ...
else:
    _SdkCall = apiproxy_rpc.RPC


class ApiCall(_SdkCall):
    """One API call. Any thread may wait for it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._future: futures.Future[None] | None = None
        self._connection: socket.socket | None = None
        self._is_direct = False
        self._state: int
        super().__init__(*arguments, **options)

    @property
    def future(self) -> futures.Future[None] | None:
        """The future that is set when the answer has arrived; whoever asks for it makes a thread wait."""
        if self._future is None and self._connection is not None:
            with self._lock:
                if self._future is None and self._state == self.RUNNING:
                    self._future = self.stub.submit(self._finish)
        return self._future

    @future.setter
    def future(self, value: futures.Future[None] | None) -> None:
        self._future = value

    @property
    def state(self) -> int:
        """``IDLE``, ``RUNNING`` or ``FINISHING``; a direct call finishes here if its answer has arrived."""
        if self._connection is not None and self._future is None and _is_readable(self._connection):
            self._finish()
        state: int = self._state
        return state

    def _MakeCallImpl(self) -> None:
        assert self._state == self.IDLE, self._state
        ticket = _api_ticket()
        if not ticket:
            raise apiproxy_errors.RPCFailedError(
                "an API call needs a request's ticket, and this thread has none; see "
                "DefaultApiStub.SetUseRequestSecurityTicketForThread"
            )
        request = remote_api_pb.Request(
            service_name=self.package, method=self.call, request_id=ticket, request=self.request.SerializeToString()
        ).SerializeToString()
        self._lock = threading.Lock()
        self._until = time.monotonic() + (self.deadline or _TIMEOUT_SECONDS) + _GRACE_SECONDS
        self._state = self.RUNNING
        if self.stub.begin_direct():
            self._is_direct = True
            try:
                self._send(request)
            except OSError as error:
                self._end(error)
        else:
            self._future = self.stub.submit(lambda: self._exchange(request))

    def _WaitImpl(self) -> bool:
        if self._future is not None:
            futures.wait([self._future])
        else:
            self._finish()
        return True

    def _exchange(self, request: bytes) -> None:
        try:
            self._send(request)
        except OSError as error:
            self._end(error)
        else:
            self._finish()

    def _send(self, request: bytes) -> None:
        self._connection = connection = self.stub.take()
        connection.settimeout(max(0.0, self._until - time.monotonic()))
        send_frame(connection, request)

    def _finish(self) -> None:
        """Read the answer, unless another thread has."""
        with self._lock:
            if self._state != self.RUNNING:
                return
            connection = self._connection
            assert connection is not None
            try:
                connection.settimeout(max(0.001, self._until - time.monotonic()))
                answer = receive_frame(connection)
                if answer is None:
                    raise ConnectionResetError("the queue process closed the connection")
                self._read(connection, remote_api_pb.Response.FromString(answer))
            except Exception as error:  # noqa: BLE001 - whoever checks the call gets it
                self._end(error)
            else:
                self._end(None)

    def _read(self, connection: socket.socket, answer: Any) -> None:
        # The connection can carry the next call, also if this one failed.
        self._connection = None
        self.stub.put_back(connection)
        if answer.HasField("rpc_error"):
            raise _ERRORS.get(answer.rpc_error.code, apiproxy_errors.RPCFailedError)(
                f"the API call {self.package}.{self.call} failed: {answer.rpc_error.detail}"
            )
        if answer.HasField("application_error"):
            raise apiproxy_errors.ApplicationError(answer.application_error.code, answer.application_error.detail)
        self.response.ParseFromString(answer.response)

    def _end(self, error: Exception | None) -> None:
        if isinstance(error, TimeoutError):
            error = apiproxy_errors.DeadlineExceededError(
                f"the API call {self.package}.{self.call} took too long to respond and was cancelled"
            )
        elif isinstance(error, OSError):
            failure = apiproxy_errors.RPCFailedError(f"the API call {self.package}.{self.call} failed: {error}")
            failure.__cause__ = error
            error = failure
        self._exception = error
        self._release()
        self._state = self.FINISHING
        if self.callback:
            try:
                self.callback()
            except Exception as raised:  # noqa: BLE001 - as in the SDK's client, it is the call's error
                self._exception = raised

    def _release(self) -> None:
        if self._connection is not None:
            self.stub.drop(self._connection)
            self._connection = None
        if self._is_direct:
            self._is_direct = False
            self.stub.end_direct()

    def __del__(self) -> None:
        # Nobody waits for it any more. The queue process answers all the same.
        self._release()


def _is_readable(connection: socket.socket) -> bool:
    poll = select.poll()
    try:
        poll.register(connection, select.POLLIN)
    except ValueError:  # another thread has closed it
        return False
    return bool(poll.poll(0))


def _api_ticket() -> str | None:
    """Return the ticket of the request, by the rules of the SDK's client; ``None`` outside of a request."""
    if not default_api_stub.DefaultApiStub.ShouldUseRequestSecurityTicketForThread():
        return None
    headers = context.gae_headers
    if context.READ_FROM_OS_ENVIRON:
        return os.environ.get(default_api_stub.TICKET_HEADER) or os.environ.get(default_api_stub.DEV_TICKET_HEADER)
    ticket: str | None = headers.API_TICKET.get(headers.DEV_REQUEST_ID.get(None))
    return ticket
