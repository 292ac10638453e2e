"""Tests of the tools for users' test suites: capture, assertions, and runs through the app."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, taskqueue

from deferred_middleware import DeferredMiddleware, PermanentTaskFailure, SingularTaskFailure, current_task, defer
from deferred_middleware.testing import Clock, DeferredTasks, TaskRunError, capture_tasks
from tests.support import sample
from tests.support.repository import QUEUE_YAML_FOLDER


def not_found(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"nothing here\n"]


@pytest.fixture
def tasks() -> Iterator[DeferredTasks]:
    """The tasks of a test, with an app that runs them."""
    with capture_tasks(DeferredMiddleware(not_found)) as captured:
        yield captured


def again(times: int) -> None:
    """Defer itself ``times`` more times."""
    sample.ran.append(times)
    if times:
        defer(again, times - 1)


def for_ever() -> None:
    """Defer itself without end."""
    defer(for_ever)


def third_time_lucky() -> None:
    """Fail twice, then succeed."""
    task = current_task()
    assert task is not None
    sample.ran.append((task.attempt, task.execution_count, task.previous_response, task.retry_reason))
    if task.attempt < 3:
        raise RuntimeError(f"attempt {task.attempt}")


def test_what_is_enqueued_can_be_looked_at(tasks: DeferredTasks) -> None:
    """A captured task has its call, its destination and its ETA."""
    options: dict[str, Any] = {"_queue": "mail", "_name": "one", "_target": "v2.background", "_countdown": 60}
    defer(sample.pair, 1, second=[2], **options)

    (task,) = tasks.enqueued
    assert (task.func, task.args, task.kwargs) == (sample.pair, (1,), {"second": [2]})
    assert (task.queue, task.name, task.target, task.url) == (
        "mail",
        "one",
        "v2.background",
        "/_cb/deferred/tests.support.sample/pair",
    )
    assert abs(task.eta.timestamp() - time.time() - 60) < 30
    assert str(task.label) == "tests.support.sample/pair"


def test_nothing_is_sent_anywhere_and_nothing_stays(tasks: DeferredTasks) -> None:
    """A block captures only the tasks that are enqueued inside it."""
    with capture_tasks() as inner:
        defer(sample.note)
    defer(sample.pair, 1)

    assert [task.func for task in inner.enqueued] == [sample.note]
    assert [task.func for task in tasks.enqueued] == [sample.pair]


def test_what_answered_before_answers_again() -> None:
    """After the block, the SDK's stub map is restored, also if the block raises."""
    before = apiproxy_stub_map.apiproxy.GetStub("taskqueue")

    with pytest.raises(ZeroDivisionError), capture_tasks():
        raise ZeroDivisionError

    assert apiproxy_stub_map.apiproxy.GetStub("taskqueue") is before


def test_asserting_what_was_enqueued(tasks: DeferredTasks) -> None:
    """An assertion matches positional and keyword arguments alike, and returns the task."""
    defer(sample.pair, 1, 2, _queue="mail", _countdown=3600)

    assert tasks.assert_enqueued(sample.pair, 1, second=2) is tasks.enqueued[0]
    tasks.assert_enqueued(sample.pair, first=1, second=2, _queue="mail", _countdown=3600)
    tasks.assert_not_enqueued(sample.pair, 1, 3)
    tasks.assert_not_enqueued(sample.note)


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((1, 3), {}, ["second: expected 3, enqueued with 2"]),
        ((1, 2), {"_queue": "mail"}, ["_queue: expected 'mail', enqueued with 'default'"]),
        ((1, 2), {"_times": 2}, ["was enqueued 1 times, not 2"]),
        ((1, 2), {"_countdown": 90}, ["eta: expected "]),
        ((1, 2), {"_name": "x"}, ["_name: expected 'x'"]),
        ((1, 2), {"_target": "v1.s"}, ["_target: expected 'v1.s', enqueued with None"]),
    ],
)
def test_what_differs_is_told(tasks: DeferredTasks, args: Any, kwargs: Any, told: list[str]) -> None:
    """A failed assertion names the argument or option, the expected value and the enqueued value."""
    defer(sample.pair, 1, 2)
    defer(sample.note)

    with pytest.raises(AssertionError) as caught:
        tasks.assert_enqueued(sample.pair, *args, **kwargs)

    for line in told:
        assert line in str(caught.value)
    assert "tests.support.sample/note()" in str(caught.value)


