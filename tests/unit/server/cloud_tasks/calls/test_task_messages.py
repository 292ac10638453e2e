"""The message Task: what is checked, filled in and shown."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError, RpcCode
from deferred_middleware.server.cloud_tasks.calls.task_messages import Task, rpc_code_of
from deferred_middleware.server.store.records import CloudOrigin, RetryPolicy
from deferred_middleware.server.store.store import TaskStore
from tests.support.cloud_api import QUEUE, Api
from tests.support.storing import NOW, Clock

STORED = "mail@europe-west1.my-project"


@pytest.fixture
def api(store: TaskStore, clock: Clock) -> Api:
    """Return the API with one queue."""
    api = Api(store, clock)
    api.make_queue()
    return api


def at(seconds: float) -> str:
    """Return a time relative to now."""
    moment = datetime.datetime.fromtimestamp(NOW / 1e6, datetime.timezone.utc)
    return (moment + datetime.timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"httpRequest": {"url": "http://localhost", "httpMethod": "GET", "body": "YQ=="}}, "A request body is not"),
        ({"httpRequest": {"url": "http://localhost", "httpMethod": 99}}, "99 is not an HttpMethod."),
        ({"httpRequest": {"url": "http://localhost/" + "a" * 2083}}, "HttpRequest.url must have at most 2083"),
        ({"httpRequest": {"url": "http://a", "headers": {"a b": "c"}}}, "The header 'a b' is not valid."),
        ({"httpRequest": {"url": "http://a", "headers": {"": "c"}}}, "The header '' is not valid."),
        ({"httpRequest": {"url": "http://a", "headers": {"A": "b\r\nC: d"}}}, "The header 'A' is not valid."),
        ({"httpRequest": {"url": "http://a", "headers": {"A": "b" * 82_000}}}, "The size of the headers must be"),
        ({"httpRequest": {"url": "https://a.b", "oidcToken": {}}}, "HttpRequest.oidcToken.serviceAccountEmail is"),
        ({"httpRequest": {"url": "https://a.b", "oauthToken": {}}}, "HttpRequest.oauthToken.serviceAccountEmail is"),
        ({"httpRequest": {"url": "http://a.b", "oauthToken": {"serviceAccountEmail": "a"}}}, "HttpRequest.url must"),
        ({"appEngineHttpRequest": {"relativeUri": "work"}}, "AppEngineHttpRequest.relativeUri must begin with '/'"),
        ({"appEngineHttpRequest": {"relativeUri": "/a b"}}, "AppEngineHttpRequest.relativeUri must begin with '/'"),
        ({"appEngineHttpRequest": {"httpMethod": "PATCH", "body": "YQ=="}}, "A request body is not allowed"),
        ({"appEngineHttpRequest": {"appEngineRouting": {"version": "a.b"}}}, "AppEngineRouting.version is not valid"),
        ({"httpRequest": {"url": "http://a"}, "retryConfig": {"maxAttempts": -2}}, "RetryConfig.maxAttempts must be"),
        ({"httpRequest": {"url": "http://a"}, "dispatchDeadline": "0s"}, "Task.dispatchDeadline must be between"),
        ({"httpRequest": {"url": "http://a"}, "scheduleTime": at(30 * 86_400 + 1)}, "The Task.scheduleTime, 2023-12-1"),
        ({}, "Task.message_type is not set."),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_refused(api: Api, task: dict[str, Any], message: str) -> None:
    """The error says what is wrong, and nothing is added."""
    with pytest.raises(ApiCallError) as caught:
        api.call("CreateTask", {"parent": QUEUE, "task": task})
    assert caught.value.code is RpcCode.INVALID_ARGUMENT
    assert caught.value.message.startswith(message)
    assert api.store.queries.counts() == {}
    assert api.wakes == 0


@pytest.mark.parametrize(
    "url",
    ["http://localhost:80/", "http://127.0.0.1/", "http://app:8080/", "http://10.1.2.3/", "http://a.internal/",
     "http://[::1]/", "http://my.test/", "https://example.com/"],
)  # fmt: skip
def test_a_token_needs_https_only_among_strangers(api: Api, url: str) -> None:
    """On one's own machine or network, a task with a token may have an http URL."""
    task = {"httpRequest": {"url": url, "oidcToken": {"serviceAccountEmail": "a@b.c"}}}
    api.call("CreateTask", {"parent": QUEUE, "task": task})


@pytest.mark.parametrize(
    "url", ["http://example.com/", "http://8.8.8.8/", "http://localhost.example.org/", "http://[/"]
)
def test_a_token_over_http_to_strangers_is_refused(api: Api, url: str) -> None:
    """Elsewhere the service's own rule holds."""
    task = {"httpRequest": {"url": url, "oidcToken": {"serviceAccountEmail": "a@b.c"}}}
    with pytest.raises(ApiCallError, match=r"HttpRequest\.url must start with 'https://' for request with"):
        api.call("CreateTask", {"parent": QUEUE, "task": task})


