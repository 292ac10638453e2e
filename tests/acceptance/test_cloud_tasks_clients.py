"""One suite, run by Google's clients for Python and Node.js, over gRPC and REST, against a running emulator."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.cloud_clients import CLIENTS, Call, RefusedCallError, client
from tests.support.emulator import PARENT, Emulator, queue_name
from tests.support.http_target import HttpTarget, Reply, Seen

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
NO_QUEUE = "Queue does not exist. If you just created the queue, wait at least a minute for the queue to initialize."
NO_ENTITY = "Requested entity was not found."


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Run an emulator that forwards the service ``default`` to a target, for all tests of this module."""
    with HttpTarget(lambda seen: Reply(status=int(seen.headers.get("x-status", "200")))) as app:
        emulator = Emulator(tmp_path_factory.mktemp("emulator"), f"--service=default={app.url}")
        emulator.app = app  # type: ignore[attr-defined] # for the tests of App Engine targets
        emulator.start()
        yield emulator
        try:
            assert emulator.stop() == 0
            assert "Traceback" not in emulator.output
        finally:
            emulator.discard()


@pytest.fixture
def target() -> Iterator[HttpTarget]:
    """Run an HTTP target."""
    with HttpTarget() as target:
        yield target


@pytest.fixture(scope="module", params=CLIENTS)
def call(request: pytest.FixtureRequest, emulator: Emulator) -> Iterator[Call]:
    """Connect a client."""
    with client(request.param, emulator.cloud_tasks) as call:
        yield call


@pytest.fixture
def queue(call: Call) -> str:
    """Make a queue that retries quickly."""
    name = queue_name()
    call("CreateQueue", {"parent": PARENT, "queue": {"name": name, "retryConfig": {"minBackoff": "0.01s"}}})
    return name


@contextlib.contextmanager
def refused(code: grpc.StatusCode, message: str) -> Iterator[None]:
    """Expect a call to fail with this code, and a message that begins so."""
    with pytest.raises(RefusedCallError) as caught:
        yield
    assert (caught.value.code, caught.value.message[: len(message)]) == (code, message)


def create(call: Call, queue: str, url: str = "http://127.0.0.1:1/", **task: Any) -> dict[str, Any]:
    """Create a task for an HTTP target."""
    request = {"url": url, **task.pop("httpRequest", {})}
    return call("CreateTask", {"parent": queue, "task": {"httpRequest": request, **task}})


def later(seconds: float = 3600) -> str:
    """Return a time in the future, in whole seconds: the client for Node.js reads fractions wrongly from JSON."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return moment.replace(microsecond=0).isoformat()


def wait_until_gone(call: Call, name: str) -> RefusedCallError:
    """Wait until a task is over; return the error of GetTask."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            call("GetTask", {"name": name})
        except RefusedCallError as error:
            return error
        time.sleep(0.01)
    raise AssertionError(f"{name} is still there")


# Queues.


def test_a_new_queue_has_the_services_defaults(call: Call) -> None:
    """CreateQueue fills in limits and retries, and GetQueue shows the same."""
    name = queue_name()
    created = call("CreateQueue", {"parent": PARENT, "queue": {"name": name, "rateLimits": {"maxBurstSize": 7}}})
    assert created == {
        "name": name,
        "rateLimits": {"maxDispatchesPerSecond": 500.0, "maxBurstSize": 100, "maxConcurrentDispatches": 1000},
        "retryConfig": {"maxAttempts": 100, "minBackoff": "0.100s", "maxBackoff": "3600s", "maxDoublings": 16},
        "state": "RUNNING",
    }
    assert call("GetQueue", {"name": name}) == created


