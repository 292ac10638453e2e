"""The calls about many tasks."""

from __future__ import annotations

from typing import Any

import pytest

from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError
from deferred_middleware.server.store.store import TaskStore
from tests.support.cloud_api import PARENT, QUEUE, Api
from tests.support.storing import Clock, counted_commits

STORED = "mail@europe-west1.my-project"


@pytest.fixture
def api(store: TaskStore, clock: Clock) -> Api:
    """Return the API with one queue."""
    api = Api(store, clock)
    api.make_queue()
    return api


def requests(number: int, **task: Any) -> list[dict[str, Any]]:
    """Return requests for tasks."""
    return [{"parent": QUEUE, "task": {"httpRequest": {"url": "http://a"}, **task}} for _ in range(number)]


def test_a_batch_is_one_commit(api: Api) -> None:
    """All tasks of a batch are on disk together."""
    with counted_commits(api.store) as commits:
        done = api.call("BatchCreateTasks", {"parent": QUEUE, "requests": requests(100)})
    assert len(commits) == 1
    assert len(done["response"]["tasks"]) == 100
    assert done["metadata"]["state"] == "SUCCEEDED"
    assert api.wakes == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"requests": []}, "BatchCreateTasksRequest.requests must have between 1 and 100"),
        ({"requests": requests(101)}, "BatchCreateTasksRequest.requests must have between 1 and 100"),
        ({"requests": [{**requests(1)[0], "parent": f"{PARENT}/queues/other"}]}, "The queue name from request"),
        ({"parent": "nonsense", "requests": requests(1)}, "Queue name must be formatted"),
        ({"parent": f"{PARENT}/queues/nowhere", "requests": requests(1)}, "Queue does not exist"),
    ],
)
def test_a_batch_that_is_refused_as_a_whole(api: Api, request_: dict[str, Any], message: str) -> None:
    """Nothing of it is added."""
    with pytest.raises(ApiCallError) as caught:
        api.call("BatchCreateTasks", {"parent": QUEUE, **request_})
    assert caught.value.message.startswith(message)
    assert api.store.queries.counts() == {}


def test_when_every_task_is_refused_the_operation_has_failed(api: Api) -> None:
    """The operation's error leads to the single ones."""
    bad = [{"parent": QUEUE, "task": {}}, {"parent": QUEUE, "task": {"name": "x", "httpRequest": {"url": "http://a"}}}]
    done = api.call("BatchCreateTasks", {"parent": QUEUE, "requests": bad})
    assert done["error"]["code"] == 10
    assert "response" not in done
    assert sorted(done["metadata"]["failedRequests"]) == ["0", "1"]


def test_a_repeated_batch_adds_nothing(api: Api) -> None:
    """A client that got no answer repeats its request, and gets the same tasks."""
    batch = {"parent": QUEUE, "requests": [*requests(3), {"parent": QUEUE, "task": {}}], "requestId": "r-1"}
    first = api.call("BatchCreateTasks", batch)
    again = api.call("BatchCreateTasks", batch)
    names = [[task["name"] for task in done["response"]["tasks"]] for done in (first, again)]
    assert names[0] == names[1]
    assert api.store.queries.counts()[STORED]["ready"] == 3
    api.call("BatchCreateTasks", {**batch, "requestId": "r-2"})
    assert api.store.queries.counts()[STORED]["ready"] == 6
    # Another request under the same ID is another one.
    api.call("BatchCreateTasks", {"parent": QUEUE, "requests": requests(2), "requestId": "r-1"})
    assert api.store.queries.counts()[STORED]["ready"] == 8


def test_an_operation_is_found_again(api: Api) -> None:
    """GetOperation returns what the batch was answered with."""
    done = api.call("BatchCreateTasks", {"parent": QUEUE, "requests": requests(1), "requestId": "r-1"})
    assert done["name"] == f"{PARENT}/operations/r-1"
    assert api.call("GetOperation", {"name": done["name"]}) == done
    with pytest.raises(ApiCallError, match="Requested entity was not found"):
        api.call("GetOperation", {"name": f"{PARENT}/operations/other"})


def test_many_are_deleted_at_once(api: Api) -> None:
    """Each name has its own answer."""
    done = api.call("BatchCreateTasks", {"parent": QUEUE, "requests": requests(3)})
    names = [task["name"] for task in done["response"]["tasks"]]
    given = [names[0], "nonsense", f"{QUEUE}/tasks/nothing", f"{PARENT}/queues/other/tasks/a", names[0], names[1]]
    deleted = api.call("BatchDeleteTasks", {"parent": QUEUE, "names": given})
    failed = {index: one["message"][:29] for index, one in deleted["metadata"]["failedRequests"].items()}
    assert failed == {
        "1": "Task name must be formatted: ",
        "2": "Requested entity was not foun",
        "3": "The queue name from request (",
        "4": "The task no longer exists, th",
    }
    assert deleted["metadata"]["state"] == "PARTIALLY_SUCCEEDED"
    assert api.store.queries.counts()[STORED]["ready"] == 1
    for number in (0, 1001):
        with pytest.raises(ApiCallError, match="between 1 and 1000"):
            api.call("BatchDeleteTasks", {"parent": QUEUE, "names": names[:1] * number})
