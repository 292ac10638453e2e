"""The calls about tasks."""

from __future__ import annotations

import pytest

from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError, RpcCode
from deferred_middleware.server.store.records import Lane
from deferred_middleware.server.store.store import TaskStore
from tests.support.cloud_api import QUEUE, Api
from tests.support.storing import DAY_USEC, NOW, Clock, completion, new_task, pull_task

STORED = "mail@europe-west1.my-project"
LANE = Lane(STORED, "http:")


@pytest.fixture
def api(store: TaskStore, clock: Clock) -> Api:
    """Return the API with one queue."""
    api = Api(store, clock)
    api.make_queue()
    return api


def test_a_new_task_wakes_the_scheduler(api: Api) -> None:
    """A task is on disk when it is answered, and the scheduler looks for it."""
    api.make_task()
    assert api.wakes == 1
    assert api.store.queries.counts()[STORED]["ready"] == 1


def test_a_running_task(api: Api) -> None:
    """A task in flight is shown with the attempt that is being made."""
    name = api.make_task()["name"]
    (claimed,) = api.store.claim({LANE: 1}, NOW)
    assert api.call("GetTask", {"name": name})["dispatchCount"] == 1
    assert [task["name"] for task in api.call("ListTasks", {"parent": QUEUE})["tasks"]] == [name]
    assert api.call("RunTask", {"name": name})["dispatchCount"] == 1
    assert api.call("DeleteTask", {"name": name}) == {}
    assert api.store.complete([completion(claimed)]) == [False]


@pytest.mark.parametrize("state", ["succeeded", "failed"])
@pytest.mark.parametrize("method", ["GetTask", "DeleteTask", "RunTask"])
def test_a_finished_task_is_gone(api: Api, state: str, method: str) -> None:
    """Neither a success nor a dead letter is there for clients, and the name is taken."""
    name = api.make_task(name=f"{QUEUE}/tasks/one")["name"]
    api.store.complete([completion(task, state) for task in api.store.claim({LANE: 1}, NOW)])
    with pytest.raises(ApiCallError, match="The task no longer exists"):
        api.call(method, {"name": name})
    with pytest.raises(ApiCallError, match="existed too recently"):
        api.make_task(name=name)
    assert api.call("ListTasks", {"parent": QUEUE}) == {}


def test_a_name_is_free_after_some_days(api: Api, clock: Clock) -> None:
    """The name of a finished task can be used again."""
    name = api.make_task(name=f"{QUEUE}/tasks/one")["name"]
    api.call("DeleteTask", {"name": name})
    clock.usec += 10 * DAY_USEC
    api.make_task(name=name)


def test_the_attempts_of_a_task(api: Api) -> None:
    """The first attempt has its time, and the last one how it ended."""
    name = api.make_task()["name"]
    (claimed,) = api.store.claim({LANE: 1}, NOW)
    api.store.complete([completion(claimed, "ready", eta_usec=NOW + 60_000_000)])
    shown = api.call("GetTask", {"name": name})
    assert shown["firstAttempt"] == {"dispatchTime": "2023-11-14T22:13:20Z"}
    assert shown["lastAttempt"] == {
        "scheduleTime": "2023-11-14T22:13:20Z",
        "dispatchTime": "2023-11-14T22:13:20Z",
        "responseTime": "2023-11-14T22:13:20.001200Z",
        "responseStatus": {"code": 13, "message": "INTERNAL(13): HTTP status code 500"},
    }
    assert shown["scheduleTime"] == "2023-11-14T22:14:20Z"


def test_tasks_of_the_taskqueue_api_are_listed(api: Api) -> None:
    """Push tasks of the other API are App Engine tasks; pull tasks are not shown."""
    api.store.add([new_task("pushed", queue=STORED, target="v1.worker"), pull_task("pulled", queue=STORED)])
    (task,) = api.call("ListTasks", {"parent": QUEUE})["tasks"]
    assert task["name"] == f"{QUEUE}/tasks/pushed"
    assert task["appEngineHttpRequest"]["relativeUri"] == "/work"
    assert task["appEngineHttpRequest"]["appEngineRouting"]["version"] == "v1"


def test_a_page_is_small_enough_for_a_client(api: Api) -> None:
    """A page of large tasks has fewer of them than a client takes, and the rest is on the next."""
    body = "A" * 1_000_000
    for _ in range(7):
        api.make_task(httpRequest={"url": "http://localhost", "body": body})
    found, token, pages = 0, "", 0
    while not pages or token:
        method = api.method("ListTasks")
        page = method.call(method.request(parent=QUEUE, response_view=2, page_token=token))
        assert page.ByteSize() < 4 << 20
        found, token, pages = found + len(page.tasks), page.next_page_token, pages + 1
    assert found == 7
    assert pages > 1


def test_many_tasks_in_pages(api: Api) -> None:
    """Without a size, a page has at most 1,000 tasks."""
    requests = [{"parent": QUEUE, "task": {"httpRequest": {"url": "http://a"}}} for _ in range(100)]
    for _ in range(11):
        api.call("BatchCreateTasks", {"parent": QUEUE, "requests": requests})
    first = api.call("ListTasks", {"parent": QUEUE, "pageSize": 5000})
    assert len(first["tasks"]) == 1000
    second = api.call("ListTasks", {"parent": QUEUE, "pageToken": first["nextPageToken"]})
    assert len(second["tasks"]) == 100
    assert "nextPageToken" not in second


def test_a_queue_that_does_not_exist(api: Api) -> None:
    """A task of an unknown queue was not found, and can't be created."""
    elsewhere = QUEUE.replace("mail", "nowhere")
    with pytest.raises(ApiCallError, match="Requested entity was not found"):
        api.call("GetTask", {"name": f"{elsewhere}/tasks/one"})
    with pytest.raises(ApiCallError) as caught:
        api.make_task(elsewhere)
    assert caught.value.code is RpcCode.NOT_FOUND
    with pytest.raises(ApiCallError, match="Queue does not exist"):
        api.call("DeleteTask", {"name": f"{elsewhere}/tasks/one"})
