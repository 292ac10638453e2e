"""The SDK's side of the wire: ``POST /rpc_http``.

An app's unmodified SDK sends each API call as a ``remote_api`` request: service, method, the request's bytes, and the
ticket that shows it is one of our apps. The answer is always HTTP 200; what went wrong is inside. Source: the SDK's
``google/appengine/runtime/default_api_stub.py``.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb
from google.appengine.runtime import apiproxy_errors
from google.protobuf.message import DecodeError

from deferred_middleware.server.api.sdk_messages import message_types

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_log = logging.getLogger(__name__)

RPC_PATH = "/rpc_http"

_Code = remote_api_pb.RpcError
# The SDK's client turns these codes back into these exceptions.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (apiproxy_errors.CallNotFoundError, _Code.CALL_NOT_FOUND),
    (apiproxy_errors.ArgumentError, _Code.PARSE_ERROR),
    (apiproxy_errors.OverQuotaError, _Code.OVER_QUOTA),
    (apiproxy_errors.RequestTooLargeError, _Code.REQUEST_TOO_LARGE),
    (apiproxy_errors.ResponseTooLargeError, _Code.RESPONSE_TOO_LARGE),
    (apiproxy_errors.CapabilityDisabledError, _Code.CAPABILITY_DISABLED),
    (apiproxy_errors.FeatureNotEnabledError, _Code.FEATURE_DISABLED),
    (apiproxy_errors.CancelledError, _Code.CANCELLED),
    (apiproxy_errors.DeadlineExceededError, _Code.DEADLINE_EXCEEDED),
)


class RpcApplication:
    """A WSGI app that answers API calls from ``stub_map``, an ``APIProxyStubMap``, to whoever has one of ``tickets``.

    Other paths go to ``pages``; without it they are not found. Stubs are called by several threads at a time.
    """

    def __init__(self, stub_map: Any, tickets: Collection[str], *, pages: WSGIApplication | None = None) -> None:
        self._stub_map = stub_map
        self._tickets = [ticket.encode() for ticket in tickets]
        self._pages = pages

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer an API call, or let ``pages`` answer."""
        if environ.get("PATH_INFO") != RPC_PATH:
            if self._pages is not None:
                return self._pages(environ, start_response)
            return _plain(start_response, "404 Not Found", b"Not found.\n")
        if environ["REQUEST_METHOD"] != "POST":
            return _plain(start_response, "405 Method Not Allowed", b"API calls are POSTed.\n", ("Allow", "POST"))
        # The server has read the whole body; where it came in chunks it says how long it is all the same.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer = self._answer(body).SerializeToString()
        start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(answer)))])
        return [answer]

    def _answer(self, body: bytes) -> Any:
        try:
            call = remote_api_pb.Request.FromString(body)
        except DecodeError as error:
            return _failure(_Code.BAD_REQUEST, f"this is no API call: {error}")
        shown = call.request_id.encode()
        if not any(hmac.compare_digest(shown, ticket) for ticket in self._tickets):
            return _failure(
                _Code.SECURITY_VIOLATION,
                "the API ticket is not this server's; was the app started by another server, or an earlier one?",
            )
        name = f"{call.service_name}.{call.method}"
        stub = self._stub_map.GetStub(call.service_name)
        try:
            request_type, response_type = message_types(call.service_name, call.method)
        except KeyError:
            return _failure(_Code.CALL_NOT_FOUND, "")
        if stub is None or not hasattr(stub, f"_Dynamic_{call.method}"):
            return _failure(_Code.CALL_NOT_FOUND, "the local server does not have it")
        try:
            request = request_type.FromString(call.request)
        except DecodeError as error:
            return _failure(_Code.PARSE_ERROR, str(error))
        response = response_type()
        try:
            stub.MakeSyncCall(call.service_name, call.method, request, response, call.request_id)
            return remote_api_pb.Response(response=response.SerializeToString())
        except apiproxy_errors.ApplicationError as error:
            failed = remote_api_pb.Response()
            failed.application_error.code = error.application_error
            failed.application_error.detail = _as_text(error.error_detail)
            return failed
        except apiproxy_errors.Error as error:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), _Code.UNKNOWN)
            return _failure(code, _as_text(error))
        except Exception as error:  # noqa: BLE001 - a stub's own defect; the app gets an error that it can report
            _log.exception("The API call %s failed.", name)
            return _failure(_Code.UNKNOWN, f"{type(error).__name__}: {error}")


def _failure(code: int, detail: str) -> Any:
    response = remote_api_pb.Response()
    response.rpc_error.code = code
    response.rpc_error.detail = detail
    return response


def _as_text(detail: object) -> str:
    return detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail or "")


def _plain(start_response: StartResponse, status: str, body: bytes, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(
        status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *headers]
    )
    return [body]
