"""The taskqueue API's methods other than adding, with their results and error codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.runtime import apiproxy_errors

from tests.support.storing import LANE, NOW, Clock, completion, run_all
from tests.support.taskqueueapi import Api, Code

PULL = taskqueue_pb.TaskQueueMode.PULL
MINUTE_USEC = 60_000_000


@pytest.fixture
def api(tmp_path: Path, clock: Clock) -> Iterator[Api]:
    """The API on an empty store, with a clock that the tests set."""
    api = Api(tmp_path / "tasks.sqlite", clock=clock)
    yield api
    api.store.close()


def refused(api: Api, method: str, **fields: Any) -> str:
    """Call a method that raises an application error; return its code."""
    with pytest.raises(apiproxy_errors.ApplicationError) as raised:
        api.call(method, **fields)
    return str(Code.ErrorCode.Name(raised.value.application_error))


def pull_add(name: str = "", **fields: Any) -> dict[str, Any]:
    """Return the fields of an add to the queue ``pull``."""
    return {
        "queue_name": b"pull",
        "task_name": name.encode(),
        "mode": PULL,
        "url": b"",
        "body": b"x",
        "eta_usec": NOW,
        **fields,
    }


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("FetchQueueStats", {"queue_name": [b"default", b"nope"], "max_num_tasks": 0}),
        ("PauseQueue", {"queue_name": b"nope", "pause": True, "app_id": b"a"}),
        ("PurgeQueue", {"queue_name": b"nope"}),
        ("UpdateQueue", {"queue_name": b"nope", "bucket_refill_per_second": 1, "bucket_capacity": 1}),
        ("DeleteQueue", {"queue_name": b"nope", "app_id": b"a"}),
        ("QueryTasks", {"queue_name": b"nope"}),
        ("FetchTask", {"queue_name": b"nope", "task_name": b"a"}),
        ("ForceRun", {"queue_name": b"nope", "task_name": b"a"}),
        ("QueryAndOwnTasks", {"queue_name": b"nope", "lease_seconds": 1, "max_tasks": 1}),
        ("ModifyTaskLease", {"queue_name": b"nope", "task_name": b"a", "eta_usec": 1, "lease_seconds": 1}),
    ],
)
def test_an_unknown_queue_is_told(api: Api, method: str, fields: dict[str, Any]) -> None:
    """Every method that names a queue raises UNKNOWN_QUEUE if it doesn't exist."""
    assert refused(api, method, **fields) == "UNKNOWN_QUEUE"


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("QueryAndOwnTasks", {"queue_name": b"default", "lease_seconds": 1, "max_tasks": 1}),
        ("ModifyTaskLease", {"queue_name": b"default", "task_name": b"a", "eta_usec": 1, "lease_seconds": 1}),
        ("ForceRun", {"queue_name": b"pull", "task_name": b"a"}),
        ("Add", {"queue_name": b"pull", "task_name": b"a", "eta_usec": 1, "url": b"/"}),
        ("Add", {"queue_name": b"default", "task_name": b"a", "eta_usec": 1, "body": b"x", "mode": PULL}),
    ],
)
def test_a_queue_of_the_other_mode_is_told(api: Api, method: str, fields: dict[str, Any]) -> None:
    """Leasing from a push queue, running in a pull queue and adding the other kind of task raise INVALID_QUEUE_MODE."""
    assert refused(api, method, **fields) == "INVALID_QUEUE_MODE"


def test_statistics_are_real(api: Api, clock: Clock) -> None:
    """Statistics give the unfinished tasks, the oldest due one, and the numbers running and executed."""
    api.add(*({"task_name": b"t%d" % n, "eta_usec": NOW - n} for n in range(4)), {"eta_usec": NOW + MINUTE_USEC})
    done, _running = api.store.claim({LANE: 2}, NOW)
    api.store.complete([completion(done)])
    (stats,) = api.call("FetchQueueStats", queue_name=[b"default"], max_num_tasks=0).queuestats
    assert (stats.num_tasks, stats.oldest_eta_usec) == (4, NOW - 2)
    info = stats.scanner_info
    assert (info.executed_last_minute, info.executed_last_hour, info.requests_in_flight) == (1, 1, 1)
    assert not info.HasField("enforced_rate")


