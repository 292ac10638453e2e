"""The API over REST: JSON over HTTP/1.1, as https://cloud.google.com/tasks/docs/reference/rest describes it.

No page of a browser may use it, because it asks for no credentials: requests of browsers are refused, and so are hosts
that a stranger can have registered (DNS rebinding).
"""

from __future__ import annotations

import json
import logging
import re
import urllib.parse
from collections.abc import Collection, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format

from deferred_middleware.server.admin.guard import LOOPBACK_NAMES
from deferred_middleware.server.cloud_tasks.call_errors import HTTP_STATUS, ApiCallError, RpcCode, invalid
from deferred_middleware.server.cloud_tasks.methods import Method, Methods

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PREFIX: Final = "/v2/"
MAX_BODY_BYTES: Final = 256 << 20
"""More than the largest request has in JSON, where bodies of tasks are Base64."""

# https://cloud.google.com/apis/docs/system-parameters , and what clients add.
_SYSTEM_PARAMETERS: Final = frozenset(
    {"$alt", "alt", "$.xgafv", "access_token", "callback", "fields", "$fields", "key", "oauth_token", "prettyPrint"}
    | {"$prettyPrint", "quotaUser", "$userProject", "userProject", "uploadType", "upload_protocol", "$unique"}
)
_FIELD_MASK: Final = "google.protobuf.FieldMask"
_BROWSER_HEADERS: Final = ("HTTP_ORIGIN", "HTTP_SEC_FETCH_SITE", "HTTP_SEC_FETCH_MODE")
_HOST: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_IP_ADDRESS: Final = re.compile(r"[0-9.]+|\[.*\]")

logger: Final = logging.getLogger(__name__)


class RestApi:
    """A WSGI app that answers ``methods``, and passes what is not below ``/v2/`` to ``others`` if it is theirs.

    ``hosts`` are further names in the ``Host`` header. Names without a dot and IP addresses are always legal.
    """

    def __init__(self, methods: Methods, *, hosts: Collection[str] = (), others: WSGIApplication | None = None) -> None:
        self._methods = methods
        self._hosts = frozenset(name.lower() for name in (*hosts, *LOOPBACK_NAMES))
        self._others = others

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        path = environ.get("PATH_INFO", "")
        if self._others is not None and not path.startswith(PREFIX):
            return self._others(environ, start_response)
        try:
            check_caller(environ, self._hosts)
            status, content = HTTPStatus.OK.value, self._answer(environ, path)
        except ApiCallError as error:
            status, content = HTTP_STATUS[error.code], error_content(error)
        return send_json(environ, start_response, status, content)

    def _answer(self, environ: WSGIEnvironment, path: str) -> Mapping[str, Any]:
        query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        try:
            decoded = path.removeprefix(PREFIX).encode("latin-1").decode()
        except UnicodeDecodeError:
            decoded = ""
        for method in self._methods.all:
            found = method.url.fullmatch(decoded) if method.verb == environ["REQUEST_METHOD"] else None
            if found is not None:
                request = _request(method, found["name"], query, _body(environ) if method.has_body else b"")
                response = method.call(request)
                encoding = [value for name in ("$alt", "alt") for value in query.get(name, ())]
                return json_format.MessageToDict(
                    response, use_integers_for_enums=any("enum-encoding=int" in value for value in encoding)
                )
        raise ApiCallError(RpcCode.NOT_FOUND, f"The API has nothing at {environ['REQUEST_METHOD']} {path[:200]!r}.")


def check_caller(environ: WSGIEnvironment, hosts: Collection[str]) -> None:
    """Raise :class:`~.call_errors.ApiCallError` for a request that a page in a browser may have made."""
    host = environ.get("HTTP_HOST", "")
    found = _HOST.fullmatch(host)
    name = found["name"].lower() if found else ""
    reason = None
    if any(header in environ for header in _BROWSER_HEADERS):
        reason = "a page in a browser may not use this API"
    elif not name or ("." in name and name not in hosts and not _IP_ADDRESS.fullmatch(name)):
        reason = f"the Host header names {name or 'no host'}, which is not a name of this server; see --allow-host"
    if reason is not None:
        logger.warning("Refused %s %r: %s.", environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), reason)
        raise ApiCallError(RpcCode.PERMISSION_DENIED, f"Refused: {reason}.")


def send_json(
    environ: WSGIEnvironment, start_response: StartResponse, status: int, content: Mapping[str, Any]
) -> Iterable[bytes]:
    """Answer with JSON."""
    body = json.dumps(content, indent=2).encode() + b"\n"
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Client Closed Request"
    headers = [
        ("Content-Type", "application/json; charset=UTF-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "private"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    start_response(f"{status} {phrase}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def error_content(error: ApiCallError) -> dict[str, Any]:
    """Return an error as the service writes it (https://cloud.google.com/apis/design/errors#http_mapping)."""
    content: dict[str, Any] = {
        "code": HTTP_STATUS[error.code], "message": error.message, "status": error.code.name
    }  # fmt: skip
    if error.help_link is not None:
        description, url = error.help_link
        links = [{"description": description, "url": url}]
        content["details"] = [{"@type": "type.googleapis.com/google.rpc.Help", "links": links}]
    return {"error": content}


def read_body(environ: WSGIEnvironment) -> bytes:
    """Return the body of a request. Its length was checked before."""
    length = environ.get("CONTENT_LENGTH") or "0"
    body: bytes = environ["wsgi.input"].read(int(length) if length.isdecimal() else 0)
    return body


def _body(environ: WSGIEnvironment) -> bytes:
    return read_body(environ)


def _request(method: Method, name: str, query: Mapping[str, list[str]], body: bytes) -> Any:
    content: Any = _json(body) if body.strip() else {}
    if not isinstance(content, dict):
        raise invalid("Invalid JSON payload received. The root must be an object.")
    if method.body_field is not None:
        content = {method.body_field: content}
    descriptor = method.request.DESCRIPTOR
    for parameter, values in query.items():
        if parameter in _SYSTEM_PARAMETERS:
            continue
        field = next((one for one in descriptor.fields if parameter in (one.name, one.json_name)), None)
        if field is None or field.name == method.path_field.partition(".")[0]:
            raise invalid(
                f'Invalid JSON payload received. Unknown name "{parameter[:80]}": Cannot bind query parameter. '
                f"Field '{parameter[:80]}' could not be found in request message."
            )
        value = values[-1]
        if field.message_type is not None and field.message_type.full_name == _FIELD_MASK:
            # Clients write it in either spelling.
            value = re.sub("_([a-z])", lambda found: found[1].upper(), value)
        is_number = field.enum_type is not None and value.lstrip("-").isdecimal() and len(value) < 12
        content[field.json_name] = int(value) if is_number else value
    request = method.request()
    try:
        json_format.ParseDict(content, request)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise invalid(f"Invalid JSON payload received. {_reason(error)}") from error
    *parents, last = method.path_field.split(".")
    owner = request
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, name)
    return request


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"Invalid JSON payload received. {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] if text and not isinstance(error, RecursionError) else "It is nested too deeply."