def test_nothing_enqueued_is_told_as_such(tasks: DeferredTasks) -> None:
    """If nothing was enqueued, the message says so, and assert_nothing_enqueued passes."""
    tasks.assert_nothing_enqueued()
    with pytest.raises(AssertionError, match="Nothing was enqueued"):
        tasks.assert_enqueued(sample.note)

    defer(sample.note)

    with pytest.raises(AssertionError, match=r"tests\.support\.sample/note"):
        tasks.assert_nothing_enqueued()
    with pytest.raises(AssertionError, match="was enqueued"):
        tasks.assert_not_enqueued(sample.note)


def test_a_method_of_an_object_is_found_by_the_objects_state(tasks: DeferredTasks) -> None:
    """A bound method's object is compared by state, because pickling makes a copy."""
    defer(sample.Mailer("ann").send, "hello")

    tasks.assert_enqueued(sample.Mailer("ann").send, "hello")
    tasks.assert_not_enqueued(sample.Mailer("bob").send, "hello")


def test_a_task_runs_through_the_app(tasks: DeferredTasks) -> None:
    """To run a task is to send its request to the app; afterwards the task is not pending."""
    defer(sample.note, 7)

    run = tasks.run()

    assert sample.ran == [((7,), {})]
    assert (run.status, run.attempt, run.ok, str(run.outcome)) == (200, 1, True, "Outcome.DONE")
    assert tasks.pending == []
    assert len(tasks.enqueued) == 1


def test_what_is_later_waits_for_the_clock(tasks: DeferredTasks) -> None:
    """A task with an ETA runs only when the clock has reached the ETA."""
    defer(sample.note, "later", _countdown=3600)
    defer(sample.note, "now")

    tasks.run_all()
    assert sample.ran == [(("now",), {})]

    tasks.clock.advance(datetime.timedelta(minutes=59))
    assert tasks.run_all() == []
    tasks.clock.advance(70)
    tasks.run_all()
    assert sample.ran[1:] == [(("later",), {})]


def test_scheduled_tasks_can_be_run_at_once_in_their_order(tasks: DeferredTasks) -> None:
    """With include_scheduled all tasks run, in the order of their ETAs."""
    defer(sample.note, 2, _countdown=200)
    defer(sample.note, 1, _countdown=100)

    tasks.run_all(include_scheduled=True)

    assert [args for args, _ in sample.ran] == [(1,), (2,)]


def test_a_clock_of_ones_own() -> None:
    """A test can pass its own clock."""
    now = [1000.0]
    with capture_tasks(DeferredMiddleware(not_found), clock=Clock(lambda: now[0])) as tasks:
        defer(sample.note, _countdown=50)
        assert tasks.run_all() == []
        now[0] += 51
        assert len(tasks.run_all()) == 1


def test_tasks_that_enqueue_tasks_are_followed(tasks: DeferredTasks) -> None:
    """All due tasks run, including the ones that tasks enqueue."""
    defer(again, 3)

    assert len(tasks.run_all()) == 4
    assert sample.ran == [3, 2, 1, 0]


def test_tasks_that_never_end_are_stopped(tasks: DeferredTasks) -> None:
    """If tasks enqueue tasks without end, the limit stops run_all with an error that names them."""
    defer(for_ever)

    with pytest.raises(TaskRunError, match=r"limit of 25 tasks, and more are due:\n.*for_ever"):
        tasks.run_all(limit=25)


def test_retries_have_the_counts_that_the_queue_sends(tasks: DeferredTasks) -> None:
    """With ``attempts``, a task is retried until it succeeds, with the headers of a retry."""
    defer(third_time_lucky)

    run = tasks.run(attempts=5)

    assert run.attempt == 3
    assert sample.ran == [(1, 0, None, None), (2, 1, 500, "App Error"), (3, 2, 500, "App Error")]
    assert [r.status for r in tasks.runs] == [500, 500, 200]


def test_what_a_task_raises_is_raised(tasks: DeferredTasks) -> None:
    """The task's own exception is raised in the test, and the task stays pending."""
    defer(sample.raises, KeyError("no such user"))

    with pytest.raises(KeyError, match="no such user"):
        tasks.run()

    assert len(tasks.pending) == 1
    run = tasks.run(raise_errors=False)
    assert (run.status, run.attempt, run.done) == (500, 2, False)
    assert isinstance(run.error, KeyError)


def test_a_permanent_failure_is_dropped_and_raised(tasks: DeferredTasks) -> None:
    """A permanent failure removes the task from the queue, and run raises it."""
    defer(sample.raises_new, PermanentTaskFailure, "never")

    with pytest.raises(PermanentTaskFailure, match="never"):
        tasks.run()

    assert tasks.pending == []
    assert (tasks.runs[0].status, tasks.runs[0].done, tasks.runs[0].ok) == (200, True, False)