def test_statistics_of_several_queues_come_in_the_order_asked_for(api: Api) -> None:
    """Statistics come in the order of the request; a queue without due tasks has no oldest ETA."""
    api.add({"queue_name": b"other", "eta_usec": NOW + 1})
    first, second = api.call("FetchQueueStats", queue_name=[b"other", b"default"], max_num_tasks=0).queuestats
    assert (first.num_tasks, first.oldest_eta_usec, first.scanner_info.enforced_rate) == (1, -1, 20.0)
    assert (second.num_tasks, second.oldest_eta_usec) == (0, -1)


def test_statistics_of_a_pull_queue_count_leases(api: Api) -> None:
    """A pull queue counts the leases of the last minute as executed, and has neither a rate nor running requests."""
    api.add(pull_add("a"), pull_add("b"))
    api.call("QueryAndOwnTasks", queue_name=b"pull", lease_seconds=60, max_tasks=1)
    (stats,) = api.call("FetchQueueStats", queue_name=[b"pull"], max_num_tasks=0).queuestats
    assert (stats.num_tasks, stats.oldest_eta_usec, stats.scanner_info.executed_last_minute) == (2, NOW, 1)
    assert not stats.scanner_info.HasField("requests_in_flight")
    assert not stats.scanner_info.HasField("enforced_rate")


def test_queues_are_listed_as_they_are_configured(api: Api) -> None:
    """FetchQueues returns rate, bucket, concurrency, mode, retry options and pause of up to ``max_rows`` queues."""
    api.store.operations.pause("other")
    default, other, pull = api.call("FetchQueues", max_rows=10, app_id=b"a").queue
    assert [queue.queue_name for queue in (default, other, pull)] == [b"default", b"other", b"pull"]
    assert (default.bucket_refill_per_second, default.paused) == (math.inf, False)
    assert (other.bucket_refill_per_second, other.bucket_capacity, other.max_concurrent_requests) == (20.0, 7, 3)
    assert (other.paused, other.mode, pull.mode) == (True, taskqueue_pb.TaskQueueMode.PUSH, PULL)
    assert pull.retry_parameters.retry_limit == 3
    assert len(api.call("FetchQueues", max_rows=2, app_id=b"a").queue) == 2


def test_a_queue_is_paused_and_resumed(api: Api) -> None:
    """PauseQueue sets the store's pause, and resuming wakes the scheduler."""
    api.call("PauseQueue", queue_name=b"other", pause=True, app_id=b"a")
    assert api.store.operations.paused() == {"other"}
    assert api.wakes == 0
    api.call("PauseQueue", queue_name=b"other", pause=False, app_id=b"a")
    assert api.store.operations.paused() == frozenset()
    assert api.wakes == 1


@pytest.mark.parametrize("method", ["UpdateQueue", "DeleteQueue"])
def test_queues_are_configured_in_queue_yaml(api: Api, method: str) -> None:
    """A call that would change the configuration is refused with a hint to queue.yaml."""
    fields = {"bucket_refill_per_second": 1, "bucket_capacity": 1} if method == "UpdateQueue" else {"app_id": b"a"}
    with pytest.raises(apiproxy_errors.ApplicationError, match=r"queue\.yaml") as raised:
        api.call(method, queue_name=b"other", **fields)
    assert raised.value.application_error == Code.PERMISSION_DENIED


def test_unfinished_tasks_are_queried_page_by_page(api: Api) -> None:
    """Unfinished tasks are listed by name, or by ETA and then name, from the requested start."""
    api.add({"task_name": b"done", "eta_usec": NOW - 9})
    run_all(api.store)
    api.add(*({"task_name": name, "eta_usec": NOW + eta} for name, eta in ((b"c", 1), (b"a", 3), (b"b", 1), (b"d", 2))))

    def query(**fields: Any) -> list[bytes]:
        return [task.task_name for task in api.call("QueryTasks", queue_name=b"default", **fields).task]

    assert query() == [b"a"]
    assert query(max_rows=10) == [b"a", b"b", b"c", b"d"]
    assert query(start_task_name=b"b", max_rows=2) == [b"b", b"c"]
    assert query(start_eta_usec=NOW + 1, max_rows=3) == [b"b", b"c", b"d"]
    assert query(start_eta_usec=NOW + 1, start_task_name=b"c", max_rows=9) == [b"c", b"d", b"a"]
    assert refused(api, "QueryTasks", queue_name=b"default", start_tag=b"x") == "INVALID_REQUEST"


