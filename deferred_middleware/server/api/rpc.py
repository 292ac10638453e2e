"""The API calls of the SDK: ``POST /rpc_http``, and over the app processes' own connections.

An app's unmodified SDK sends each API call as a ``remote_api`` request: the service, the method, the request as bytes,
and the API ticket, which shows that the app belongs to this server. The answer is always HTTP 200; an error is inside.
The ticket is looked for in the bytes of the message. Nothing else is decoded before it is checked.
Source: the SDK's ``google/appengine/runtime/default_api_stub.py``.

A call does not say which protocol buffers its bytes are, so :func:`message_types` has a table. Sources: the calls in
``google/appengine/api/*`` and ``google/appengine/datastore/datastore_rpc.py`` of appengine-python-standard 3.1.0.
"""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb
from google.appengine.runtime import apiproxy_errors
from google.protobuf.message import DecodeError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from google.protobuf.message import Message

    MessageTypes = tuple[type[Message], type[Message]]

logger: Final = logging.getLogger(__name__)

_MEMCACHE_METHODS = {
    # method: the stem of its messages' names
    "Get": "Get",
    "Set": "Set",
    "Delete": "Delete",
    "Increment": "Increment",
    "BatchIncrement": "BatchIncrement",
    "FlushAll": "Flush",
    "Stats": "Stats",
}
_MODULES_METHODS = (
    "GetModules",
    "GetVersions",
    "GetDefaultVersion",
    "GetNumInstances",
    "SetNumInstances",
    "StartModule",
    "StopModule",
    "GetHostname",
)
_APP_IDENTITY_METHODS = {
    "SignForApp": "SignForApp",
    "GetPublicCertificatesForApp": "GetPublicCertificateForApp",
    "GetServiceAccountName": "GetServiceAccountName",
    "GetDefaultGcsBucketName": "GetDefaultGcsBucketName",
    "GetAccessToken": "GetAccessToken",
}
_USER_METHODS = ("CreateLoginURL", "CreateLogoutURL", "GetOAuthUser")
_IMAGES_METHODS = ("Transform", "Composite", "Histogram", "GetUrlBase", "DeleteUrlBase")
_SEARCH_METHODS = ("IndexDocument", "DeleteDocument", "ListIndexes", "DeleteSchema", "ListDocuments", "Search")
_TASKQUEUE_METHODS = (
    "Add",
    "BulkAdd",
    "Delete",
    "ForceRun",
    "UpdateQueue",
    "FetchQueues",
    "FetchQueueStats",
    "PauseQueue",
    "PurgeQueue",
    "DeleteQueue",
    "DeleteGroup",
    "QueryTasks",
    "FetchTask",
    "QueryAndOwnTasks",
    "ModifyTaskLease",
    "UpdateStorageLimit",
)


def message_types(service: str, method: str) -> MessageTypes:
    """Return the classes of the request and the response. Raises :class:`KeyError` for an unknown method."""
    return _table()[service, method]


