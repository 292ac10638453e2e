"""The JSON API: each endpoint's responses and errors, on a real store."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from deferred_middleware.server.admin.json_api import JsonApi
from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.reports.reports import Reports
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.store.records import AttemptRecord, Completion, Lane, NewTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import stored_tasks

TOKEN = "the-token-of-this-run"
NOW_USEC = int(time.time() * 1e6)


class Api:
    """The API on its own store; ``woken`` counts how often the scheduler was woken."""

    def __init__(self, store: TaskStore) -> None:
        self.store = store
        self.woken = 0

        def wake() -> None:
            self.woken += 1

        operations = Operations(store, queues=QueueRegistry, wake_scheduler=wake, about={"pid": 42})
        self._app: Any = JsonApi(operations, Reports(operations), token=TOKEN)
        self.validates = True

    def ask(
        self, method: str, path: str, body: bytes = b"", *, token: str | None = TOKEN, **more: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Return the status, content and headers of a response."""
        path, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": "/api/v1" + path,
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "SERVER_NAME": "x",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": _Errors(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **more,
        }
        if token is not None:
            environ["HTTP_X_DEFERRED_ADMIN_TOKEN"] = token
        started: list[Any] = []

        def start_response(*given: Any) -> Any:
            started[:] = given
            return lambda _data: None

        result: Any = (validator(self._app) if self.validates else self._app)(environ, start_response)
        data = b"".join(result)
        if self.validates:
            result.close()
        return int(started[0].split()[0]), json.loads(data) if data else {}, dict(started[1])

    def get(self, path: str) -> dict[str, Any]:
        """Send a GET request and return its content; the status must be 200."""
        status, content, _headers = self.ask("GET", path)
        assert status == 200, content
        return content

    def post(self, path: str, body: bytes = b"") -> dict[str, Any]:
        """Send a POST request and return its content; the status must be 200."""
        status, content, _headers = self.ask("POST", path, body)
        assert status == 200, content
        return content

    def add(self, *, queue: str = "default", url: str = "/_cb/deferred/mail/send", **options: Any) -> int:
        """Add a task; return its ID."""
        (added,) = self.store.add([NewTask(queue=queue, url=url, **{"eta_usec": NOW_USEC, **options})])
        assert added.outcome == "added"
        task = self.store.queries.get(queue, added.name)
        assert task is not None
        return task.id

    def finish(self, task_id: int, state: str) -> None:
        """Record an attempt that leaves the task in ``state``."""
        task = self.store.queries.get_by_id(task_id)
        assert task is not None
        (claimed,) = [
            claimed
            for claimed in self.store.claim({Lane(task.queue, task.target): 100}, 2**62)
            if claimed.id == task_id
        ]
        attempt = AttemptRecord(
            number=1,
            started_usec=NOW_USEC,
            duration_usec=1500,
            status=500,
            reason="status 500",
            service="default",
            excerpt=b"Traceback \xff",
        )
        completion = Completion(
            task_id=task_id,
            claim_token=claimed.claim_token,
            state=state,  # type: ignore[arg-type] # the tests give one
            eta_usec=NOW_USEC,
            first_attempt_usec=NOW_USEC,
            finished_usec=None if state == "ready" else NOW_USEC,
            retry_count=1,
            execution_count=1,
            previous_response=500,
            retry_reason="App Error",
            attempt=attempt,
            queue=claimed.queue,
            url=claimed.url,
        )
        assert self.store.complete([completion]) == [True]


class _Errors:
    def flush(self) -> None: ...

    def write(self, text: str) -> None: ...

    def writelines(self, lines: Any) -> None: ...


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """Return an API on an empty store."""
    store = TaskStore(tmp_path / "tasks.sqlite")
    yield Api(store)
    store.close()


def test_it_tells_about_the_server(api: Api) -> None:
    """The root of the API returns the server's process ID."""
    assert api.get("/") == {"server": {"pid": 42}}


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_without_the_token_nothing_is_told_or_done(api: Api, token: str | None) -> None:
    """Without the run's token, every request gets 401 and changes nothing."""
    api.add()
    for method, path in [("GET", "/"), ("GET", "/queues"), ("GET", "/tasks"), ("POST", PURGE), ("POST", "/nonsense")]:
        status, content, headers = api.ask(method, path, token=token)
        assert status == 401
        assert content["error"]["code"] == "no-token"
        assert TOKEN not in json.dumps(content)
        assert headers["WWW-Authenticate"]
    assert api.store.queries.counts() == {"default": {"ready": 1}}
    assert api.woken == 0


