"""defer_async, defer_many, batches and RetryLater behave the same on each engine, also if its server keeps failing."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engines.apps import ENGINES, FAULTY, App, running_on

# A copy of the app's WAYS. The app can't be imported here, because it needs a process of its own.
WAYS = ("result", "get_result", "await", "yield", "callback", "forget")


@pytest.fixture(scope="module", params=(*ENGINES, *FAULTY))
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Run the app on an engine."""
    with running_on(request.param, tmp_path_factory.mktemp(request.param)) as running:
        running.adds()  # start counting
        yield running


@pytest.fixture(scope="module", params=(*ENGINES, *FAULTY))
def coalescing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Run the app on an engine with DEFERRED_COALESCE."""
    directory = tmp_path_factory.mktemp(request.param)
    with running_on(request.param, directory, {"DEFERRED_COALESCE": "true"}) as running:
        running.adds()
        yield running


@pytest.fixture
def mark() -> str:
    """Return an identifier of this test's tasks."""
    return f"m{uuid.uuid4().hex}"


def told(app: App, mark: str, count: int) -> list[dict[str, Any]]:
    """Return the notes of ``count`` tasks."""
    return [app.told_of(mark) for _ in range(count)]


@pytest.mark.parametrize("way", WAYS)
def test_asynchronous_calls_run(app: App, mark: str, way: str) -> None:
    """However the caller waits, each task is enqueued once, and none is lost if nobody waits."""
    if way == "yield" and not app.can("yield"):
        way = "result"
    answer = app.ask("/asynchronously", way=way, mark=mark, count=3)

    ran = told(app, mark, 3)
    assert sorted(each["args"][1] for each in ran) == [0, 1, 2]
    names = {each["name"] for each in ran}
    assert len(names) == 3
    assert way == "forget" or set(answer["names"]) == names


@pytest.mark.parametrize("way", [way for way in WAYS if way != "forget"])
def test_an_asynchronous_failure_is_raised(app: App, mark: str, way: str) -> None:
    """Waiting for a failed enqueue raises what defer would raise."""
    if way == "yield" and not app.can("yield"):
        way = "result"
    answer = app.ask("/asynchronously", way=way, mark=mark, count=3, options={"_queue": "nowhere"})

    kinds = {kind.rpartition(".")[2] for kind in answer["error"]}
    assert {"UnknownQueueError", "EnqueueError", "DeferredError"} <= kinds
    assert "'nowhere'" in answer["message"]


def test_a_failure_that_nobody_waits_for_is_logged(app: App, mark: str) -> None:
    """If nobody waits for a failed enqueue, the log has an ERROR with the call's name at the end of the request."""
    app.ask("/asynchronously", way="forget", mark=mark, count=1, options={"_queue": f"no-{mark}"})

    logged = app.told_of(mark)
    assert logged["level"] == "ERROR"
    assert logged["args"][0].startswith("tests.support.engines.app/record was not enqueued")


def test_many_calls_run(app: App, mark: str) -> None:
    """An RPC takes up to a hundred calls of one queue, and the report is in order."""
    app.adds()

    answer = app.ask("/many", mark=mark, options=[{"_queue": "quick"}] * 120 + [{}] * 3)

    assert sorted(app.adds()) == [3, 20, 100]
    assert answer["statuses"] == ["enqueued"] * 123
    assert answer["progress"][-1] == 123
    ran = told(app, mark, 123)
    assert sorted(each["args"][1] for each in ran) == list(range(123))
    assert {each["queue"] for each in ran if each["args"][1] < 120} == {"quick"}


def test_what_is_wrong_with_one_does_not_stop_the_others(app: App, mark: str) -> None:
    """The report shows a name that is in use and an unknown queue, and the other calls run."""
    app.defer("record", mark, "first", options={"_name": mark, "_countdown": 3600})

    answer = app.ask("/many", mark=mark, options=[{}, {"_name": mark}, {"_queue": "nowhere"}, {}])

    assert answer["statuses"] == ["enqueued", "already there", "failed", "enqueued"]
    assert "'nowhere'" in answer["reasons"][2]
    assert sorted(each["args"][1] for each in told(app, mark, 2)) == [0, 3]