@functools.cache
def _table() -> dict[tuple[str, str], MessageTypes]:
    # These modules take long to import, so they are imported with the first call.
    from google.appengine.api import api_base_pb2, mail_service_pb2, urlfetch_service_pb2, user_service_pb2
    from google.appengine.api.app_identity import app_identity_service_pb2
    from google.appengine.api.capabilities import capability_service_pb2
    from google.appengine.api.images import images_service_pb2
    from google.appengine.api.memcache import memcache_service_pb2
    from google.appengine.api.modules import modules_service_pb2
    from google.appengine.api.search import search_service_pb2
    from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2
    from google.appengine.datastore import datastore_v3_bytes_pb2, entity_bytes_pb2

    def pair(module: Any, stem: str) -> MessageTypes:
        return getattr(module, f"{stem}Request"), getattr(module, f"{stem}Response")

    void = api_base_pb2.VoidProto
    datastore = datastore_v3_bytes_pb2
    index = entity_bytes_pb2.CompositeIndex
    table: dict[tuple[str, str], MessageTypes] = {
        ("datastore_v3", "Get"): pair(datastore, "Get"),
        ("datastore_v3", "Put"): pair(datastore, "Put"),
        ("datastore_v3", "Delete"): pair(datastore, "Delete"),
        ("datastore_v3", "Touch"): pair(datastore, "Touch"),
        ("datastore_v3", "RunQuery"): (datastore.Query, datastore.QueryResult),
        ("datastore_v3", "Next"): (datastore.NextRequest, datastore.QueryResult),
        ("datastore_v3", "AllocateIds"): pair(datastore, "AllocateIds"),
        ("datastore_v3", "BeginTransaction"): (datastore.BeginTransactionRequest, datastore.Transaction),
        ("datastore_v3", "Commit"): (datastore.Transaction, datastore.CommitResponse),
        ("datastore_v3", "Rollback"): (datastore.Transaction, void),
        ("datastore_v3", "AddActions"): pair(taskqueue_service_bytes_pb2, "TaskQueueBulkAdd"),
        ("datastore_v3", "GetIndices"): (datastore.GetIndicesRequest, datastore.CompositeIndices),
        ("datastore_v3", "CreateIndex"): (index, api_base_pb2.Integer64Proto),
        ("datastore_v3", "UpdateIndex"): (index, void),
        ("datastore_v3", "DeleteIndex"): (index, void),
        ("mail", "Send"): (mail_service_pb2.MailMessage, void),
        ("mail", "SendToAdmins"): (mail_service_pb2.MailMessage, void),
        ("urlfetch", "Fetch"): pair(urlfetch_service_pb2, "URLFetch"),
        ("capability_service", "IsEnabled"): pair(capability_service_pb2, "IsEnabled"),
    }
    for method, stem in _MEMCACHE_METHODS.items():
        table["memcache", method] = pair(memcache_service_pb2, f"Memcache{stem}")
    for method in _MODULES_METHODS:
        table["modules", method] = pair(modules_service_pb2, method)
    for method, stem in _APP_IDENTITY_METHODS.items():
        table["app_identity_service", method] = pair(app_identity_service_pb2, stem)
    for method in _IMAGES_METHODS:
        table["images", method] = pair(images_service_pb2, f"Images{method}")
    for method in _SEARCH_METHODS:
        table["search", method] = pair(search_service_pb2, method)
    for method in _USER_METHODS:
        table["user", method] = pair(user_service_pb2, method)
    for method in _TASKQUEUE_METHODS:
        table["taskqueue", method] = pair(taskqueue_service_bytes_pb2, f"TaskQueue{method}")
    return table


RPC_PATH = "/rpc_http"
MAX_CALL_BYTES = 32 << 20
"""The size of an API call (https://cloud.google.com/appengine/docs/standard/quotas, "API request size")."""
MAX_HTTP_BODY_BYTES = MAX_CALL_BYTES + (1 << 20)
"""The bound for the HTTP server, which reads a body before the ticket in it can be checked. It is larger, so that a
call of the SDK that is a little too large gets an answer that names the reason."""

