"""The taskqueue API on a real store, called as the SDK calls it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, full_app_id
from google.appengine.api.taskqueue import taskqueue
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.server.api.datastore import DATASTORE_FILE, DatastoreStub
from deferred_middleware.server.store.records import Lane, RetryPolicy
from tests.support.storing import stored_tasks
from tests.support.taskqueueapi import DIRECTORY, Api, Code, add_request


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """The service on an empty store."""
    api = Api(tmp_path / "tasks.sqlite")
    yield api
    api.store.close()


@pytest.fixture
def stubs(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The SDK's own client and datastore stub, connected to the service under test."""
    full_app_id.put("dev~app")
    stub_map = apiproxy_stub_map.APIProxyStubMap()
    monkeypatch.setattr(apiproxy_stub_map, "apiproxy", stub_map)
    monkeypatch.setenv("DEFAULT_VERSION_HOSTNAME", DIRECTORY.default_hostname)
    stub_map.RegisterStub("taskqueue", api.service)
    datastore = DatastoreStub("dev~app", tmp_path / DATASTORE_FILE, api.service.transactions)
    stub_map.RegisterStub("datastore_v3", datastore)
    yield stub_map
    datastore.close()


def test_an_added_task_is_stored_as_it_was_sent(api: Api) -> None:
    """URL, method, headers, body and target of a task are stored, and the scheduler is woken."""
    add = {
        "task_name": b"one",
        "eta_usec": 1_700_000_000_000_000,
        "body": b"\x80payload",
        "method": taskqueue_pb.TaskQueueAddRequest.PUT,
        "headers": {b"Host": b"local.background.127.0.0.1:8080", b"X-Mine": b"caf\xc3\xa9"},
        "dispatch_deadline_usec": 20_000_000,
    }
    assert api.add(add) == [("OK", "")]
    task = api.store.queries.get("default", "one")
    assert task is not None
    assert (task.url, task.method, task.body, task.eta_usec) == ("/work", "PUT", b"\x80payload", 1_700_000_000_000_000)
    assert (task.target, task.headers) == ("local.background", (("X-Mine", "caf\xc3\xa9"),))
    assert task.dispatch_deadline_usec == 20_000_000
    assert api.wakes == 1


@pytest.mark.parametrize(
    ("host", "target"),
    [(b"127.0.0.1:8081", "local.background"), (b"127.0.0.1:8080", ""), (b"www.example.com", "")],
)
def test_a_host_without_a_target_means_the_service_it_belongs_to(api: Api, host: bytes, target: str) -> None:
    """Without a target, the SDK sends the enqueuing request's Host header, and the task stays in that service."""
    api.add({"task_name": b"one", "headers": {b"Host": host}})
    task = api.store.queries.get("default", "one")
    assert task is not None
    assert task.target == target


def test_unnamed_tasks_get_names(api: Api) -> None:
    """Tasks without a name are stored under the generated names that the response returns."""
    results = api.add({}, {"task_name": b"mine"}, {})
    assert [code for code, _name in results] == ["OK", "OK", "OK"]
    assert results[1][1] == ""
    assert {task.name for task in stored_tasks(api.store)} == {results[0][1], "mine", results[2][1]}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"task_name": b"no spaces"}, "INVALID_TASK_NAME"),
        ({"task_name": b"abc\n"}, "INVALID_TASK_NAME"),
        ({"task_name": b"x" * 501}, "INVALID_TASK_NAME"),
        ({"task_name": "é".encode()}, "INVALID_TASK_NAME"),
        ({"url": b"work"}, "INVALID_URL"),
        ({"url": b"/a b"}, "INVALID_URL"),
        ({"url": b"/\r\nX-Forged: 1"}, "INVALID_URL"),
        ({"url": b"/" + b"x" * 2083}, "INVALID_URL"),
        ({"eta_usec": -1}, "INVALID_ETA"),
        ({"eta_usec": int((time.time() + 31 * 24 * 3600) * 1e6)}, "INVALID_ETA"),
        ({"body": b"x" * 102_400}, "TASK_TOO_LARGE"),
        ({"headers": {b"X-Mine": b"1\r\nX-Forged: 1"}}, "INVALID_REQUEST"),
        ({"headers": {b"X Mine": b"1"}}, "INVALID_REQUEST"),
        ({"retry": {"retry_limit": -1}}, "INVALID_RETRY_PARAMETERS"),
        ({"retry": {"min_backoff_sec": float("nan")}}, "INVALID_RETRY_PARAMETERS"),
        ({"dispatch_deadline_usec": 14_999_999}, "INVALID_DISPATCH_DEADLINE"),
        ({"dispatch_deadline_usec": 24 * 3600 * 1_000_000 + 1}, "INVALID_DISPATCH_DEADLINE"),
    ],
)
def test_a_task_that_cannot_be_taken_keeps_out_the_others(api: Api, fields: dict[str, Any], code: str) -> None:
    """If one task is invalid, it gets its own code, the others are skipped, and nothing is stored."""
    assert api.codes({}, fields, {"task_name": b"good"}) == ["SKIPPED", code, "SKIPPED"]
    assert api.store.queries.counts() == {}
    assert api.wakes == 0


def test_the_largest_legal_task_is_taken(api: Api) -> None:
    """A task of exactly the maximum size, which includes method, URL, headers and body, is stored."""
    assert api.codes({"body": b"x" * (102_400 - len("POST/work"))}) == ["OK"]


