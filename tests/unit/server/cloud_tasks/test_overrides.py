"""What a queue overrides in the requests of its HTTP tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from google.cloud import tasks_v2
from google.protobuf import json_format

from deferred_middleware.server.cloud_tasks.overrides import overridden
from deferred_middleware.server.store.records import HTTP_TARGET, ClaimedTask, CloudOrigin
from tests.support.storing import TASK

URL = "https://example.com:8443/own/path?own=query"


def apply(target: dict[str, Any], **fields: Any) -> ClaimedTask:
    """Return a task after what a queue overrides."""
    task = dataclasses.replace(TASK, **{"target": HTTP_TARGET, "url": URL, "origin": CloudOrigin(), **fields})
    return overridden(task, json_format.ParseDict(target, tasks_v2.HttpTarget.pb()()))


@pytest.mark.parametrize(
    ("override", "url"),
    [
        ({}, URL),
        ({"scheme": "HTTP"}, "http://example.com:8443/own/path?own=query"),
        ({"host": "example.net"}, "https://example.net:8443/own/path?own=query"),
        ({"host": "::1", "port": "5"}, "https://[::1]:5/own/path?own=query"),
        ({"port": "0"}, "https://example.com/own/path?own=query"),
        ({"pathOverride": {"path": "/users/1234"}}, "https://example.com:8443/users/1234?own=query"),
        ({"pathOverride": {"path": "users"}}, "https://example.com:8443/users?own=query"),
        ({"pathOverride": {}}, "https://example.com:8443?own=query"),
        ({"queryOverride": {"queryParams": "a=1&b=2"}}, "https://example.com:8443/own/path?a=1&b=2"),
        ({"queryOverride": {}}, "https://example.com:8443/own/path"),
        (
            {"host": "example.net", "port": "1", "pathOverride": {"path": "/x"}, "queryOverride": {"queryParams": "y"},
             "uriOverrideEnforceMode": "IF_NOT_EXISTS"},
            URL,
        ),
    ],
)  # fmt: skip
def test_the_url(override: dict[str, Any], url: str) -> None:
    """Each part of the URL can be replaced or cleared; what exists may be left alone."""
    assert apply({"uriOverride": override}).url == url


def test_what_a_url_lacks_is_filled_in() -> None:
    """IF_NOT_EXISTS fills in the parts that the task leaves out."""
    override = {"port": "9", "pathOverride": {"path": "/x"}, "queryOverride": {"queryParams": "y=1"}}
    filled = apply({"uriOverride": {**override, "uriOverrideEnforceMode": "IF_NOT_EXISTS"}}, url="http://example.com/")
    assert filled.url == "http://example.com:9/x?y=1"


def test_the_method() -> None:
    """Another method replaces the task's; GET has no body."""
    assert (apply({"httpMethod": "PUT"}).method, apply({"httpMethod": "PUT"}).body) == ("PUT", b"payload")
    assert (apply({"httpMethod": "GET"}).method, apply({"httpMethod": "GET"}).body) == ("GET", b"")


def test_headers() -> None:
    """A header replaces the task's of the same name in any spelling."""
    target = {"headerOverrides": [{"header": {"key": "X-Own", "value": "ü"}}, {"header": {"key": "Y", "value": "2"}}]}
    changed = apply(target, headers=(("x-own", "1"), ("Z", "3")))
    assert changed.headers == (("Z", "3"), ("X-Own", "Ã¼"), ("Y", "2"))


@pytest.mark.parametrize(
    ("target", "origin"),
    [
        (
            {"oidcToken": {"serviceAccountEmail": "a@b.c", "audience": "all"}},
            CloudOrigin(token="oidc", email="a@b.c", purpose="all"),
        ),
        (
            {"oauthToken": {"serviceAccountEmail": "a@b.c", "scope": "some"}},
            CloudOrigin(token="oauth", email="a@b.c", purpose="some"),
        ),
        ({}, CloudOrigin(token="oidc", email="own")),
    ],
)
def test_the_token(target: dict[str, Any], origin: CloudOrigin) -> None:
    """A queue's token replaces the task's."""
    assert apply(target, origin=CloudOrigin(token="oidc", email="own")).origin == origin