def test_a_quiet_retry(tasks: DeferredTasks) -> None:
    """After a SingularTaskFailure the task is retried, as on the queue."""
    defer(sample.raises_new, SingularTaskFailure, "later")

    run = tasks.run(raise_errors=False)

    assert run.status == 408
    assert len(tasks.pending) == 1


def test_a_task_can_be_delivered_twice(tasks: DeferredTasks) -> None:
    """A test can deliver a task twice, because a queue delivers at least once."""
    defer(sample.note)

    tasks.run(deliveries=2)

    assert len(sample.ran) == 2


def test_a_request_that_never_reaches_the_handler_is_an_error() -> None:
    """If another layer answers instead of the middleware, run raises an error with the answer."""
    with capture_tasks(not_found) as tasks:
        defer(sample.note)

        with pytest.raises(TaskRunError, match="status 404: nothing here"):
            tasks.run()


def test_a_redirect_around_the_middleware_is_told_with_its_location() -> None:
    """A WSGI layer that redirects a task is named by the error's status and Location, and the task stays pending."""

    def redirect(environ: Any, start_response: Any) -> list[bytes]:
        start_response("301 Moved Permanently", [("Content-Type", "text/plain"), ("Location", "https://app.test/")])
        return [b"see there"]

    with capture_tasks(redirect) as tasks:
        defer(sample.note, 1)
        with pytest.raises(TaskRunError, match=r"status 301 and Location 'https://app\.test/': see there"):
            tasks.run()
        assert tasks.run(raise_errors=False).location == "https://app.test/"


def test_without_an_app_nothing_can_run() -> None:
    """Without an app, run raises an error that says what to set."""
    with capture_tasks() as tasks:
        defer(sample.note)

        with pytest.raises(TaskRunError, match=r"deferred_tasks\.app"):
            tasks.run()


def test_run_wants_to_know_which_task(tasks: DeferredTasks) -> None:
    """If several tasks are pending, run() without a task raises an error that lists them."""
    defer(sample.note, 1)
    defer(sample.note, 2)

    with pytest.raises(TaskRunError, match=r"(?s)exactly one.*note\(1\).*note\(2\)"):
        tasks.run()

    tasks.run(tasks.pending[1])
    assert sample.ran == [((2,), {})]


def test_immediate_mode_runs_at_once() -> None:
    """In immediate mode, a task has run when defer returns."""
    with capture_tasks(DeferredMiddleware(not_found), immediate=True) as tasks:
        defer(again, 2)
        assert sorted(sample.ran) == [0, 1, 2]
        assert tasks.pending == []


def test_what_fails_in_immediate_mode_is_raised_at_the_end() -> None:
    """In immediate mode, the block raises a task's exception at its end; defer() itself doesn't, as on a queue."""
    went_on = False
    with pytest.raises(ValueError, match="bad"):  # noqa: PT012, SIM117 - the test is about where it is raised
        with capture_tasks(DeferredMiddleware(not_found), immediate=True):
            defer(sample.raises, ValueError("bad"))
            went_on = True
    assert went_on


def test_names_are_as_on_the_queue(tasks: DeferredTasks) -> None:
    """A name can't be used twice, even after its task has run."""
    defer(sample.note, _name="once")
    with pytest.raises(taskqueue.TaskAlreadyExistsError):
        defer(sample.note, _name="once")
    tasks.run()
    with pytest.raises(taskqueue.TombstonedTaskError):
        defer(sample.note, _name="once")


def test_a_queue_yaml_says_which_queues_there_are() -> None:
    """With a queue.yaml, an unknown queue name raises the same error as on App Engine."""
    with capture_tasks(queue_yaml=QUEUE_YAML_FOLDER / "queue.yaml") as tasks:
        defer(sample.note, _queue="quick")
        with pytest.raises(taskqueue.UnknownQueueError):
            defer(sample.note, _queue="quik")
        assert [task.queue for task in tasks.enqueued] == ["quick"]


def test_a_task_that_is_no_call_of_ours_is_captured_too(tasks: DeferredTasks) -> None:
    """A task that the SDK's own taskqueue.add enqueues is captured, without a call."""
    taskqueue.add(url="/work", payload=b"not a pickle")

    (task,) = tasks.enqueued
    assert (task.url, task.func, task.call) == ("/work", None, None)
    assert task.call_error is not None


