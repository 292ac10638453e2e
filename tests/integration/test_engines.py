"""defer behaves the same on each engine: the local server, the SDK's own stub, and Cloud Tasks with both targets.

Tasks with URLs are also tried on our own emulator of Cloud Tasks. The local server and Cloud Tasks are also tried
through a server that fails every other call, each time in another way: it refuses the call for now, doesn't answer,
cuts the connection, adds half of the tasks, or loses the answer after it has added them. What an engine can't do is
listed in ``tests.support.engines.cannot``.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines.apps import EMULATED, ENGINES, FAULTY, App, running_on

WAIT_SECONDS = 60.0


@pytest.fixture(scope="module", params=(*ENGINES, *FAULTY, EMULATED))
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Run the app on an engine."""
    with running_on(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def mark() -> str:
    """Return an identifier of this test's tasks."""
    return f"m{uuid.uuid4().hex}"


def wait_until_removed(app: App, chunks: int = 0) -> None:
    """Wait until at most ``chunks`` are in the datastore; by then the tasks that had payloads there are done."""
    deadline = time.monotonic() + WAIT_SECONDS
    while app.ask("/payloads")["chunks"] > chunks:
        assert time.monotonic() < deadline, app.ask("/payloads")


def chunks(app: App) -> int:
    """Return the number of payload chunks in the datastore."""
    count: int = app.ask("/payloads")["chunks"]
    return count


def settled_payloads(app: App) -> dict[str, int]:
    """Return what is in the datastore once the tasks of the tests before have removed their payloads."""
    deadline = time.monotonic() + WAIT_SECONDS
    found: dict[str, int] = app.ask("/payloads")
    while True:
        time.sleep(0.2)  # a task removes its payload soon after it has ended, and nothing announces that
        last, found = found, app.ask("/payloads")
        if found == last:
            return found
        assert time.monotonic() < deadline, found


def test_a_call_runs(app: App, mark: str) -> None:
    """A call runs with its arguments, at the URL with its label, as the task that defer returned."""
    answer = app.defer("record", mark, 1, [2], {"three": 3})

    told = app.told_of(mark)
    assert told["args"] == [mark, 1, [2], {"three": 3}]
    assert told["path"] == "/_cb/deferred/tests.support.engines.app/record"
    assert told["queue"] == answer["queue"] == "default"
    assert told["name"] == answer["name"]
    assert answer["was_enqueued"]
    assert answer["warnings"] == []


@pytest.mark.parametrize("namespace", ["tenant", ""])
def test_the_namespace_is_restored(app: App, mark: str, namespace: str) -> None:
    """A task runs in the namespace that was current at defer, even if a middleware sets another one."""
    app.defer("record", mark, namespace=namespace)

    assert app.told_of(mark)["namespace"] == namespace


def test_the_users_headers_come_along(app: App, mark: str) -> None:
    """The caller's headers and the platform's reach the task's request."""
    app.defer("record", mark, options={"_headers": {"X-Colour": "blue"}, "_name": mark})

    headers = app.told_of(mark)["headers"]
    assert headers["HTTP_X_COLOUR"] == "blue"
    assert headers[app.header("QUEUENAME")] == "default"
    assert headers[app.header("TASKNAME")] == mark
    assert headers[app.header("TASKRETRYCOUNT")] == "0"


def test_fail_fast_is_passed_on_or_warned_about(app: App, mark: str) -> None:
    """The only header of the platform's that a task may set is sent, or defer warns that it isn't."""
    answer = app.defer("record", mark, options={"_headers": {"X-AppEngine-Fail-Fast": "true"}})

    app.told_of(mark)
    assert len(answer["warnings"]) == (0 if app.can("fail-fast") else 1)


def test_an_instance_is_a_target_or_an_error(app: App, mark: str) -> None:
    """A target that names an instance is sent to the queue, or refused at once."""
    asked: dict[str, Any] = {"options": {"_target": "0.v1.default", "_countdown": 3600}}

    if app.can("instances"):
        app.defer("record", mark, **asked)
    else:
        kinds, message = app.refuses("record", mark, **asked)
        assert "TargetError" in kinds
        assert "instance" in message


def test_a_long_deadline_is_taken_or_an_error(app: App, mark: str) -> None:
    """A deadline of more than half an hour is sent to the queue, or refused at once."""
    asked: dict[str, Any] = {"options": {"_deadline": 3600, "_countdown": 3600}}

    if app.can("long-deadline"):
        app.defer("record", mark, **asked)
    else:
        kinds, message = app.refuses("record", mark, **asked)
        assert "InvalidDispatchDeadlineError" in kinds
        assert "1,800" in message


def test_no_module_of_the_sdk_is_imported_without_it(app: App, mark: str) -> None:
    """An app whose tasks have URLs imports nothing of App Engine, also after it has enqueued and run tasks."""
    app.defer("record", mark)
    app.told_of(mark)

    assert (app.ask("/modules")["modules"] == []) is (app.engine == "http")


@pytest.mark.parametrize("option", ["_countdown", "eta_seconds"])
def test_nothing_runs_before_its_time(app: App, mark: str, option: str) -> None:
    """A task with an ETA or a countdown doesn't run early, and its request has the ETA."""
    started = time.time()

    app.defer("record", mark, options={option: 0.7})

    told = app.told_of(mark)
    assert started + 0.7 - 0.01 <= float(told["headers"][app.header("TASKETA")]) <= told["at"] + 0.01


def test_a_name_is_used_once(app: App, mark: str) -> None:
    """A second task of the same name is refused, both while the first one waits and after it has run."""
    app.defer("record", mark, options={"_name": mark, "_countdown": 3600})
    kinds, message = app.refuses("record", mark, options={"_name": mark})
    assert {"TaskAlreadyExistsError", "EnqueueError", "DeferredError"} <= set(kinds)
    assert mark in message
    assert "'default'" in message

    app.defer("record", mark, options={"_name": f"{mark}-2"})
    app.told_of(mark)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        kinds, message = app.refuses("record", mark, options={"_name": f"{mark}-2"})
        if "TombstonedTaskError" in kinds or not app.can("tombstones"):
            break
        assert "TaskAlreadyExistsError" in kinds  # the first task has sent its note, but is not done yet
        assert time.monotonic() < deadline
    assert {"TombstonedTaskError", "TaskAlreadyExistsError"} & set(kinds)


def test_an_unknown_queue_is_an_error(app: App, mark: str) -> None:
    """Deferring to an unknown queue raises the SDK's error with the queue's name, and leaves no payload."""
    before = settled_payloads(app)["chunks"]

    kinds, message = app.refuses("record_size", mark, random_bytes=app.large(), options={"_queue": "nowhere"})

    assert {"UnknownQueueError", "EnqueueError"} <= set(kinds)
    assert "'nowhere'" in message
    # After an attempt of which the outcome is unknown, the payload stays.
    assert app.is_faulty or chunks(app) == before


def test_too_large_is_an_error(app: App, mark: str) -> None:
    """A payload above DEFERRED_MAX_PAYLOAD_BYTES raises the SDK's error, with its size and the limit."""
    kinds, message = app.refuses("record_size", mark, random_bytes=3_100_000)

    assert {"TaskTooLargeError", "EnqueueError"} <= set(kinds)
    assert "3,000,000" in message
    assert "DEFERRED_MAX_PAYLOAD_BYTES" in message


@pytest.mark.parametrize("size", [1_000, 102_000, 200_000, 2_500_000])
def test_a_payload_of_any_size_runs(app: App, mark: str, size: int) -> None:
    """A payload of any size arrives unchanged, in its namespace, and is deleted when the task is done."""
    before = settled_payloads(app)["chunks"]
    size = app.large(size)

    answer = app.defer("record_size", mark, random_bytes=size, namespace="tenant")

    told = app.told_of(mark)
    assert told["args"] == [size, answer["sha256"], mark]
    assert told["namespace"] == "tenant"
    wait_until_removed(app, before)


def test_what_compresses_is_compressed(app: App, mark: str) -> None:
    """A large payload that compresses well is not stored in the datastore."""
    before = settled_payloads(app)

    app.defer("record_text", "x" * 1_000_000, mark)

    assert app.told_of(mark)["args"] == [1_000_000, mark]
    assert app.ask("/payloads") == before


def test_a_failed_attempt_is_repeated(app: App, mark: str) -> None:
    """A failed task is retried with its payload and the number of attempts."""
    options = {"_retry_options": {"task_retry_limit": 3, "min_backoff_seconds": 1, "max_backoff_seconds": 1}}

    answer = app.defer("fail_first", mark, 1, options=options)

    assert [app.told_of(mark)["args"][1] for _ in range(2)] == [0, 1]
    assert answer["warnings"] == []


def test_a_payload_of_a_failed_task_stays_until_it_is_swept(app: App, mark: str) -> None:
    """A task that failed for good keeps its payload, so that it can be replayed, until the sweep after the expiry."""
    app.defer("fail_for_good", mark, random_bytes=app.large())
    app.told_of(mark)

    assert chunks(app) >= 1
    assert app.ask("/sweep")["removed"] >= 1
    assert app.ask("/payloads") == {"chunks": 0, "entities": 0}


both = pytest.mark.parametrize("transaction", ["ndb", "db"])
either = pytest.mark.parametrize("size", [100, 200_000])


@both
@either
@pytest.mark.parametrize("transactional", [True, "auto"])
def test_committed_means_enqueued(app: App, mark: str, transaction: str, size: int, transactional: object) -> None:
    """A transactional task runs with its payload after the transaction commits."""
    options = {"_transactional": transactional}
    size = app.large(size)

    answer = app.defer(
        "record_size", mark, random_bytes=size, transaction=transaction, write=mark, options=options, namespace="tenant"
    )

    told = app.told_of(mark)
    assert told["args"] == [size, answer["sha256"], mark]
    assert told["namespace"] == "tenant"


@both
@either
def test_rolled_back_means_not_enqueued(app: App, mark: str, transaction: str, size: int) -> None:
    """A transaction that is rolled back leaves no task, no payload and no entity."""
    size = app.large(size)
    before = settled_payloads(app)["chunks"]

    app.ask(
        "/defer",
        function="record_size",
        args=[mark],
        random_bytes=size,
        transaction=transaction,
        write=mark,
        rollback=True,
        options={"_transactional": True},
    )

    assert chunks(app) <= before
    assert app.ask("/exists", write=mark) == {"exists": False}
    app.defer("record", f"{mark} after")
    assert app.told_of(mark)["args"] == [f"{mark} after"]


@both
@either
def test_a_conflict_enqueues_once(app: App, mark: str, transaction: str, size: int) -> None:
    """If a transaction is tried three times, only the last attempt's task runs, and nothing else is left."""
    size = app.large(size)
    before = settled_payloads(app)["chunks"]

    assert app.ask("/conflict", mark=mark, transaction=transaction, random_bytes=size) == {"attempts": 3}

    assert app.told_of(mark)["args"][2] == f"{mark} 3"
    wait_until_removed(app, before)
    app.defer("record", f"{mark} after")
    assert app.told_of(mark)["args"] == [f"{mark} after"]


@both
def test_a_sixth_task_is_refused(app: App, mark: str, transaction: str) -> None:
    """A transaction takes five tasks; a sixth one raises an error that says so."""
    asked: dict[str, Any] = {"transaction": transaction, "options": {"_transactional": True}}
    kinds, message = app.refuses("record", mark, times=6, **asked)
    assert {"TransactionLimitError", "BadRequestError", "EnqueueError"} <= set(kinds)
    assert "5 tasks" in message

    app.defer("record", f"{mark} five", times=5, **asked)
    assert [app.told_of(mark)["args"] for _ in range(5)] == [[f"{mark} five"]] * 5


@both
def test_a_missing_xg_is_an_error(app: App, mark: str, transaction: str) -> None:
    """Without xg, a task that is an entity of its own is refused with a hint, and any other task is accepted."""
    asked: dict[str, Any] = {"transaction": transaction, "write": mark, "xg": False}
    asked["options"] = {"_transactional": True}
    if not app.can("db"):
        # Each transaction of google-cloud-ndb spans several groups.
        app.defer("record_size", f"{mark} large", random_bytes=app.large(), **asked)
        assert app.told_of(mark)["args"][2] == f"{mark} large"
        return

    kinds, message = app.refuses("record_size", mark, random_bytes=app.large(), **asked)
    assert {"CrossGroupError", "BadRequestError", "EnqueueError"} <= set(kinds)
    assert "xg=True" in message

    if not app.can("single-group"):
        kinds, message = app.refuses("record", mark, **asked)
        assert "CrossGroupError" in kinds
        assert "xg=True" in message
    else:
        app.defer("record", f"{mark} small", **asked)
        assert app.told_of(mark)["args"] == [f"{mark} small"]


def test_outside_a_transaction_is_an_error(app: App, mark: str) -> None:
    """_transactional=True needs a transaction, and "auto" doesn't."""
    kinds, message = app.refuses("record", mark, options={"_transactional": True})
    assert {"BadTransactionStateError", "TransactionError"} <= set(kinds)
    assert "there is none" in message

    app.defer("record", mark, options={"_transactional": "auto", "_name": mark})
    assert app.told_of(mark)["name"] == mark


def test_a_name_in_a_transaction_is_an_error(app: App, mark: str) -> None:
    """If a task in a transaction has a name, the error names the option."""
    for transactional in (True, "auto"):
        options = {"_transactional": transactional, "_name": mark}
        kinds, message = app.refuses("record", mark, transaction="ndb", options=options)
        assert "OptionError" in kinds
        assert "_name" in message


def test_the_sdks_own_calls_work(app: App, mark: str) -> None:
    """The SDK's own calls delete, count and purge deferred tasks."""
    if not app.can("sdk-calls"):
        return  # it is about the SDK's own client
    names = [f"{mark}-{number}" for number in range(3)]

    local = app.engine == "local"
    answer = app.ask("/batch", queue="default" if local else "slow", names=names, count=not local)

    assert answer["added"] == names
    assert answer["deleted"] == [True, False]
    assert answer["counted"] == (None if local else 2)


def test_a_killed_process_leaves_nothing_of_its_transaction(tmp_path: Path, mark: str) -> None:
    """If an app process is killed between its writes and the commit, no entity, payload or task is left."""
    with running_on("local", tmp_path) as app:

        def ask() -> None:
            try:
                app.ask(
                    "/defer",
                    function="record_size",
                    args=[mark],
                    random_bytes=1_200_000,
                    transaction="ndb",
                    write=mark,
                    kill_me=True,
                    options={"_transactional": True},
                )
            except (OSError, ValueError):
                return  # the process is dead, so there is no answer

        asking = threading.Thread(target=ask)
        asking.start()
        os.kill(app.recorder.next()["pid"], signal.SIGKILL)
        asking.join(WAIT_SECONDS)
        assert not asking.is_alive()

        assert ask_when_up(app, "/exists", write=mark) == {"exists": False}
        assert app.ask("/payloads") == {"chunks": 0, "entities": 0}
        app.defer("record", f"{mark} after")
        assert app.told_of(mark)["args"] == [f"{mark} after"]


def ask_when_up(app: App, path: str, **asked: Any) -> dict[str, Any]:
    """Send a request as soon as the app's process is available again."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return app.ask(path, **asked)
        except (OSError, ValueError):
            assert time.monotonic() < deadline