def test_a_batch_leaves_together(app: App, mark: str) -> None:
    """Calls in a batch are sent in one RPC."""
    app.adds()

    answer = app.ask("/together", mark=mark)

    assert app.adds() == [2]
    assert answer["names"] == [each["name"] for each in told(app, mark, 2) if each["args"][1] == 1]


def test_a_batch_that_raises_sends_nothing(app: App, mark: str) -> None:
    """If a batch raises, nothing is enqueued."""
    app.adds()

    answer = app.ask("/together", mark=mark, raises=True)

    assert answer["message"] == mark
    assert app.adds() == []


def test_a_requests_calls_leave_together(coalescing: App, mark: str) -> None:
    """With DEFERRED_COALESCE, a request's asynchronous calls are sent in one RPC at its end."""
    coalescing.adds()

    coalescing.ask("/asynchronously", way="forget", mark=mark, count=5)

    assert sorted(each["args"][1] for each in told(coalescing, mark, 5)) == [0, 1, 2, 3, 4]
    assert coalescing.adds() == [5]


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("forget", "callback")])
def test_who_waits_lets_them_leave(coalescing: App, mark: str, way: str) -> None:
    """With DEFERRED_COALESCE, waiting for one call sends all pending calls."""
    if way == "yield" and not coalescing.can("yield"):
        way = "result"
    coalescing.adds()

    answer = coalescing.ask("/asynchronously", way=way, mark=mark, count=4)

    assert len(answer["names"]) == 4
    assert coalescing.adds() == [4]
    told(coalescing, mark, 4)


def test_a_coalesced_failure_is_logged(coalescing: App, mark: str) -> None:
    """If a call can't be enqueued at the request's end, the log has an ERROR with its name."""
    coalescing.ask("/asynchronously", way="forget", mark=mark, count=1, options={"_queue": f"no-{mark}"})

    logged = coalescing.told_of(mark)
    assert logged["level"] == "ERROR"
    assert logged["args"][0].startswith("tests.support.engines.app/record was not enqueued")


@pytest.mark.parametrize("size", [100, 200_000])
def test_retry_later_tries_again(app: App, mark: str, size: int) -> None:
    """Each retry is a new task with the call's payload, namespace and headers, and continues the attempt count."""
    size = app.large(size)
    answer = app.defer(
        "retry_later", mark, 2, random_bytes=size, namespace="tenant", options={"_headers": {"X-Colour": "blue"}}
    )

    ran = told(app, mark, 3)
    assert [each["args"] for each in ran] == [[size, answer["sha256"], mark, attempt] for attempt in (1, 2, 3)]
    assert {each["namespace"] for each in ran} == {"tenant"}
    assert {each["colour"] for each in ran} == {"blue"}
    assert len({each["name"] for each in ran}) == 3


def test_the_last_attempt_is_a_dead_letter(app: App, mark: str) -> None:
    """RetryLater in the last attempt is logged as an ERROR, and no further attempt follows."""
    app.defer("retry_later", mark, 9, random_bytes=100, options={"_max_attempts": 2})

    first, second, logged = (*told(app, mark, 2), _logged_of(app, mark))
    assert [first["args"][3], second["args"][3]] == [1, 2]
    assert second["is_last_attempt"] is True
    assert "tests.support.engines.app/retry_later" in logged["args"][0]
    app.defer("record", f"{mark} after")
    assert app.told_of(mark)["args"] == [f"{mark} after"]


def _logged_of(app: App, mark: str) -> dict[str, Any]:
    while True:
        heard = app.recorder.next()
        if heard.get("level") == "ERROR":
            return heard
        assert mark not in json.dumps(heard), heard
