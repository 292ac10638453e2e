"""The API over gRPC. Importing this module imports ``grpcio``."""

from __future__ import annotations

import datetime
from concurrent import futures
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2

from deferred_middleware.server.cloud_tasks import call_errors
from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError
from deferred_middleware.server.cloud_tasks.calls.batch_calls import status_of
from deferred_middleware.server.cloud_tasks.methods import Method, Methods

THREADS: Final = 16
MAX_MESSAGE_BYTES: Final = 128 << 20
"""The largest request: a batch of 100 tasks of 1 MB, and some more."""
MAX_DEADLINE_SECONDS: Final = 30.0
_DEADLINE_TOLERANCE_SECONDS: Final = 1.0
"""The client's clock and the way of the request."""

_DETAILS: Final = "grpc-status-details-bin"
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Clients that keep a connection alive by frequent pings are not cut off.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class GrpcServer:
    """Answers ``methods`` at ``address``, such as ``unix:/path``, from :meth:`start` to :meth:`stop`."""

    def __init__(self, methods: Methods, address: str) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(THREADS, "cloud-tasks-grpc"), options=_OPTIONS)
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    service, {name: _handler(method) for name, method in by_name.items()}
                )
                for service, by_name in methods.by_service.items()
            ]
        )
        self._server.add_insecure_port(address)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """Let calls that are being answered end within ``grace_seconds``, and stop."""
        self._server.stop(grace_seconds).wait()


def _handler(method: Method) -> Any:
    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            _check_deadline(context)
            response: bytes = method.call(method.parsed(data)).SerializeToString()
        except ApiCallError as error:
            if error.help_link is not None:
                context.set_trailing_metadata(((_DETAILS, _details(error)),))
            context.abort(_CODES[error.code], error.message)
        return response

    # Without functions of its own, gRPC passes bytes; it would log the traceback of a request that can't be parsed.
    return grpc.unary_unary_rpc_method_handler(answer)


def _check_deadline(context: grpc.ServicerContext) -> None:
    remaining = context.time_remaining()
    if remaining is not None and remaining > MAX_DEADLINE_SECONDS + _DEADLINE_TOLERANCE_SECONDS:
        now = datetime.datetime.now(datetime.timezone.utc)
        try:
            deadline = now + datetime.timedelta(seconds=remaining)
        except OverflowError:
            return  # The client has no deadline; some clients say so by a very late one.
        raise call_errors.deadline_too_late(deadline)


def _details(error: ApiCallError) -> bytes:
    assert error.help_link is not None
    description, url = error.help_link
    status = status_of(error)
    help_message = error_details_pb2.Help(links=[{"description": description, "url": url}])
    status.details.add().Pack(help_message)
    serialized: bytes = status.SerializeToString()
    return serialized