def test_taken_names_do_not_keep_out_the_others(api: Api) -> None:
    """Existing, tombstoned and repeated names get their own codes, and the other tasks are stored."""
    api.add({"task_name": b"exists"}, {"task_name": b"gone"})
    api.store.operations.delete_by_name("default", ["gone"])
    adds = [{"task_name": name} for name in (b"exists", b"gone", b"new", b"new")]
    assert api.codes(*adds) == ["TASK_ALREADY_EXISTS", "TOMBSTONED_TASK", "OK", "DUPLICATE_TASK_NAME"]


@pytest.mark.parametrize(
    ("adds", "code", "message"),
    [
        ([{"queue_name": b"nope"}], Code.UNKNOWN_QUEUE, "no queue 'nope'; the queues are: default, other, pull"),
        ([{"queue_name": b""}], Code.UNKNOWN_QUEUE, "no queue ''"),
        ([{"mode": taskqueue_pb.TaskQueueMode.PULL}], Code.INVALID_QUEUE_MODE, "'default' is a push queue"),
        ([{}] * 101, Code.TOO_MANY_TASKS, "101 tasks"),
        ([], Code.INVALID_REQUEST, "no tasks"),
    ],
)
def test_a_request_that_makes_no_sense_fails_whole(
    api: Api, adds: list[dict[str, Any]], code: int, message: str
) -> None:
    """If the whole request is invalid, the call raises one application error whose message says why."""
    with pytest.raises(apiproxy_errors.ApplicationError) as raised:
        api.add(*adds)
    assert raised.value.application_error == code
    assert message in raised.value.error_detail
    assert api.store.queries.counts() == {}


def test_a_tasks_own_retry_options_replace_the_queues_wholesale(api: Api) -> None:
    """A task's retry options take missing fields from the platform's defaults, not from the queue."""
    api.add({"task_name": b"own", "retry": {"retry_limit": 0}}, {"task_name": b"none"})
    own, none = api.store.queries.get("default", "own"), api.store.queries.get("default", "none")
    assert own is not None
    assert none is not None
    assert own.retry == RetryPolicy(retry_limit=0)
    assert none.retry is None


def test_a_store_that_fails_is_a_transient_error(api: Api) -> None:
    """If the store fails, the client gets a transient error and the scheduler is not woken."""
    api.store.close()
    with pytest.raises(apiproxy_errors.ApplicationError, match="store failed") as raised:
        api.add({})
    assert raised.value.application_error == Code.TRANSIENT_ERROR
    assert api.wakes == 0


def test_delete_tells_what_it_found(api: Api) -> None:
    """Delete returns a code for each name, also if the queue is unknown."""
    api.add({"task_name": b"a"})
    request = taskqueue_pb.TaskQueueDeleteRequest(queue_name=b"default", task_name=[b"a", b"b"])
    for expected in ([Code.OK, Code.UNKNOWN_TASK], [Code.TOMBSTONED_TASK, Code.UNKNOWN_TASK]):
        response = taskqueue_pb.TaskQueueDeleteResponse()
        api.service.MakeSyncCall("taskqueue", "Delete", request, response)
        assert list(response.result) == expected
    response = taskqueue_pb.TaskQueueDeleteResponse()
    request.queue_name = b"nope"
    api.service.MakeSyncCall("taskqueue", "Delete", request, response)
    assert list(response.result) == [Code.UNKNOWN_QUEUE] * 2


def test_purge_empties_one_queue(api: Api) -> None:
    """PurgeQueue removes only its queue's tasks."""
    api.add({}, {})
    api.add({"queue_name": b"other"})
    api.service.MakeSyncCall(
        "taskqueue",
        "PurgeQueue",
        taskqueue_pb.TaskQueuePurgeQueueRequest(queue_name=b"default"),
        taskqueue_pb.TaskQueuePurgeQueueResponse(),
    )
    assert api.store.queries.counts() == {"other": {"ready": 1}}


def test_add_is_a_bulk_add_of_one(api: Api) -> None:
    """Add returns the generated name, and a taken name raises an error that names the task."""
    response = taskqueue_pb.TaskQueueAddResponse()
    api.service.MakeSyncCall("taskqueue", "Add", add_request(), response)
    assert [task.name for task in stored_tasks(api.store)] == [response.chosen_task_name.decode()]
    add = add_request(task_name=b"one")
    api.service.MakeSyncCall("taskqueue", "Add", add, taskqueue_pb.TaskQueueAddResponse())
    with pytest.raises(apiproxy_errors.ApplicationError, match="task 'one' of queue 'default'"):
        api.service.MakeSyncCall("taskqueue", "Add", add, taskqueue_pb.TaskQueueAddResponse())


def test_the_sdks_client_adds_and_deletes(api: Api, stubs: Any) -> None:
    """The unmodified client adds and deletes tasks and raises its own exceptions."""
    named = taskqueue.add(url="/work", name="one", payload=b"x", target="local.background", method="POST")
    unnamed = taskqueue.add(url="/work", countdown=60)
    assert {task.name for task in stored_tasks(api.store)} == {named.name, unnamed.name}
    assert [lane for lane, _eta in api.store.queries.lanes()] == [
        Lane("default", ""),
        Lane("default", "local.background"),
    ]
    with pytest.raises(taskqueue.TaskAlreadyExistsError):
        taskqueue.add(url="/work", name="one")
    taskqueue.Queue().delete_tasks(named)
    with pytest.raises(taskqueue.TombstonedTaskError):
        taskqueue.add(url="/work", name="one")
    with pytest.raises(taskqueue.UnknownQueueError):
        taskqueue.add(url="/work", queue_name="nope")