def test_a_task_is_told_whole(api: Api, clock: Clock) -> None:
    """FetchTask returns everything that was added and the result of the last attempt."""
    api.add(
        {
            "task_name": b"one",
            "method": taskqueue_pb.TaskQueueAddRequest.PUT,
            "url": b"/w",
            "body": b"\x80",
            "eta_usec": NOW - 5,
            "headers": {b"X-Mine": b"caf\xc3\xa9"},
            "retry": {"retry_limit": 7, "min_backoff_sec": 0.5},
            "dispatch_deadline_usec": 20_000_000,
        }
    )
    (claimed,) = api.store.claim({LANE: 1}, NOW)
    api.store.complete([completion(claimed, "ready", eta_usec=NOW + 8)])
    (task,) = api.call("FetchTask", queue_name=b"default", task_name=b"one").task.task
    assert (task.task_name, task.url, task.body, task.body_size) == (b"one", b"/w", b"\x80", 1)
    assert task.method == taskqueue_pb.TaskQueueQueryTasksResponse.Task.PUT
    assert [(header.key, header.value) for header in task.header] == [(b"X-Mine", b"caf\xc3\xa9")]
    assert (task.eta_usec, task.creation_time_usec, task.first_try_usec) == (NOW + 8, NOW, NOW)
    assert (task.retry_count, task.execution_count, task.dispatch_deadline_usec) == (1, 1, 20_000_000)
    assert (task.retry_parameters.retry_limit, task.retry_parameters.min_backoff_sec) == (7, 0.5)
    assert (task.runlog.response_code, task.runlog.elapsed_usec) == (500, 1200)


def test_a_task_that_is_not_there_is_told(api: Api) -> None:
    """A finished task and one that never existed have different error codes."""
    api.add({"task_name": b"done", "eta_usec": NOW})
    run_all(api.store)
    assert refused(api, "FetchTask", queue_name=b"default", task_name=b"done") == "TOMBSTONED_TASK"
    assert refused(api, "FetchTask", queue_name=b"default", task_name=b"nope") == "UNKNOWN_TASK"


def test_a_task_is_forced_to_run(api: Api) -> None:
    """ForceRun makes a waiting task the next to run, and otherwise returns the task's state."""

    def force(name: bytes) -> int:
        return int(api.call("ForceRun", queue_name=b"default", task_name=name, app_id=b"a").result)

    api.add({"task_name": b"done", "eta_usec": NOW})
    run_all(api.store)
    api.add({"task_name": b"later", "eta_usec": NOW + MINUTE_USEC})
    wakes = api.wakes
    assert force(b"later") == Code.OK
    assert api.wakes == wakes + 1
    assert [task.name for task in api.store.claim_forced(5)] == ["later"]
    assert force(b"later") == Code.OK
    assert api.store.claim_forced(5) == []
    assert force(b"done") == Code.TOMBSTONED_TASK
    assert force(b"nope") == Code.UNKNOWN_TASK


def test_pull_tasks_are_leased_with_tag_and_body(api: Api) -> None:
    """A lease returns each task's name, body, tag, number of leases, and the end of the lease."""
    api.add(pull_add("a", tag="é".encode(), body=b"\x00\xff"), pull_add("b"))
    a, b = api.call("QueryAndOwnTasks", queue_name=b"pull", lease_seconds=60.5, max_tasks=5).task
    assert (a.task_name, a.body, a.tag, a.retry_count) == (b"a", b"\x00\xff", "é".encode(), 1)
    assert a.eta_usec == NOW + 60_500_000
    assert not b.HasField("tag")
    assert not api.call("QueryAndOwnTasks", queue_name=b"pull", lease_seconds=60, max_tasks=5).task


def test_pull_tasks_are_leased_by_tag(api: Api) -> None:
    """Leasing by tag returns tasks of the requested tag, or of the oldest task's tag if none is requested."""
    api.add(pull_add("a", tag=b"x", eta_usec=NOW - 1), pull_add("b", tag=b"y"), pull_add("c", tag=b"x"))
    lease = {"queue_name": b"pull", "lease_seconds": 60, "max_tasks": 5, "group_by_tag": True}
    assert [task.task_name for task in api.call("QueryAndOwnTasks", **lease, tag=b"y").task] == [b"b"]
    assert [task.task_name for task in api.call("QueryAndOwnTasks", **lease).task] == [b"a", b"c"]


@pytest.mark.parametrize(
    "fields",
    [
        {"lease_seconds": -1, "max_tasks": 1},
        {"lease_seconds": 7 * 24 * 3600 + 1, "max_tasks": 1},
        {"lease_seconds": math.nan, "max_tasks": 1},
        {"lease_seconds": 1, "max_tasks": 0},
        {"lease_seconds": 1, "max_tasks": 1001},
        {"lease_seconds": 1, "max_tasks": 1, "tag": b"x"},
    ],
)
def test_a_lease_that_makes_no_sense_is_refused(api: Api, fields: dict[str, Any]) -> None:
    """A lease time or number of tasks out of bounds, and a tag without grouping, are invalid requests."""
    assert refused(api, "QueryAndOwnTasks", queue_name=b"pull", **fields) == "INVALID_REQUEST"