_Code = remote_api_pb.RpcError
# The SDK's client turns the codes back into the exceptions.
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
    """A WSGI app that answers API calls with the stubs of ``stub_map``, an ``APIProxyStubMap``.

    A call must have one of ``tickets``. Requests for other paths go to ``pages``; without it, they get 404. Several
    threads call the stubs at a time.
    """

    def __init__(self, stub_map: Any, tickets: Collection[str], *, pages: WSGIApplication | None = None) -> None:
        self._stub_map = stub_map
        self._tickets = [ticket.encode() for ticket in tickets]
        self._pages = pages

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer an API call, or pass the request to ``pages``."""
        if environ.get("PATH_INFO") != RPC_PATH:
            if self._pages is not None:
                return self._pages(environ, start_response)
            return _plain(start_response, "404 Not Found", b"Not found.\n")
        if environ["REQUEST_METHOD"] != "POST":
            return _plain(start_response, "405 Method Not Allowed", b"Use POST for API calls.\n", ("Allow", "POST"))
        # The server has read the whole body and sets its length, also if the body came in chunks.
        length = int(environ.get("CONTENT_LENGTH") or 0)
        # A call that is too large is not read.
        answer = _too_large() if length > MAX_CALL_BYTES else self._answer(environ["wsgi.input"].read(length))
        return _respond(start_response, answer)

    def answer(self, body: bytes) -> bytes:
        """Answer an API call: the bytes of a ``remote_api`` request; return those of the response."""
        answer: bytes = self._answer(body).SerializeToString()
        return answer

    def _answer(self, body: bytes) -> Any:
        if len(body) > MAX_CALL_BYTES:
            return _too_large()
        try:
            shown = _ticket_in(body)
        except ValueError:
            return _failure(_Code.BAD_REQUEST, "this is not an API call: the message is malformed")
        if not any(hmac.compare_digest(shown, ticket) for ticket in self._tickets):
            return _failure(
                _Code.SECURITY_VIOLATION,
                "the API ticket is not this server's; did another server, or an earlier one, start the app?",
            )
        try:
            call = remote_api_pb.Request.FromString(body)
        except DecodeError as error:
            return _failure(_Code.BAD_REQUEST, f"this is not an API call: {error}")
        name = f"{call.service_name}.{call.method}"
        stub = self._stub_map.GetStub(call.service_name)
        try:
            request_type, response_type = message_types(call.service_name, call.method)
        except KeyError:
            return _not_here(name)
        if stub is None:
            return _not_here(name)
        try:
            request = request_type.FromString(call.request)
        except DecodeError as error:
            return _failure(_Code.BAD_REQUEST, f"the request of {name} is malformed: {error}")
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
        except Exception as error:
            if _lacks_method(stub, call.method, error):
                return _not_here(name)
            if _is_malformed(request):
                return _failure(_Code.BAD_REQUEST, f"the request of {name} is malformed: {error}")
            logger.exception("The API call %s failed.", name)
            return _failure(_Code.UNKNOWN, f"{type(error).__name__}: {error}")


_TICKET_FIELD = remote_api_pb.Request.DESCRIPTOR.fields_by_name["request_id"].number
_MAX_FIELDS = 100
"""How many fields of a call are looked at; the SDK's client sends four."""
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def _ticket_in(body: bytes) -> bytes:
    """Return the ticket in a serialized call, without decoding anything else; empty bytes if there is none.

    Raises :class:`ValueError` if the bytes are no message (https://protobuf.dev/programming-guides/encoding/).
    """
    ticket, position = b"", 0
    for _ in range(_MAX_FIELDS):
        if position == len(body):
            return ticket
        tag, position = _varint(body, position)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, position = _varint(body, position)
        elif kind == _BYTES:
            length, start = _varint(body, position)
            position = start + length
            if field == _TICKET_FIELD:
                ticket = body[start:position]  # as in protobuf, the last one counts
        elif kind in (_FIXED_64, _FIXED_32):
            position += 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError("a field has an unknown type")
        if position > len(body):
            raise ValueError("a field has no end")
    if position == len(body):
        return ticket
    raise ValueError("there are too many fields")


def _varint(body: bytes, position: int) -> tuple[int, int]:
    """Return the number at ``position``, and the position after it."""
    number = 0
    for index, byte in enumerate(body[position : position + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, position + index + 1
    raise ValueError("a number has no end")


def _not_here(name: str) -> Any:
    """Return the failure of a call that the server does not have; the SDK drops its text, so the log has it too."""
    detail = f"the local server does not have {name}"
    logger.warning("An API call failed: %s.", detail)
    return _failure(_Code.CALL_NOT_FOUND, detail)


def _lacks_method(stub: object, method: str, error: Exception) -> bool:
    """Tell whether ``error`` says that one of the SDK's stubs does not have a method."""
    if not isinstance(error, AttributeError) or error.obj is not stub:
        return False
    return (error.name or "").endswith(f"_{method}")


def _too_large() -> Any:
    return _failure(_Code.REQUEST_TOO_LARGE, f"an API call may have at most {MAX_CALL_BYTES:,} bytes")


def _failure(code: int, detail: str) -> Any:
    response = remote_api_pb.Response()
    response.rpc_error.code = code
    response.rpc_error.detail = detail
    return response


def _is_malformed(message: Message) -> bool:
    """Tell whether a message lacks a required field, or has a text that is not UTF-8, which protobuf reads as bytes."""
    if not message.IsInitialized():
        return True
    for field, value in message.ListFields():
        if isinstance(value, (str, int, float)) or field.type == field.TYPE_BYTES:
            continue
        items = value if isinstance(value, Sequence) and not isinstance(value, bytes) else [value]
        for item in items:
            if field.type == field.TYPE_STRING and isinstance(item, bytes):
                return True
            if field.type in (field.TYPE_MESSAGE, field.TYPE_GROUP) and _is_malformed(item):
                return True
    return False


def _respond(start_response: StartResponse, response: Any) -> Iterable[bytes]:
    answer = response.SerializeToString()
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(answer)))])
    return [answer]


def _as_text(detail: object) -> str:
    return detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail or "")


def _plain(start_response: StartResponse, status: str, body: bytes, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(
        status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *headers]
    )
    return [body]