def test_what_is_stored_of_an_http_task(api: Api) -> None:
    """The store has the whole request; header values are bytes."""
    api.make_task(
        name=f"{QUEUE}/tasks/one",
        httpRequest={
            "url": "http://localhost/ü",
            "httpMethod": "PUT",
            "headers": {"X-Own": " ü ", "Host": "elsewhere", "X-Google-A": "1", "Content-Length": "5"},
            "body": "AP8=",
            "oauthToken": {"serviceAccountEmail": "a@b.c", "scope": "some"},
        },
        scheduleTime=at(60.5),
        dispatchDeadline="20.1239s",
        retryConfig={"maxAttempts": 3, "minBackoff": "2s"},
    )
    task = api.store.queries.get(STORED, "one")
    assert task is not None
    assert (task.method, task.url, task.body, task.target) == ("PUT", "http://localhost/ü", b"\x00\xff", "http:")
    assert task.headers == (("X-Own", "Ã¼"),)
    assert task.eta_usec == NOW + 60_500_000
    assert task.dispatch_deadline_usec == 20_123_000
    assert task.retry == RetryPolicy(retry_limit=2, min_backoff_seconds=2)
    assert task.origin == CloudOrigin(token="oauth", email="a@b.c", purpose="some")


def test_what_is_stored_of_an_app_engine_task(api: Api) -> None:
    """A task for App Engine has a target, and its content type if it has a body."""
    routing = {"service": "worker", "version": "v1", "host": "ignored"}
    request = {"relativeUri": "/a?b=ü", "body": "AP8=", "appEngineRouting": routing, "headers": {"X-AppEngine-A": "1"}}
    name = f"{QUEUE}/tasks/one"
    api.call("CreateTask", {"parent": QUEUE, "task": {"name": name, "appEngineHttpRequest": request}})
    task = api.store.queries.get(STORED, "one")
    assert task is not None
    assert (task.method, task.url, task.target) == ("POST", "/a?b=%C3%BC", "v1.worker")
    assert task.headers == (("Content-Type", "application/octet-stream"),)
    assert task.origin == CloudOrigin()
    shown = api.call("GetTask", {"name": name})["appEngineHttpRequest"]
    assert shown["appEngineRouting"] == {"service": "worker", "version": "v1", "host": "v1.worker.localhost"}
    assert "dispatchDeadline" not in api.call("GetTask", {"name": name})


@pytest.mark.parametrize("given", [None, at(-100), at(0)])
def test_a_time_that_has_passed_is_now(api: Api, given: str | None) -> None:
    """Without a time, or with one in the past, a task is due now."""
    task = api.make_task(**({} if given is None else {"scheduleTime": given}))
    assert datetime.datetime.fromisoformat(task["scheduleTime"].replace("Z", "+00:00")).isoformat() == at(0)


@pytest.mark.parametrize(("seconds", "nanos"), [(2**62, 0), (-(2**62), 0), (0, -1), (0, 2_000_000_000)])
def test_a_time_that_is_none(api: Api, seconds: int, nanos: int) -> None:
    """A message can hold times that do not exist; those in the past are now."""
    method = api.method("CreateTask")
    request = method.request(parent=QUEUE, task={"http_request": {"url": "http://localhost"}})
    request.task.schedule_time.seconds, request.task.schedule_time.nanos = seconds, nanos
    if seconds < 0:
        assert method.call(request).schedule_time.seconds == NOW // 1_000_000
        return
    with pytest.raises(ApiCallError, match="not a valid time"):
        method.call(request)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (None, "UNAVAILABLE"), (302, "UNKNOWN"), (400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"),
        (404, "NOT_FOUND"),
        (418, "FAILED_PRECONDITION"), (429, "RESOURCE_EXHAUSTED"), (500, "INTERNAL"), (502, "INTERNAL"),
        (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED"),
    ],
)  # fmt: skip
def test_a_status_is_a_code(status: int | None, code: str) -> None:
    """The status of a response is shown as the code that it means."""
    assert rpc_code_of(status).name == code


def test_output_only_fields_are_ignored(api: Api) -> None:
    """A client can't say what the service counts."""
    task = api.make_task(dispatchCount=5, responseCount=4, createTime=at(-1000), view="FULL", lastAttempt={})
    assert not {"dispatchCount", "responseCount", "lastAttempt", "firstAttempt"} & task.keys()
    assert task["createTime"] == at(0).replace("+00:00", "Z")


def test_the_largest_tasks(api: Api) -> None:
    """The limit is that of the task as it is stored, with its name and headers."""
    for kind, limit, more in (("http_request", 1 << 20, {"url": "http://a"}), ("app_engine_http_request", 102_400, {})):
        method = api.method("CreateTask")
        small, large = 0, limit
        while small + 1 < large:
            middle = (small + large) // 2
            request = method.request(parent=QUEUE, task=Task(**{kind: {**more, "body": bytes(middle)}}))
            try:
                method.call(request)
                small = middle
            except ApiCallError as error:
                large, message = middle, error.message
        assert message == "Task size too large"
        assert limit - 600 < small < limit