def test_clear_forgets(tasks: DeferredTasks) -> None:
    """After clear(), no task is enqueued or pending."""
    defer(sample.note)
    tasks.clear()

    tasks.assert_nothing_enqueued()
    assert tasks.run_all() == []


def test_cloud_tasks_mode_is_captured_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the variable for Cloud Tasks is set, a test still sends nothing."""
    monkeypatch.setenv("APPENGINE_USE_CLOUDTASK_PUSH_QUEUE", "true")

    with capture_tasks() as tasks:
        defer(sample.note)

    tasks.assert_enqueued(sample.note)


def test_what_the_app_deletes_does_not_run(tasks: DeferredTasks) -> None:
    """A task that the app deletes, or whose queue it purges, is not pending any more."""
    defer(sample.note, 1, _name="gone")
    defer(sample.note, 2, _queue="other")
    defer(sample.note, 3)

    taskqueue.Queue("default").delete_tasks_by_name("gone")
    taskqueue.Queue("other").purge()
    tasks.run_all()

    assert sample.ran == [((3,), {})]


@pytest.mark.parametrize("option", [{"_queu": "mail"}, {"_max_attempts": 3}, {"_headers": {}}, {"_deadline": 60}])
@pytest.mark.parametrize("takes_any_name", [False, True])
def test_an_option_that_is_not_compared_is_a_type_error(option: dict[str, Any], takes_any_name: bool) -> None:
    """A misspelt option, or one that assertions don't compare, would make a negative assertion pass always."""
    func: Any = sample.note if takes_any_name else sample.pair
    with capture_tasks() as tasks:
        defer(func, 1)
        for check in (tasks.assert_not_enqueued, tasks.assert_enqueued):
            with pytest.raises(TypeError, match=next(iter(option))):
                check(func, 1, **option)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((1, 2, 3), {}), ((), {"fist": 1}), ((1,), {"first": 1}), ((), {"second": 1})]
)
def test_arguments_that_do_not_fit_are_a_type_error(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """No call with these arguments can have been enqueued, so the assertion is wrong."""
    with capture_tasks() as tasks:
        for check in (tasks.assert_not_enqueued, tasks.assert_enqueued):
            with pytest.raises(TypeError, match="can't be called with these arguments"):
                check(sample.pair, *args, **kwargs)


def test_an_argument_with_an_underscore_and_other_names_are_compared() -> None:
    """What is the function's own isn't mistaken for an option."""
    with capture_tasks() as tasks:
        defer(sample.takes_own_option, 1, _flavour="sweet")
        defer(sample.note, colour="red")

        tasks.assert_enqueued(sample.takes_own_option, 1, _flavour="sweet")
        tasks.assert_not_enqueued(sample.takes_own_option, 1, _flavour="sour")
        tasks.assert_enqueued(sample.note, colour="red")


class Cells:
    """Compares cell by cell, as an array does."""

    def __init__(self, *cells: object) -> None:
        self.cells = cells

    def __eq__(self, other: object) -> Any:
        return Cells(*(one == two for one, two in zip(self.cells, getattr(other, "cells", ()), strict=False)))

    def __bool__(self) -> bool:
        raise ValueError("The truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment] # as an array


class Detached:
    """Has no text, as an object of an ORM without its session."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Detached) and self.number == other.number

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        raise RuntimeError("not bound to a session")


@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: [value], lambda value: {"a": (value,)}], ids=["bare", "list", "dict"]
)
@pytest.mark.parametrize(
    ("deferred", "equal", "other"),
    [
        (Cells(1, 2), Cells(1, 2), Cells(1, 3)),
        (Detached(1), Detached(1), Detached(2)),
        (10**6000, 10**6000, 5),
        (5, 5, 10**6000),
        (1, 1, Cells(1)),
    ],
    ids=["array", "no text", "huge", "small", "mixed"],
)
def test_assertions_survive_hard_arguments(wrap: Any, deferred: object, equal: object, other: object) -> None:
    """An argument whose comparison or text raises is equal to its like, and a difference is an AssertionError."""
    with capture_tasks() as tasks:
        defer(sample.note, wrap(deferred))

        tasks.assert_enqueued(sample.note, wrap(equal))
        with pytest.raises(AssertionError, match="was enqueued"):
            tasks.assert_not_enqueued(sample.note, wrap(equal))
        tasks.assert_not_enqueued(sample.note, wrap(other))
        with pytest.raises(AssertionError, match="was not enqueued"):
            tasks.assert_enqueued(sample.note, wrap(other))
        assert "note(" in str(tasks.enqueued[0])
