"""What a queue overrides in the requests of its HTTP tasks: ``Queue.http_target``.

Rules: https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#httptarget . The tasks stay as they are;
only their requests differ.
"""

from __future__ import annotations

import dataclasses
import urllib.parse
from typing import Any, Final

from google.cloud import tasks_v2

from deferred_middleware.server.store.records import ClaimedTask, CloudOrigin

_UriOverride: Final[Any] = tasks_v2.UriOverride.pb()
_IF_NOT_EXISTS: Final = _UriOverride.UriOverrideEnforceMode.Value("IF_NOT_EXISTS")
_HTTP: Final = _UriOverride.Scheme.Value("HTTP")


def overridden(task: ClaimedTask, target: Any) -> ClaimedTask:
    """Return a task with what the ``HttpTarget`` of its queue overrides."""
    changes: dict[str, Any] = {"url": _url(task.url, target.uri_override)}
    if target.http_method:
        changes["method"] = tasks_v2.HttpMethod(target.http_method).name
        if changes["method"] == "GET":
            # "the body of the task will be ignored at execution time"
            changes["body"] = b""
    headers = [one.header for one in target.header_overrides]
    if headers:
        replaced = {header.key.lower() for header in headers}
        kept = tuple((name, value) for name, value in task.headers if name.lower() not in replaced)
        added = tuple((header.key, header.value.encode().decode("latin-1")) for header in headers)
        changes["headers"] = (*kept, *added)
    kind = target.WhichOneof("authorization_header")
    if kind == "oidc_token":
        token = target.oidc_token
        changes["origin"] = CloudOrigin(token="oidc", email=token.service_account_email, purpose=token.audience)
    elif kind == "oauth_token":
        token = target.oauth_token
        changes["origin"] = CloudOrigin(token="oauth", email=token.service_account_email, purpose=token.scope)
    return dataclasses.replace(task, **changes)


def _url(url: str, override: Any) -> str:
    parts = urllib.parse.urlsplit(url)
    keep_own = override.uri_override_enforce_mode == _IF_NOT_EXISTS
    scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    path, query = parts.path, parts.query
    if override.HasField("scheme") and not (keep_own and scheme):
        scheme = "http" if override.scheme == _HTTP else "https"
    if override.HasField("host") and not (keep_own and host):
        host = override.host
    if override.HasField("port") and not (keep_own and port is not None):
        # "Setting the port to 0 (Zero) clears the URI port."
        port = override.port or None
    if override.HasField("path_override") and not (keep_own and path.strip("/")):
        path = override.path_override.path
        path = path if path.startswith("/") or not path else f"/{path}"
    if override.HasField("query_override") and not (keep_own and query):
        query = override.query_override.query_params.removeprefix("?")
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return urllib.parse.urlunsplit((scheme, f"{host}:{port}" if port is not None else host, path, query, ""))