def test_a_lease_is_changed_by_its_end(api: Api, clock: Clock) -> None:
    """A lease is changed only by a caller that gives its current end; each other case has its own code."""
    api.add(pull_add("a"), pull_add("gone"))
    ends = {
        t.task_name: t.eta_usec
        for t in api.call("QueryAndOwnTasks", queue_name=b"pull", lease_seconds=60, max_tasks=5).task
    }
    api.call("Delete", queue_name=b"pull", task_name=[b"gone"])
    change = {"queue_name": b"pull", "lease_seconds": 90}
    clock.usec += 1_000_000
    updated = api.call("ModifyTaskLease", **change, task_name=b"a", eta_usec=ends[b"a"]).updated_eta_usec
    assert updated == NOW + 91_000_000
    for name, eta_usec, code in (
        (b"a", ends[b"a"], "TASK_LEASE_EXPIRED"),
        (b"gone", ends[b"gone"], "TOMBSTONED_TASK"),
        (b"nope", 1, "UNKNOWN_TASK"),
    ):
        assert refused(api, "ModifyTaskLease", **change, task_name=name, eta_usec=eta_usec) == code
    clock.usec = updated + 1
    assert refused(api, "ModifyTaskLease", **change, task_name=b"a", eta_usec=updated) == "TASK_LEASE_EXPIRED"


def test_a_paused_pull_queue_leases_nothing(api: Api) -> None:
    """While a pull queue is paused, no task is leased and no lease is changed."""
    api.add(pull_add("a"))
    api.store.operations.pause("pull")
    assert not api.call("QueryAndOwnTasks", queue_name=b"pull", lease_seconds=60, max_tasks=5).task
    change = {"queue_name": b"pull", "task_name": b"a", "eta_usec": NOW, "lease_seconds": 60}
    assert refused(api, "ModifyTaskLease", **change) == "QUEUE_PAUSED"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"tag": b"x" * 501}, "INVALID_TAG"),
        ({"tag": b""}, "INVALID_TAG"),
        ({"tag": b"\xff"}, "INVALID_TAG"),
        ({"body": b"x" * (1 << 20) + b"x"}, "TASK_TOO_LARGE"),
        ({"task_name": b"no spaces"}, "INVALID_TASK_NAME"),
        ({"eta_usec": NOW + 31 * 24 * 3600 * 1_000_000}, "INVALID_ETA"),
        ({"retry": {"retry_limit": -1}}, "INVALID_RETRY_PARAMETERS"),
    ],
)
def test_a_pull_task_that_cannot_be_taken_is_told(api: Api, fields: dict[str, Any], code: str) -> None:
    """Each mistake in a pull task has its own code, and the request's other tasks are skipped."""
    assert api.codes(pull_add(), {**pull_add(), **fields}) == ["SKIPPED", code]


def test_the_largest_pull_task_is_taken(api: Api) -> None:
    """A pull task of 1 MiB and a tag of 500 bytes are accepted."""
    assert api.codes(pull_add(body=b"x" * (1 << 20)), pull_add(tag=b"t" * 500)) == ["OK", "OK"]


def test_a_push_task_has_no_tag(api: Api) -> None:
    """A tag on a push task is refused."""
    assert api.codes({"tag": b"x", "eta_usec": NOW}) == ["INVALID_TAG"]


def test_a_large_add_in_a_transaction_is_refused(api: Api) -> None:
    """A request of more than 1 MiB is refused in a transaction."""
    add = taskqueue_pb.TaskQueueAddRequest(**pull_add(body=b"x" * (1 << 20)))
    add.transaction.handle, add.transaction.app = 1, "dev~app"
    assert refused(api, "BulkAdd", add_request=[add]) == "TRANSACTIONAL_REQUEST_TOO_LARGE"


def test_purging_a_pull_queue_takes_its_leased_tasks_too(api: Api) -> None:
    """A purge removes all tasks of a pull queue, leased or not."""
    api.add(pull_add("a"), pull_add("b"))
    api.call("QueryAndOwnTasks", queue_name=b"pull", lease_seconds=60, max_tasks=1)
    api.call("PurgeQueue", queue_name=b"pull")
    assert api.store.queries.counts() == {}
