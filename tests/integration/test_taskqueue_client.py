"""The SDK's unmodified client with the running server: every public method of queues, tasks and statistics."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from google.appengine.api import taskqueue

from tests.support.running import TELL, Recorder, Serve, Server

QUEUES = """
queue:
- name: push
  rate: 50/s
  bucket_size: 10
- name: still
  rate: 0/s
- name: pull
  mode: pull
"""

MAIN = (
    TELL
    + """
from google.appengine.api import taskqueue, wrap_wsgi_app

def error(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as raised:
        return type(raised).__name__
    return None

def pages(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    answer = b"ok"
    if environ["PATH_INFO"] == "/do":
        names = {"taskqueue": taskqueue, "error": error}
        exec(json.loads(body), names)
        answer = json.dumps(names["result"], default=bytes.decode).encode()
    else:
        tell(path=environ["PATH_INFO"], name=environ["HTTP_X_APPENGINE_TASKNAME"], body=body.decode())
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]

app = wrap_wsgi_app(pages)
"""
)

PUSH = """
still, push = taskqueue.Queue("still"), taskqueue.Queue("push")
retry = taskqueue.TaskRetryOptions(task_retry_limit=2)
one = still.add(taskqueue.Task(countdown=3600, url="/one", name="one", payload=b"x", retry_options=retry))
two, three = still.add([
    taskqueue.Task(countdown=3600, url="/two"),
    taskqueue.Task(countdown=3600, url="/three", method="PUT", payload=b"y"),
])
four = still.add_async(taskqueue.Task(countdown=3600, url="/four", name="four")).get_result()
five = taskqueue.Task(countdown=3600, url="/five", params={"a": "1"}).add("still")
six = taskqueue.Task(countdown=3600, url="/six").add_async("still").get_result()
taskqueue.add(queue_name="still", url="/seven", countdown=3600)
result = {
    "task": [one.name, one.queue_name, one.url, one.method, one.was_enqueued, one.was_deleted, one.payload.decode()],
    "rest": [one.size > 0, one.tag, one.target is not None, one.on_queue_url, one.retry_options.task_retry_limit,
             one.eta_posix > 0, one.eta is not None, len(one.headers) > 0, five.extract_params(),
             one.dispatch_deadline_usec],
    "names": len({t.name for t in (one, two, three, four, five, six)}),
    "queue": still.name,
    "taken": error(still.add, taskqueue.Task(url="/one", name="one")),
    "twice": error(still.add, [taskqueue.Task(url="/a", name="n"), taskqueue.Task(url="/b", name="n")]),
    "again": error(still.add, one),
    "pull mode": error(still.add, taskqueue.Task(method="PULL", payload=b"x")),
    "lease": error(still.lease_tasks, 1, 1),
    "unknown": error(taskqueue.add, url="/", queue_name="nope"),
    "unknown statistics": error(taskqueue.Queue("nope").fetch_statistics),
}
before = still.fetch_statistics()
result["statistics"] = [before.tasks, before.oldest_eta_usec, before.executed_last_minute,
                        before.in_flight, before.enforced_rate]
result["asynchronous"] = still.fetch_statistics_async().get_result() == before
result["fetch"] = [s.queue.name for s in taskqueue.QueueStatistics.fetch(["push", "still"])]
result["fetch_async"] = taskqueue.QueueStatistics.fetch_async(push).get_result().enforced_rate
still.delete_tasks(one)
still.delete_tasks_async([two]).get_result()
by_name = still.delete_tasks_by_name("four")
gone = still.delete_tasks_by_name_async(["one", "never-was"]).get_result()
result["deleted"] = [one.was_deleted, two.was_deleted, by_name.was_deleted, [task.was_deleted for task in gone]]
result["tombstone"] = error(still.add, taskqueue.Task(url="/one", name="one"))
result["left"] = still.fetch_statistics().tasks
still.purge()
result["purged"] = still.fetch_statistics().tasks
"""

RUN = """
push = taskqueue.Queue("push")
push.add([taskqueue.Task(url="/run", payload=str(n)) for n in range(3)])
result = None
"""

STATISTICS = """
found = taskqueue.Queue("push").fetch_statistics()
result = [found.tasks, found.executed_last_minute, found.oldest_eta_usec]
"""

LEASE = """
pull = taskqueue.Queue("pull")
pull.add([taskqueue.Task(method="PULL", payload=str(n), tag=tag, name="t%d" % n) for n, tag in enumerate("xyxyz")])
result = {}
leased = pull.lease_tasks(60, 1)
result["one"] = [(t.name, t.payload.decode(), t.tag, t.retry_count, t.queue_name) for t in leased]
result["by tag"] = [t.name for t in pull.lease_tasks_by_tag(60, 10, "y")]
result["oldest tag"] = [t.name for t in pull.lease_tasks_by_tag_async(60, 10).get_result()]
result["rest"] = [t.name for t in pull.lease_tasks_async(60, 10).get_result()]
result["none"] = pull.lease_tasks(60, 10)
(task,) = leased
before = task.eta_posix
pull.modify_task_lease(task, 600)
result["longer"] = task.eta_posix > before + 500
stale = taskqueue.Task(method="PULL", payload="0", name="t0", eta=task.eta)
pull.modify_task_lease(task, 0)
result["stale"] = error(pull.modify_task_lease, stale, 60)
result["free again"] = [(t.name, t.retry_count) for t in pull.lease_tasks(60, 10)]
figures = pull.fetch_statistics()
result["statistics"] = [figures.tasks, figures.executed_last_minute, figures.in_flight, figures.enforced_rate]
pull.delete_tasks([taskqueue.Task(method="PULL", payload="", name="t1")])
result["left"] = pull.fetch_statistics().tasks
result["gone"] = error(pull.modify_task_lease, taskqueue.Task(method="PULL", payload="", name="t1"), 60)
result["push mode"] = error(pull.add, taskqueue.Task(url="/"))
result["long tag"] = error(taskqueue.Task, method="PULL", payload="", tag="x" * 501)
pull.purge()
result["purged"] = pull.fetch_statistics().tasks
"""


@pytest.fixture
def server(serve: Serve) -> Server:
    """Start a server with a running push queue, a paused one, and a pull queue."""
    return serve({"main.py": MAIN, "queue.yaml": QUEUES})


def do(server: Server, source: str) -> Any:
    """Run Python code in the app, and return the value of its ``result``."""
    return json.loads(server.post("/do", source))


def test_a_push_queue_as_its_users_know_it(server: Server, recorder: Recorder) -> None:
    """The client can add, delete, count, purge and run tasks in each way that it offers, and gets the SDK's errors."""
    result = do(server, PUSH)
    assert result == {
        "task": ["one", "still", "/one", "POST", True, False, "x"],
        "rest": [True, None, True, False, 2, True, True, True, {"a": "1"}, None],
        "names": 6,
        "queue": "still",
        "taken": "TaskAlreadyExistsError",
        "twice": "DuplicateTaskNameError",
        "again": "BadTaskStateError",
        "pull mode": "InvalidQueueModeError",
        "lease": "InvalidQueueModeError",
        "unknown": "UnknownQueueError",
        "unknown statistics": "UnknownQueueError",
        "statistics": [7, None, 0, 0, 0],
        "asynchronous": True,
        "fetch": ["push", "still"],
        "fetch_async": 50,
        "deleted": [True, True, True, [False, False]],
        "tombstone": "TombstonedTaskError",
        "left": 4,
        "purged": 0,
    }
    do(server, RUN)
    assert sorted(recorder.next()["body"] for _ in range(3)) == ["0", "1", "2"]


def test_a_pull_queue_as_its_users_know_it(server: Server) -> None:
    """The client can lease tasks (also by tag), change and end leases, and delete tasks."""
    assert do(server, LEASE) == {
        "one": [["t0", "0", "x", 1, "pull"]],
        "by tag": ["t1", "t3"],
        "oldest tag": ["t2"],
        "rest": ["t4"],
        "none": [],
        "longer": True,
        "stale": "TaskLeaseExpiredError",
        "free again": [["t0", 2]],
        "statistics": [5, 6, None, None],
        "left": 4,
        "gone": "TombstonedTaskError",
        "push mode": "InvalidQueueModeError",
        "long tag": "InvalidTagError",
        "purged": 0,
    }


@pytest.mark.parametrize("kind", [taskqueue.Queue, taskqueue.Task, taskqueue.QueueStatistics])
def test_every_public_method_is_used(kind: type) -> None:
    """The code above uses every public method of the client's classes."""
    used = PUSH + RUN + STATISTICS + LEASE
    methods = [name for name, _ in inspect.getmembers(kind) if not name.startswith("_")]
    assert [name for name in methods if f".{name}" not in used] == []