def test_queues_are_listed_in_pages(call: Call) -> None:
    """ListQueues returns the queues of one location, in pages."""
    parent = f"projects/listing-{time.monotonic_ns()}/locations/us-central1"
    names = [f"{parent}/queues/q{number}" for number in range(5)]
    for name in names:
        call("CreateQueue", {"parent": parent, "queue": {"name": name}})
    first = call("ListQueues", {"parent": parent, "pageSize": 3})
    second = call("ListQueues", {"parent": parent, "pageSize": 3, "pageToken": first["nextPageToken"]})
    assert [queue["name"] for queue in [*first["queues"], *second["queues"]]] == names
    assert "nextPageToken" not in second or not second["nextPageToken"]
    assert not call("ListQueues", {"parent": parent.replace("us-", "xx-")}).get("queues")


def test_an_update_changes_what_the_mask_names(call: Call, queue: str) -> None:
    """Fields that the mask doesn't name stay; without a mask, all are replaced."""
    changed = {"name": queue, "rateLimits": {"maxDispatchesPerSecond": 7.5}, "retryConfig": {"maxAttempts": 3}}
    mask = "rateLimits.maxDispatchesPerSecond"
    updated = call("UpdateQueue", {"queue": changed, "updateMask": mask})
    assert updated["rateLimits"] == {
        "maxDispatchesPerSecond": 7.5, "maxBurstSize": 10, "maxConcurrentDispatches": 1000
    }  # fmt: skip
    assert (updated["retryConfig"]["maxAttempts"], updated["retryConfig"]["minBackoff"]) == (100, "0.010s")
    updated = call("UpdateQueue", {"queue": {"name": queue, "retryConfig": {"maxAttempts": -1}}})
    assert updated["rateLimits"]["maxDispatchesPerSecond"] == 500
    assert (updated["retryConfig"]["maxAttempts"], updated["retryConfig"]["minBackoff"]) == (-1, "0.100s")
    assert call("GetQueue", {"name": queue}) == updated


def test_an_update_creates_a_queue(call: Call) -> None:
    """UpdateQueue of a queue that doesn't exist makes it."""
    name = queue_name()
    updated = call("UpdateQueue", {"queue": {"name": name, "rateLimits": {"maxConcurrentDispatches": 2}}})
    assert updated["rateLimits"]["maxConcurrentDispatches"] == 2
    assert call("GetQueue", {"name": name}) == updated


def test_a_paused_queue_sends_nothing(call: Call, queue: str, target: HttpTarget) -> None:
    """A paused queue takes tasks, and sends them when it is resumed."""
    assert call("PauseQueue", {"name": queue})["state"] == "PAUSED"
    task = create(call, queue, target.url)
    time.sleep(0.1)
    assert target.seen == []
    assert call("GetTask", {"name": task["name"]})["name"] == task["name"]
    assert call("ResumeQueue", {"name": queue})["state"] == "RUNNING"
    target.wait_for(1)
    wait_until_gone(call, task["name"])


def test_a_purged_queue_has_no_tasks(call: Call, queue: str) -> None:
    """PurgeQueue deletes the tasks and notes the time."""
    for _ in range(3):
        create(call, queue, scheduleTime=later())
    assert "purgeTime" in call("PurgeQueue", {"name": queue})
    assert not call("ListTasks", {"parent": queue}).get("tasks")
    create(call, queue, scheduleTime=later())
    assert len(call("ListTasks", {"parent": queue})["tasks"]) == 1


def test_a_deleted_queue(call: Call, queue: str) -> None:
    """After DeleteQueue there is no queue, and its name is taken for a while."""
    task = create(call, queue, scheduleTime=later())
    assert call("DeleteQueue", {"name": queue}) == {}
    with refused(NOT_FOUND, NO_QUEUE):
        call("GetQueue", {"name": queue})
    with refused(NOT_FOUND, NO_QUEUE):
        create(call, queue)
    with refused(NOT_FOUND, NO_ENTITY):
        call("GetTask", {"name": task["name"]})
    with refused(NOT_FOUND, NO_ENTITY):
        call("DeleteQueue", {"name": queue})
    message = "The queue cannot be created because a queue with this name existed too recently."
    with refused(grpc.StatusCode.FAILED_PRECONDITION, message):
        call("CreateQueue", {"parent": PARENT, "queue": {"name": queue}})


