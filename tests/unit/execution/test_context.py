"""Tests of the context of a running task."""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import threading
from collections.abc import Iterator

import pytest

from deferred_middleware import TaskContext, current_task
from deferred_middleware.execution.context import CURRENT_TASK
from tests.support.delivering import task_environ


@contextlib.contextmanager
def running(context: TaskContext) -> Iterator[None]:
    """Make ``context`` the running task's context."""
    token = CURRENT_TASK.set(context)
    try:
        yield
    finally:
        CURRENT_TASK.reset(token)


def test_a_first_attempt_knows_its_headers() -> None:
    """A first attempt has its name, queue and ETA, counts of 0, and nothing about an earlier attempt."""
    context = TaskContext(task_environ(b""), "tests.support.sample/note")

    assert (context.name, context.queue, context.label) == ("task1", "default", "tests.support.sample/note")
    assert (context.retry_count, context.execution_count, context.attempt) == (0, 0, 1)
    assert context.eta == datetime.datetime(2023, 11, 14, 22, 13, 20, 250_000, datetime.timezone.utc)
    assert (context.previous_response, context.retry_reason) == (None, None)
    assert (context.retry_limit, context.is_last_attempt) == (None, None)


def test_a_retry_knows_what_went_before() -> None:
    """A retry has the counts, the previous status and the retry reason."""
    environ = task_environ(
        b"",
        HTTP_X_APPENGINE_TASKRETRYCOUNT="3",
        HTTP_X_APPENGINE_TASKEXECUTIONCOUNT="2",
        HTTP_X_APPENGINE_TASKPREVIOUSRESPONSE="0",
        HTTP_X_APPENGINE_TASKRETRYREASON="Instance Unavailable",
    )
    context = TaskContext(environ)

    assert (context.retry_count, context.execution_count, context.attempt) == (3, 2, 4)
    assert (context.previous_response, context.retry_reason) == (0, "Instance Unavailable")


@pytest.mark.parametrize(("retries", "last"), [("0", False), ("1", False), ("2", True), ("5", True)])
def test_the_last_attempt_is_known_from_the_retry_limit(retries: str, last: bool) -> None:
    """With a limit of two retries, the third attempt is the last."""
    environ = task_environ(b"", HTTP_X_APPENGINE_TASKRETRYCOUNT=retries, HTTP_X_DEFERRED_RETRY_LIMIT="2")

    assert TaskContext(environ).is_last_attempt is last


@pytest.mark.parametrize("text", ["", "soon", "1e999", "nan"])
def test_nonsense_in_a_header_is_as_if_absent(text: str) -> None:
    """A header that is not a number counts as absent."""
    environ = task_environ(b"", HTTP_X_APPENGINE_TASKETA=text, HTTP_X_APPENGINE_TASKRETRYCOUNT=text)

    assert (TaskContext(environ).eta, TaskContext(environ).retry_count) == (None, 0)


def test_absent_headers_are_empty() -> None:
    """Without headers, a context is empty; it raises no error."""
    context = TaskContext({})

    assert (context.name, context.queue, context.retry_count, context.eta) == ("", "", 0, None)


def test_there_is_no_task_outside_of_one() -> None:
    """Outside a task there is no current task."""
    assert current_task() is None


def test_a_nested_context_gives_way_to_the_outer_one() -> None:
    """After a task runs another task inline, it has its own context back, also after an error."""
    outer, inner = TaskContext({}, "outer"), TaskContext({}, "inner")

    with running(outer):
        assert current_task() is outer
        with contextlib.suppress(ZeroDivisionError), running(inner):
            assert current_task() is inner
            raise ZeroDivisionError
        assert current_task() is outer
    assert current_task() is None


def test_a_thread_with_a_copied_context_sees_the_task() -> None:
    """A thread with a copy of the context sees the task; any other thread doesn't."""
    seen: list[TaskContext | None] = []
    task = TaskContext({}, "task")

    with running(task):
        context = contextvars.copy_context()
        for target in (lambda: context.run(lambda: seen.append(current_task())),):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join(10)

    assert seen == [task]


def test_the_request_is_a_webob_request() -> None:
    """The request object is created once, on first access."""
    context = TaskContext(task_environ(b"", HTTP_X_CUSTOM="mine"))

    assert context.request.headers["X-Custom"] == "mine"
    assert context.request is context.request


def test_the_facts_of_a_task_by_url() -> None:
    """For a task that Cloud Tasks delivered to a URL, the facts come from the headers X-CloudTasks-*."""
    task = TaskContext(
        {
            "HTTP_X_CLOUDTASKS_TASKNAME": "task1",
            "HTTP_X_CLOUDTASKS_QUEUENAME": "mail",
            "HTTP_X_CLOUDTASKS_TASKRETRYCOUNT": "3",
            "HTTP_X_CLOUDTASKS_TASKEXECUTIONCOUNT": "1",
            "HTTP_X_CLOUDTASKS_TASKETA": "1700000000.5",
            "HTTP_X_CLOUDTASKS_TASKPREVIOUSRESPONSE": "504",
            # A header of App Engine without the name of a task is not the platform's here.
            "HTTP_X_APPENGINE_TASKRETRYCOUNT": "9",
        }
    )

    assert (task.name, task.queue) == ("task1", "mail")
    assert (task.retry_count, task.execution_count, task.attempt) == (3, 1, 4)
    assert task.eta is not None
    assert task.eta.timestamp() == 1700000000.5
    assert (task.previous_response, task.retry_reason) == (504, None)
