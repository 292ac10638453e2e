"""The table of the JSON API's routes: the API answers each of them, with the fields that the table has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import pytest

from deferred_middleware.server.admin.controls import TestControls
from deferred_middleware.server.admin.json_api import JsonApi
from deferred_middleware.server.admin.reports.cron import CronAnswer
from deferred_middleware.server.admin.routes.table import ROUTES, ApiRoute, methods_of
from deferred_middleware.server.config.virtual_clock import VirtualClock
from deferred_middleware.server.store.store import TaskStore
from tests.support.visiting import Visitor
from tests.unit.server.admin.failing import fail
from tests.unit.server.admin.test_json_api import TOKEN, Api

TYPES: dict[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "object": dict,
    "string": str,
}
BODIES = {
    "/eta": b'{"eta": "10min"}',
    "/queue": b'{"queue": "default"}',
    "/preview": b'{"text": "queue:\\n- name: new\\n"}',
    "/wait": b'{"timeout_seconds": 0}',
}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """Return the API of a server with a cron.yaml, and with the controls for tests."""
    (tmp_path / "cron.yaml").write_text("cron:\n- url: /report\n  schedule: every 1 hours\n")
    clock = VirtualClock()
    store = TaskStore(tmp_path / "tasks.sqlite", clock=clock.time, elapsed=clock.elapsed)
    visitor = Visitor(
        store,
        cron_directories=(tmp_path,),
        send_cron=lambda _target, _url: CronAnswer(status=200, seconds=0.1, text="ok"),
    )
    controls = TestControls(store, clock, lambda: None, forget_queues=lambda: None, name_of=lambda name: name)
    api = Api(store)
    api._app = JsonApi(visitor.operations, visitor.reports, token=TOKEN, controls=controls)
    yield api
    store.close()


def ask(api: Api, route: ApiRoute) -> tuple[int, dict[str, Any]]:
    """Send a request of a route for things that are there, and return the status and the content."""
    if "failure" in route.path or "retry" in route.path:
        fail(api.store, "a")
        task_id = next(task["id"] for task in api.get("/tasks")["tasks"])
    else:
        task_id = api.add(name="mine")
    name = api.get(f"/tasks/{task_id}")["task"]["name"]
    if route.operation == "undoPurge":
        api.post("/queues/default/purge")
    values = {"id": task_id, "queue": "default", "name": name, "failure": 1, "entry": 0}
    body = next((body for ending, body in BODIES.items() if route.path.endswith(ending)), b"")
    status, content, _headers = api.ask(route.method, route.path.format_map(values), body)
    return status, content


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_the_api_answers_each_route(api: Api, route: ApiRoute) -> None:
    """Each route of the table is there, and its answer has the fields and types of the table."""
    status, content = ask(api, route)

    assert status == 200, content
    for name, kind in route.answer.items():
        value = content[name]
        if not (kind.endswith("?") and isinstance(value, NoneType)):
            assert isinstance(value, TYPES[kind.rstrip("?")]), (name, value)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_other_methods_are_refused(api: Api, route: ApiRoute) -> None:
    """A method that the table doesn't have is answered with 405, and the header Allow has those of the table."""
    path = route.path.format_map({"id": 1, "queue": "q", "name": "n", "failure": 1, "entry": 0})
    known = {other.method for other in ROUTES if other.path == route.path}
    for method in {"GET", "HEAD", "POST", "PUT", "DELETE"} - known - ({"HEAD"} if "GET" in known else set()):
        status, _content, headers = api.ask(method, path)
        assert status == 405
        assert set(headers["Allow"].split(", ")) == known | ({"HEAD"} if "GET" in known else set())


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("", ("GET",)),
        ("clock", ("GET", "POST")),
        ("tasks/x", ("GET",)),
        ("tasks/1/run", ("POST",)),
        ("tasks/default/run", ("GET",)),
        ("tasks/1/name", ("GET",)),
        ("tasks/default/1/run", ("POST",)),
        ("tasks/1/2/3", ()),
        ("queues/default", ()),
        ("nonsense", ()),
    ],
)
def test_a_path_has_the_methods_of_its_route(path: str, methods: tuple[str, ...]) -> None:
    """A task's number is told from a queue's name, and a path without a route has no methods."""
    assert methods_of(path.split("/")) == methods