PURGE = "/queues/default/purge"
CHANGES = [
    *(f"/tasks/1/{action}" for action in ("run", "retry", "delete")),
    *(f"/tasks/default/mine/{action}" for action in ("run", "retry", "delete")),
    *(
        f"/queues/default/{action}"
        for action in ("pause", "resume", "purge", "retry", "delete-failed", "run-scheduled", "forget")
    ),
    "/retry",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_changes_take_post(api: Api, method: str) -> None:
    """An endpoint that changes something accepts only POST."""
    api.add(eta_usec=2**60, name="mine")
    for path in CHANGES:
        status, _content, headers = api.ask(method, path)
        assert (status, headers["Allow"]) == (405, "POST")
    assert api.store.queries.counts() == {"default": {"ready": 1}}
    assert api.store.operations.paused() == frozenset()
    assert api.woken == 0


def test_looking_takes_get(api: Api) -> None:
    """An endpoint that only reads accepts only GET and HEAD."""
    for path in ("/", "/queues", "/tasks", "/tasks/1", "/tasks/default/x"):
        status, _content, headers = api.ask("POST", path)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_queues_are_counted(api: Api) -> None:
    """Each queue that is configured or has tasks is listed with its counts."""
    api.add()
    api.add(eta_usec=2**60)
    api.finish(api.add(queue="old"), "failed")
    api.store.operations.pause("old")
    default, old = api.get("/queues")["queues"]
    assert (default["name"], default["configured"], default["paused"]) == ("default", True, False)
    assert (default["ready"], default["due"], default["scheduled"], default["retrying"]) == (2, 1, 1, 0)
    assert default["next_eta_usec"] == 2**60
    assert default["config"]["name"] == "default"
    assert (old["name"], old["configured"], old["paused"], old["failed"]) == ("old", False, True, 1)
    assert old["config"] is None


def test_what_waits_for_another_attempt_is_counted_apart(api: Api) -> None:
    """A task in its back-off counts as retrying, neither as due nor as scheduled."""
    api.finish(api.add(target="x"), "ready")
    waiting = api.store.queries.backlog("default")
    assert (waiting.due, waiting.scheduled, waiting.retrying) == (1, 0, 0)
    api.store._database._clock = lambda: NOW_USEC / 1e6 - 60
    waiting = api.store.queries.backlog("default")
    assert (waiting.due, waiting.scheduled, waiting.retrying, waiting.next_eta_usec) == (0, 0, 1, NOW_USEC)


def test_tasks_are_listed_newest_first_and_in_pages(api: Api) -> None:
    """A page has at most ``limit`` tasks and says where the next page begins."""
    ids = [api.add() for _ in range(5)]
    first = api.get("/tasks?limit=2")
    assert [task["id"] for task in first["tasks"]] == [ids[4], ids[3]]
    rest = api.get(f"/tasks?limit=10&before={first['next_before']}")
    assert [task["id"] for task in rest["tasks"]] == [ids[2], ids[1], ids[0]]
    assert rest["next_before"] is None


def test_tasks_are_found_by_queue_state_and_function(api: Api) -> None:
    """Tasks can be filtered by queue, state and function, alone or combined."""
    api.finish(api.add(), "failed")
    other = api.add(queue="other", url="/_cb/deferred/shop.orders/Order.ship")
    plain = api.add(queue="other", url="/work?id=1")

    def found(query: str) -> list[int]:
        return [task["id"] for task in api.get(f"/tasks?{query}")["tasks"]]

    assert found("queue=other") == [plain, other]
    assert [task["state"] for task in api.get("/tasks?state=failed")["tasks"]] == ["failed"]
    assert found("function=order.SHIP") == found("function=shop.orders/Order.ship") == [other]
    assert found("queue=other&state=ready&function=ship") == [other]
    assert found("queue=other&function=send") == []
    (listed,) = (task for task in api.get("/tasks?queue=other&function=ship")["tasks"])
    assert listed["function"] == "shop.orders/Order.ship"
    assert "headers" not in listed
    (plain_task,) = api.get("/tasks?function=work")["tasks"]
    assert plain_task["function"] is None


def test_a_task_is_shown_whole(api: Api) -> None:
    """A task is found by its ID or by queue and name, with headers, call and attempts; invalid UTF-8 is replaced."""
    body = pickle.dumps((print, (1, "two"), {"end": ""}))
    task_id = api.add(body=body, headers=(("X-Mine", "yes"),), name="mine")
    api.finish(task_id, "failed")
    shown = api.get(f"/tasks/{task_id}")["task"]
    assert shown == api.get("/tasks/default/mine")["task"]
    assert (shown["state"], shown["function"], shown["body_bytes"]) == ("failed", "mail/send", len(body))
    assert shown["headers"] == [["X-Mine", "yes"]]
    assert shown["payload"]["text"] == "print(1, 'two', end='')"
    (attempt,) = shown["attempts"]
    assert (attempt["status"], attempt["duration_usec"], attempt["excerpt"]) == (500, 1500, "Traceback \ufffd")


def test_a_task_is_run(api: Api) -> None:
    """Running a task with a later ETA makes it due now and wakes the scheduler."""
    task_id = api.add(eta_usec=2**60)
    assert api.post(f"/tasks/{task_id}/run") == {"task": task_id, "done": "run"}
    assert [task.id for task in api.store.claim_forced(10)] == [task_id]
    assert api.woken == 1


def test_a_failed_task_is_retried(api: Api) -> None:
    """Retrying makes a dead letter ready again; a task that has not failed can't be retried."""
    task_id = api.add()
    assert api.ask("POST", f"/tasks/{task_id}/retry")[0] == 409
    api.finish(task_id, "failed")
    problem = api.ask("POST", f"/tasks/{task_id}/run")[1]["error"]["message"]
    assert problem.endswith("it has failed for good; retry it instead.")
    assert api.post(f"/tasks/{task_id}/retry") == {"task": task_id, "done": "retry"}
    assert api.store.queries.counts() == {"default": {"ready": 1}}
    assert api.woken == 1


def test_all_failed_tasks_are_retried(api: Api) -> None:
    """The dead letters of one queue, or of all queues, can be retried."""
    for queue in ("default", "default", "other"):
        api.finish(api.add(queue=queue), "failed")
    assert api.post("/queues/other/retry") == {"queue": "other", "retried": 1}
    assert api.post("/retry") == {"retried": 2}
    assert api.store.queries.counts() == {"default": {"ready": 2}, "other": {"ready": 1}}


def test_a_task_whose_name_is_taken_is_not_retried(api: Api) -> None:
    """If a later task has taken its name, a dead letter is not retried and the error says why."""
    first = api.add(name="mine")
    api.finish(first, "failed")
    api.post("/queues/default/forget", b'{"name": "mine"}')
    api.add(name="mine")
    status, content, _headers = api.ask("POST", f"/tasks/{first}/retry")
    assert (status, content["error"]["code"]) == (409, "name-taken")


def test_tasks_are_deleted(api: Api) -> None:
    """Tasks can be deleted one by one, all waiting tasks of a queue, or all its failed ones."""
    task_id = api.add()
    assert api.post(f"/tasks/{task_id}/delete") == {"task": task_id, "done": "delete"}
    assert api.ask("POST", f"/tasks/{task_id}/delete")[0] == 404
    api.finish(api.add(), "failed")
    api.add()
    purged = api.post("/queues/default/purge")
    assert (purged["queue"], purged["deleted"]) == ("default", 1)
    assert api.post("/queues/default/undo-purge") == {"queue": "default", "restored": 1, "refused": 0}
    assert api.post("/queues/default/purge")["deleted"] == 1
    assert api.post("/queues/default/delete-failed") == {"queue": "default", "deleted": 1}
    assert api.store.queries.counts() == {}


def test_a_queue_is_paused_and_resumed(api: Api) -> None:
    """The response says whether a pause changed anything; pause and resume both wake the scheduler."""
    assert api.post("/queues/default/pause") == {"queue": "default", "changed": True}
    assert api.post("/queues/default/pause") == {"queue": "default", "changed": False}
    assert api.store.operations.paused() == {"default"}
    assert api.post("/queues/default/resume") == {"queue": "default", "changed": True}
    assert api.woken == 3


def test_scheduled_tasks_are_made_due(api: Api) -> None:
    """Tasks with a later ETA become due, but tasks in their back-off don't."""
    api.finish(api.add(), "ready")
    ids = [api.add(eta_usec=2**60, target=target) for target in ("", "local.background")]
    api.store._database._clock = lambda: NOW_USEC / 1e6 - 60
    assert api.post("/queues/default/run-scheduled") == {"queue": "default", "made_due": 2}
    waiting = api.store.queries.backlog("default")
    assert (waiting.due, waiting.scheduled, waiting.retrying) == (2, 0, 1)
    assert {task.id for task in stored_tasks(api.store) if task.eta_usec == NOW_USEC - 60_000_000} == set(ids)


def test_names_are_forgotten(api: Api) -> None:
    """One name or all names of a queue can be forgotten; a forgotten name can be used again."""
    for name in ("a", "b", "c"):
        api.finish(api.add(name=name), "succeeded")
    assert api.post("/queues/default/forget", b'{"name": "a"}') == {"queue": "default", "forgotten": 1}
    assert api.post("/queues/default/forget")["forgotten"] == 2
    api.add(name="a")


ERRORS = [
    ("GET", "/nonsense", b"", 404, "no-such-page", "The API has nothing at '/api/v1/nonsense'."),
    ("GET", "/queues/default", b"", 404, "no-such-page", "nothing at"),
    ("POST", "/queues/default/explode", b"", 404, "no-such-page", "nothing at"),
    ("POST", "/queues/nope/pause", b"", 404, "no-such-queue", "no queue 'nope'; the queues are: default."),
    ("GET", "/tasks?queue=nope", b"", 404, "no-such-queue", "no queue 'nope'"),
    ("GET", "/tasks/99", b"", 404, "no-such-task", "no task '99'"),
    ("GET", "/tasks/" + "9" * 40, b"", 404, "no-such-task", "no task '999"),
    ("GET", "/tasks/\u0663", b"", 404, "no-such-task", "no task"),
    ("GET", "/tasks/default/nope", b"", 404, "no-such-task", "no task 'default/nope'"),
    ("POST", "/tasks/99/run", b"", 404, "no-such-task", "no task '99'"),
    (
        "GET",
        "/tasks?state=bogus",
        b"",
        400,
        "bad-request",
        "state='bogus' is not a state; the states are ready, running,",
    ),
    ("GET", "/tasks?statee=ready", b"", 400, "bad-request", "'statee'"),
    ("GET", "/tasks?limit=0", b"", 400, "bad-request", "limit='0' is not a whole number from 1 to 1000"),
    ("GET", "/tasks?limit=x", b"", 400, "bad-request", "limit='x'"),
    ("GET", "/tasks?before=-1", b"", 400, "bad-request", "before='-1'"),
    ("POST", "/queues/default/forget", b"[1]", 400, "bad-request", "JSON object"),
    ("POST", "/queues/default/forget", b"{", 400, "bad-request", "JSON object"),
    ("POST", "/queues/default/forget", b'{"name": 1}', 400, "bad-request", "name must be a text"),
    ("POST", "/queues/default/forget", b" " * 70_000, 413, "too-large", "at most 65536 bytes"),
]


def test_errors_are_told(api: Api) -> None:
    """Each error has a status, a machine-readable code, and a sentence with the wrong value."""
    for method, path, body, status, code, message in ERRORS:
        got, content, _headers = api.ask(method, path, body)
        assert (got, content["error"]["code"]) == (status, code)
        assert message in content["error"]["message"]
    assert api.woken == 0


def test_a_store_that_fails_is_told(api: Api) -> None:
    """If the store fails, the response is a JSON error with status 500."""
    api.store.close()
    status, content, _headers = api.ask("POST", "/queues/default/purge")
    assert (status, content["error"]["code"]) == (500, "store-failed")


def test_head_is_get_without_the_content(api: Api) -> None:
    """HEAD has the headers of GET, and no body."""
    status, content, headers = api.ask("HEAD", "/queues")
    assert (status, content) == (200, {})
    assert int(headers["Content-Length"]) > 50


@pytest.mark.parametrize(
    "body", [b"[" * 60_000, b"{" * 60_000, b'{"a":' * 12_000, b"\xff", b'"\\ud800"', b"nul"], ids=range(6)
)
def test_a_malformed_body_is_a_bad_request(api: Api, body: bytes) -> None:
    """JSON that is damaged or nested too deep is answered with 400."""
    status, content, _ = api.ask("POST", "/queues/default/pause", body)

    assert (status, content["error"]["code"]) == (400, "bad-request")


@pytest.mark.parametrize("length", ["x", "-1", "1, 1", "\u0663", "9" * 10_000])
def test_a_malformed_length_is_a_bad_request(api: Api, length: str) -> None:
    """A Content-Length that is no number is answered with 400, one that is too large with 413."""
    api.validates = False
    status, _, _ = api.ask("POST", "/queues/default/pause", b"{}", CONTENT_LENGTH=length)

    assert status == (413 if length.startswith("9") else 400)