@pytest.mark.parametrize("method", ["GetQueue", "PauseQueue", "ResumeQueue", "PurgeQueue"])
def test_a_queue_that_does_not_exist(call: Call, method: str) -> None:
    """The calls about a queue say that it does not exist."""
    with refused(NOT_FOUND, NO_QUEUE):
        call(method, {"name": f"{PARENT}/queues/nowhere"})


def test_a_queue_exists_once(call: Call, queue: str) -> None:
    """CreateQueue of an existing queue fails."""
    with refused(EXISTS, "Queue already exists"):
        call("CreateQueue", {"parent": PARENT, "queue": {"name": queue}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rateLimits": {"maxDispatchesPerSecond": -1}}, "RateLimits.maxDispatchesPerSecond cannot be negative."),
        (
            {"rateLimits": {"maxDispatchesPerSecond": 501}},
            "RateLimits.maxDispatchesPerSecond must be less than or equal to 500.",
        ),
        ({"rateLimits": {"maxConcurrentDispatches": -1}}, "RateLimits.maxConcurrentDispatches cannot be negative."),
        (
            {"rateLimits": {"maxConcurrentDispatches": 5001}},
            "RateLimits.maxConcurrentDispatches must be less than or equal to 5000.",
        ),
        ({"retryConfig": {"maxAttempts": -2}}, "RetryConfig.maxAttempts must be greater or equal to -1."),
        ({"retryConfig": {"maxDoublings": -1}}, "RetryConfig.maxDoublings cannot be negative."),
        (
            {"retryConfig": {"minBackoff": "20s", "maxBackoff": "10s"}},
            "RetryConfig.minBackoff must be less than or equal to RetryConfig.maxBackoff.",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_illegal_settings_of_a_queue(call: Call, settings: dict[str, Any], message: str) -> None:
    """The limits of a queue are checked, with the service's words."""
    with refused(INVALID, message):
        call("CreateQueue", {"parent": PARENT, "queue": {"name": queue_name(), **settings}})


# Tasks.


def test_a_task_as_it_was_created(call: Call, queue: str) -> None:
    """The basic view leaves the body out, the full view has it; both have the headers that are filled in."""
    body = base64.b64encode(b"\x00\xffhello").decode()
    scheduled = later()
    request = {
        "url": "https://example.com/a?b=c",
        "httpMethod": "PUT",
        "headers": {"X-Mixed-Case": "preserve-me", "content-type": "application/json"},
        "body": body,
        "oidcToken": {"serviceAccountEmail": "me@example.com", "audience": "https://example.com"},
    }
    task = {"name": f"{queue}/tasks/a-task_1", "httpRequest": request, "scheduleTime": scheduled}
    shown = call("CreateTask", {"parent": queue, "task": task, "responseView": "FULL"})
    assert shown["name"] == task["name"]
    assert shown["view"] == "FULL"
    assert shown["dispatchDeadline"] == "600s"
    assert shown["createTime"].replace(".000Z", "Z").count(".") == 0
    found = datetime.datetime.fromisoformat(shown["scheduleTime"].replace("Z", "+00:00"))
    assert found == datetime.datetime.fromisoformat(scheduled)
    headers = {**request["headers"], "User-Agent": "Google-Cloud-Tasks"}  # type: ignore[dict-item]
    assert shown["httpRequest"] == {**request, "headers": headers}
    basic = call("GetTask", {"name": task["name"]})
    assert basic["view"] == "BASIC"
    assert not basic["httpRequest"].get("body")
    assert call("GetTask", {"name": task["name"], "responseView": "FULL"}) == shown


def test_an_app_engine_task(call: Call, queue: str, emulator: Emulator) -> None:
    """A task for App Engine goes to the service, with App Engine's headers."""
    app: HttpTarget = emulator.app  # type: ignore[attr-defined]
    app.forget()
    request = {
        "relativeUri": "/work?a=b",
        "body": base64.b64encode(b"payload").decode(),
        "headers": {"X-Own": "1", "Host": "stolen", "X-AppEngine-QueueName": "stolen", "User-Agent": "mine/1"},
    }
    shown = call("CreateTask", {"parent": queue, "task": {"appEngineHttpRequest": request}, "responseView": "FULL"})[
        "appEngineHttpRequest"
    ]
    assert shown["headers"] == {
        "X-Own": "1",
        "User-Agent": "mine/1 AppEngine-Google; (+http://code.google.com/appengine)",
        "Content-Length": "7",
        "Content-Type": "application/octet-stream",
    }
    (seen,) = app.wait_for(1)
    assert (seen.method, seen.path, seen.body) == ("POST", "/work?a=b", b"payload")
    assert seen.headers["x-appengine-queuename"] == queue.rpartition("/")[2]
    assert seen.headers["user-agent"] == "mine/1 AppEngine-Google; (+http://code.google.com/appengine)"
    assert seen.headers["x-own"] == "1"


def test_a_task_is_over_when_it_succeeded(call: Call, queue: str, target: HttpTarget) -> None:
    """A finished task is not found, with the service's words, and its name is taken."""
    name = f"{queue}/tasks/once"
    create(call, queue, target.url, name=name)
    target.wait_for(1)
    error = wait_until_gone(call, name)
    assert error.code is NOT_FOUND
    assert error.message.startswith("The task no longer exists, though a task with this name existed recently.")
    with refused(EXISTS, "The task cannot be created because a task with this name existed too recently."):
        create(call, queue, target.url, name=name)


def test_the_status_of_a_task_that_fails(call: Call, queue: str, target: HttpTarget) -> None:
    """GetTask says how the last attempt ended, and how many there were."""
    call("UpdateQueue", {
        "queue": {"name": queue, "retryConfig": {"minBackoff": "60s"}}, "updateMask": "retryConfig.minBackoff"
    })  # fmt: skip
    target.answer = lambda seen: Reply(status=404)
    task = create(call, queue, target.url)
    until = time.monotonic() + 30
    while not (shown := call("GetTask", {"name": task["name"]})).get("lastAttempt"):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert (shown["dispatchCount"], shown["responseCount"]) == (1, 1)
    assert shown["lastAttempt"]["responseStatus"] == {"code": 5, "message": "NOT_FOUND(5): HTTP status code 404"}
    assert {"scheduleTime", "dispatchTime", "responseTime"} <= shown["lastAttempt"].keys()
    assert [key for key, value in shown["firstAttempt"].items() if value] == ["dispatchTime"]
    assert shown["scheduleTime"] > task["scheduleTime"]


def test_a_task_that_is_forced(call: Call, queue: str, target: HttpTarget) -> None:
    """RunTask sends a task of a paused queue before its time."""
    call("PauseQueue", {"name": queue})
    task = create(call, queue, target.url, scheduleTime=later())
    forced = call("RunTask", {"name": task["name"]})
    assert forced["dispatchCount"] == 1
    assert forced["lastAttempt"].get("dispatchTime")
    target.wait_for(1)
    wait_until_gone(call, task["name"])
    with refused(NOT_FOUND, "The task no longer exists"):
        call("RunTask", {"name": task["name"]})


def test_a_deleted_task(call: Call, queue: str) -> None:
    """DeleteTask deletes a task once."""
    task = create(call, queue, scheduleTime=later())
    assert call("DeleteTask", {"name": task["name"]}) == {}
    with refused(NOT_FOUND, "The task no longer exists"):
        call("GetTask", {"name": task["name"]})
    with refused(NOT_FOUND, "The task no longer exists"):
        call("DeleteTask", {"name": task["name"]})


@pytest.mark.parametrize("method", ["GetTask", "DeleteTask", "RunTask"])
def test_a_task_that_does_not_exist(call: Call, queue: str, method: str) -> None:
    """The calls about a task say that it was not found."""
    with refused(NOT_FOUND, NO_ENTITY):
        call(method, {"name": f"{queue}/tasks/nothing"})


def test_a_name_is_taken_once(call: Call, queue: str) -> None:
    """A second task of the same name is refused."""
    name = f"{queue}/tasks/one"
    create(call, queue, name=name, scheduleTime=later())
    with refused(EXISTS, "Requested entity already exists"):
        create(call, queue, name=name)


def test_tasks_are_listed_in_pages(call: Call, queue: str) -> None:
    """ListTasks returns every task once, in pages; a token is good for its own queue only."""
    names = {create(call, queue, scheduleTime=later())["name"] for _ in range(7)}
    found: list[str] = []
    token = ""
    pages = 0
    while pages == 0 or token:
        page = call("ListTasks", {"parent": queue, "pageSize": 3, "pageToken": token})
        found += [task["name"] for task in page["tasks"]]
        token = page.get("nextPageToken", "")
        pages += 1
    assert (sorted(found), pages) == (sorted(names), 3)
    first = call("ListTasks", {"parent": queue, "pageSize": 3})
    other = queue_name()
    call("CreateQueue", {"parent": PARENT, "queue": {"name": other}})
    for wrong in (first["nextPageToken"], "nonsense"):
        with refused(INVALID, "The page token is not valid."):
            call("ListTasks", {"parent": other, "pageToken": wrong})


def test_the_views_of_a_list(call: Call, queue: str) -> None:
    """A list has bodies only in the full view."""
    body = base64.b64encode(b"payload").decode()
    create(call, queue, httpRequest={"body": body}, scheduleTime=later())
    for view, expected in (("BASIC", None), ("FULL", body)):
        (task,) = call("ListTasks", {"parent": queue, "responseView": view})["tasks"]
        assert (task["httpRequest"].get("body") or None) == expected


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"httpRequest": {}}, "HttpRequest.url is required."),
        ({"httpRequest": {"url": "example.com"}}, "HttpTarget.url must start with 'http://' or 'https://'."),
        ({"httpRequest": {"url": "ftp://example.com"}}, "HttpTarget.url must start with 'http://' or 'https://'."),
        (
            {"httpRequest": {"url": "http://example.com", "oidcToken": {"serviceAccountEmail": "a@b.c"}}},
            "HttpRequest.url must start with 'https://' for request with HttpRequest.authorization_header",
        ),
        ({"dispatchDeadline": "14s"}, "Task.dispatchDeadline must be between [15s, 30m]."),
        ({"dispatchDeadline": "1801s"}, "Task.dispatchDeadline must be between [15s, 30m]."),
        (
            {"scheduleTime": "2100-01-01T00:00:00Z"},
            "The Task.scheduleTime, 2099-12-31T16:00:00-08:00, is too far in the future. "
            "Schedule time must be no more than 720h in the future.",
        ),
        (
            {"httpRequest": {"url": "http://localhost", "body": base64.b64encode(bytes(1 << 20)).decode()}},
            "Task size too large",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_illegal_tasks(call: Call, queue: str, task: dict[str, Any], message: str) -> None:
    """A task that the service refuses is refused with its words."""
    with refused(INVALID, message):
        call("CreateTask", {"parent": queue, "task": {"httpRequest": {"url": "http://localhost"}, **task}})


def test_illegal_app_engine_tasks(call: Call, queue: str) -> None:
    """App Engine targets have their own bounds."""
    for task, message in (
        ({"dispatchDeadline": "86416s"}, "Task.dispatchDeadline must be between [15s, 24h15s]."),
        ({"dispatchDeadline": "3s"}, "Task.dispatchDeadline must be between [15s, 24h15s]."),
        (
            {"appEngineHttpRequest": {"body": base64.b64encode(bytes(100 << 10)).decode()}},
            "Task size too large",
        ),
    ):
        with refused(INVALID, message):
            call("CreateTask", {"parent": queue, "task": {"appEngineHttpRequest": {"relativeUri": "/"}, **task}})
    call(
        "CreateTask",
        {"parent": queue, "task": {"appEngineHttpRequest": {"relativeUri": "/"}, "dispatchDeadline": "3600s"}},
    )


def test_illegal_names(call: Call, queue: str) -> None:
    """Names are checked, with the service's words."""
    with refused(INVALID, 'Task ID "not a valid id" can contain only letters'):
        create(call, queue, name=f"{queue}/tasks/not a valid id")
    with refused(INVALID, 'Task name must be formatted: "projects/<PROJECT_ID>/'):
        create(call, queue, name="one")
    with refused(INVALID, f"The queue name from request ('{queue}') must be the same as the queue name in the named"):
        create(call, queue, name=f"{queue}-other/tasks/one")
    with refused(NOT_FOUND, NO_QUEUE):
        create(call, f"{PARENT}/queues/nowhere")
    with refused(INVALID, 'Queue ID "auto_label" can contain only letters ([A-Za-z]), numbers ([0-9]), or hyphens (-)'):
        call("CreateQueue", {"parent": PARENT, "queue": {"name": f"{PARENT}/queues/auto_label"}})
    with refused(INVALID, 'Queue name must be formatted: "projects/<PROJECT_ID>/locations/<LOCATION_ID>/queues/'):
        call("CreateQueue", {"parent": PARENT, "queue": {"name": "mail"}})
    other = "projects/other/locations/europe-west1/queues/mail"
    with refused(INVALID, f"{other} must begin with {PARENT}."):
        call("CreateQueue", {"parent": PARENT, "queue": {"name": other}})


def test_retries_until_the_attempts_are_used_up(call: Call, target: HttpTarget) -> None:
    """A task of a queue with three attempts gets three; the task's own configuration goes first."""
    name = queue_name()
    retry = {"maxAttempts": 3, "minBackoff": "0.01s", "maxBackoff": "0.02s"}
    call("CreateQueue", {"parent": PARENT, "queue": {"name": name, "retryConfig": retry}})
    target.answer = lambda seen: Reply(status=500)
    wait_until_gone(call, create(call, name, target.url)["name"])
    assert [seen.headers["x-cloudtasks-taskretrycount"] for seen in target.seen] == ["0", "1", "2"]
    target.forget()
    own = create(call, name, target.url, retryConfig={**retry, "maxAttempts": 2})
    wait_until_gone(call, own["name"])
    # An older client does not have the field.
    assert len(target.seen) == own.get("retryConfig", {"maxAttempts": 3})["maxAttempts"]


def test_batches(call: Call, queue: str, request: pytest.FixtureRequest) -> None:
    """BatchCreateTasks and BatchDeleteTasks answer for each task."""
    if "node" in request.node.callspec.id:
        # This client does not have these methods.
        with refused(INVALID, "HttpRequest.url is required."):
            create(call, queue, "")
        return
    good = {"httpRequest": {"url": "http://localhost"}, "scheduleTime": later()}
    tasks = [{**good, "name": f"{queue}/tasks/t{number}"} for number in (1, 2, 1)]
    requests = [{"parent": queue, "task": task} for task in [*tasks, {"httpRequest": {}}, good]]
    done = call("BatchCreateTasks", {"parent": queue, "requests": requests, "requestId": "first"})
    assert done["done"] is True
    assert [task["name"].rpartition("/")[2][:2] for task in done["response"]["tasks"]][:2] == ["t1", "t2"]
    assert len(done["response"]["tasks"]) == 3
    assert done["metadata"]["state"] == "PARTIALLY_SUCCEEDED"
    assert {index: failure["message"] for index, failure in done["metadata"]["failedRequests"].items()} == {
        "2": "Requested entity already exists",
        "3": "HttpRequest.url is required.",
    }
    again = call("BatchCreateTasks", {"parent": queue, "requests": requests, "requestId": "first"})
    assert again["response"]["tasks"][2]["name"] == done["response"]["tasks"][2]["name"]
    assert len(call("ListTasks", {"parent": queue})["tasks"]) == 3
    names = [f"{queue}/tasks/t1", f"{queue}/tasks/nothing"]
    deleted = call("BatchDeleteTasks", {"parent": queue, "names": names})
    assert deleted["metadata"]["failedRequests"] == {"1": {"code": 5, "message": NO_ENTITY}}
    none = call("BatchDeleteTasks", {"parent": queue, "names": names})
    assert none["error"]["code"] == 10
    assert none["error"]["message"].startswith("None of the requests succeeded")
    with refused(INVALID, "BatchCreateTasksRequest.requests must have"):
        call("BatchCreateTasks", {"parent": queue, "requests": [requests[4]] * 101})


def test_what_a_queue_overrides(call: Call, target: HttpTarget) -> None:
    """The requests of a queue's HTTP tasks follow its ``http_target``."""
    name = queue_name()
    host, _, port = target.url.removeprefix("http://").partition(":")
    http_target = {
        "uriOverride": {"scheme": "HTTP", "host": host, "port": port, "pathOverride": {"path": "/elsewhere"}},
        "httpMethod": "PATCH",
        "headerOverrides": [{"header": {"key": "X-Own", "value": "overridden"}}],
        "oidcToken": {"serviceAccountEmail": "queue@example.com", "audience": "all"},
    }
    created = call("CreateQueue", {"parent": PARENT, "queue": {"name": name, "httpTarget": http_target}})
    if "httpTarget" in created:
        # An older client drops the field, and the queue has no such settings then.
        task = create(call, name, "https://example.com/own?a=b", httpRequest={"headers": {"x-own": "1"}})
        (seen,) = target.wait_for(1)
        assert (seen.method, seen.path, seen.headers["x-own"]) == ("PATCH", "/elsewhere?a=b", "overridden")
        assert claims_of(seen)["email"] == "queue@example.com"
        wait_until_gone(call, task["name"])


def claims_of(seen: Seen) -> dict[str, Any]:
    """Return the claims of the token in a request."""
    part = seen.headers["authorization"].split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def test_restart(tmp_path: Path) -> None:
    """Queues, tasks, names and pauses are there after a restart."""
    emulator = Emulator(tmp_path)
    try:
        emulator.start()
        queue, gone = queue_name(), queue_name()
        with client("python-grpc", emulator.cloud_tasks) as call:
            for name in (queue, gone):
                call("CreateQueue", {"parent": PARENT, "queue": {"name": name, "retryConfig": {"maxAttempts": 5}}})
            call("DeleteQueue", {"name": gone})
            call("PauseQueue", {"name": queue})
            one = create(call, queue, name=f"{queue}/tasks/one", scheduleTime=later())
            create(call, queue, name=f"{queue}/tasks/two")
            call("DeleteTask", {"name": f"{queue}/tasks/two"})
            before = call("GetQueue", {"name": queue})
        assert emulator.stop() == 0
        emulator.start()
        with client("python-grpc", emulator.cloud_tasks) as call:
            assert call("GetQueue", {"name": queue}) == before
            assert call("GetTask", {"name": one["name"]}) == one
            with refused(EXISTS, "The task cannot be created because"):
                create(call, queue, name=f"{queue}/tasks/two")
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "The queue cannot be created"):
                call("CreateQueue", {"parent": PARENT, "queue": {"name": gone}})
        assert emulator.stop() == 0
    finally:
        emulator.discard()
