"""Tests of outcomes: for each way that an attempt can end, what happens to the task and which hooks are called."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from deferred_middleware import (
    DeferredMiddleware,
    EnqueueError,
    Outcome,
    PermanentTaskFailure,
    RetryLater,
    SingularTaskFailure,
    TaskContext,
    call,
    current_task,
    defer,
    defer_async,
)
from deferred_middleware.calls import payload
from deferred_middleware.config.hooks import AnyHook, Enqueued
from deferred_middleware.execution.outcomes import DeadLetter, Failure, RefusedRequest
from tests.support import sample
from tests.support.delivering import Queued, Response, request, task_environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Listener:
    """Records the hook calls."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.current: list[TaskContext | None] = []

    def before_task(self, context: TaskContext) -> None:
        """Record that a call is about to run."""
        assert context.call is not None
        self._hear("before_task", context)

    def after_task(self, context: TaskContext, outcome: Outcome) -> None:
        """Record the outcome."""
        self._hear("after_task", (context, outcome))

    def on_failure(self, failure: Failure) -> None:
        """Record a failure."""
        self._hear("on_failure", failure)

    def on_dead_letter(self, letter: DeadLetter) -> None:
        """Record a dead letter."""
        self._hear("on_dead_letter", letter)

    def on_refused(self, refused: RefusedRequest) -> None:
        """Record a refusal."""
        self._hear("on_refused", refused)

    def on_enqueue(self, enqueued: Enqueued) -> None:
        """Record an enqueued call."""
        self._hear("on_enqueue", enqueued)

    def _hear(self, event: str, facts: Any) -> None:
        self.heard.append((event, facts))
        self.current.append(current_task())

    def events(self) -> list[str]:
        """Return the names of the called hooks, in order."""
        return [event for event, _ in self.heard]

    def told(self, event: str) -> Any:
        """Return the argument of the only call of the hook ``event``."""
        (facts,) = (facts for name, facts in self.heard if name == event)
        return facts


def nowhere(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Stand for the app, which no task reaches."""
    raise NotImplementedError


@pytest.fixture
def listener() -> Listener:
    """Return a hook."""
    return Listener()


def deliver(listener: AnyHook, func: Any, *args: Any, **environ: Any) -> Response:
    """Run a call through the middleware with a hook, as the queue would."""
    made = call(func, *args)
    body = environ.pop("body", payload.dumps(made, 5))
    path = f"/_cb/deferred/{made.label.path}"
    return request(DeferredMiddleware(nowhere, hooks=[listener]), task_environ(body, path, **environ))


LAST = {"HTTP_X_DEFERRED_RETRY_LIMIT": "2", "HTTP_X_APPENGINE_TASKRETRYCOUNT": "2"}
CAPPED = {"HTTP_X_DEFERRED_MAX_ATTEMPTS": "3", "HTTP_X_APPENGINE_TASKRETRYCOUNT": "2"}
QUIET = ["before_task", "after_task"]
FAILING = ["before_task", "on_failure", "after_task"]
DEAD = ["before_task", "on_failure", "on_dead_letter", "after_task"]


@pytest.mark.parametrize(
    ("error", "environ", "status", "header", "outcome", "events"),
    [
        (SingularTaskFailure, {}, 408, None, Outcome.RETRY, QUIET),
        (SingularTaskFailure, LAST, 500, None, Outcome.FAILED, DEAD),
        (SingularTaskFailure, CAPPED, 200, "attempts-exhausted", Outcome.ATTEMPTS_EXHAUSTED, DEAD),
        (PermanentTaskFailure, {}, 200, "permanent-failure", Outcome.PERMANENT_FAILURE, DEAD),
        (PermanentTaskFailure, CAPPED, 200, "permanent-failure", Outcome.PERMANENT_FAILURE, DEAD),
        (ValueError, {}, 500, None, Outcome.FAILED, FAILING),
        (ValueError, LAST, 500, None, Outcome.FAILED, DEAD),
        (ValueError, CAPPED, 200, "attempts-exhausted", Outcome.ATTEMPTS_EXHAUSTED, DEAD),
        (ValueError, {**CAPPED, "HTTP_X_DEFERRED_MAX_ATTEMPTS": "4"}, 500, None, Outcome.FAILED, FAILING),
        (ValueError, {**CAPPED, "HTTP_X_APPENGINE_TASKRETRYCOUNT": "9"}, 200, "attempts-exhausted", None, DEAD),
        (SystemExit, {}, 500, None, Outcome.FAILED, FAILING),
        (GeneratorExit, {}, 500, None, Outcome.FAILED, FAILING),
        (RecursionError, {}, 500, None, Outcome.FAILED, FAILING),
        (MemoryError, {}, 500, None, Outcome.FAILED, FAILING),
    ],
)
def test_what_a_call_raises_decides(
    listener: Listener,
    error: type[BaseException],
    environ: dict[str, str],
    status: int,
    header: str | None,
    outcome: Outcome | None,
    events: list[str],
) -> None:
    """The exception and the attempt's number determine the status, the outcome header and the hook calls."""
    response = deliver(listener, sample.raises_new, error, **environ)

    assert (response.status, response.headers.get("x-deferred-outcome")) == (status, header)
    assert listener.events() == events
    context, told = listener.told("after_task")
    assert told is (outcome or Outcome.ATTEMPTS_EXHAUSTED)
    assert type(context.error) is error
    assert all(current is context for current in listener.current)


def test_a_call_that_returns_is_done(listener: Listener) -> None:
    """A successful call triggers two hooks: before_task and after_task."""
    assert deliver(listener, sample.note, 1).status == 200

    assert listener.events() == ["before_task", "after_task"]
    context, outcome = listener.told("after_task")
    assert outcome is Outcome.DONE
    assert context.error is None
    assert context.call.args == (1,)
    assert context.elapsed_seconds > 0


def test_a_failure_has_its_facts(listener: Listener) -> None:
    """on_failure gets the context, the call, the exception and the outcome."""
    deliver(listener, sample.raises_new, ValueError, "broken")

    failure = listener.told("on_failure")
    assert failure.call.args == (ValueError, "broken")
    assert str(failure.error) == "broken"
    assert failure.outcome is Outcome.FAILED
    assert failure.context.label == "tests.support.sample/raises_new"


def test_a_dead_letter_has_its_facts(listener: Listener) -> None:
    """on_dead_letter gets the call, the context, the exception, and the body to run it again."""
    deliver(listener, sample.raises_new, PermanentTaskFailure, "gone")

    letter = listener.told("on_dead_letter")
    assert str(letter.error) == "gone"
    assert letter.context.queue == "default"
    assert payload.loads(letter.body).args == letter.call.args
    assert letter.reason == "it raised PermanentTaskFailure"


def test_an_unreadable_task_is_retried_whatever_the_cap(listener: Listener) -> None:
    """A task whose callable is missing is always retried, because a newer version may have the callable."""
    body = payload.dumps(call(sample.note), 5).replace(b"note", b"nope")

    response = deliver(listener, sample.note, body=body, **CAPPED)

    assert (response.status, response.headers.get("x-deferred-outcome")) == (500, None)
    assert listener.events() == ["on_failure"]
    failure = listener.told("on_failure")
    assert (failure.call, failure.outcome) == (None, Outcome.UNREADABLE)
    assert failure.context.label == "tests.support.sample/note"


def test_an_unreadable_task_whose_retries_end_is_a_dead_letter(listener: Listener) -> None:
    """If an unreadable task's own retry options end its attempts, on_dead_letter is called with the body."""
    deliver(listener, sample.note, body=b"nonsense", **LAST)

    assert listener.told("on_dead_letter").body == b"nonsense"


def test_a_refusal_is_told(listener: Listener) -> None:
    """If a request is not from the queue, on_refused is called with the reason, and nothing runs."""
    assert deliver(listener, sample.note, HTTP_X_APPENGINE_TASKNAME=None).status == 403

    refusal = listener.told("on_refused")
    assert "X-AppEngine-TaskName" in str(refusal.error)
    assert refusal.environ["REQUEST_METHOD"] == "POST"


def test_refusals_are_counted(listener: Listener) -> None:
    """Each refusal has the number of requests that the middleware has refused so far."""
    app = DeferredMiddleware(nowhere, hooks=[listener])
    for _ in range(3):
        assert request(app, task_environ(b"", HTTP_X_APPENGINE_QUEUENAME="")).status == 403

    assert [refusal.error.count for event, refusal in listener.heard if event == "on_refused"] == [1, 2, 3]


def test_an_enqueue_is_told(listener: Listener, queued: Queued) -> None:
    """The middleware's hooks are called for every enqueue in the process."""
    DeferredMiddleware(nowhere, hooks=[listener])

    task = defer(sample.note, 1, _queue="quick")

    enqueued = listener.told("on_enqueue")
    assert (enqueued.task, enqueued.queue, enqueued.call.args) == (task, "quick", (1,))
    assert not enqueued.transactional


def test_a_hook_changes_no_outcome(caplog: pytest.LogCaptureFixture, queued: Queued) -> None:
    """If a hook raises, the exception is logged, and the task's outcome stays the same."""

    class Failing:
        def __getattr__(self, name: str) -> Any:
            if not name.startswith(("on_", "before_", "after_")):
                raise AttributeError(name)

            def fail(*facts: object) -> None:
                raise SystemExit(name)

            return fail

    with caplog.at_level(logging.ERROR):
        assert deliver(Failing(), sample.note, 1).status == 200
        assert deliver(Failing(), sample.raises_new, ValueError).status == 500
        assert deliver(Failing(), sample.raises_new, PermanentTaskFailure).status == 200
        assert deliver(Failing(), sample.note, HTTP_X_APPENGINE_TASKNAME=None).status == 403
        defer(sample.note, 1)

    assert len(queued.tasks()) == 1
    failed = [r.getMessage().split()[4] for r in caplog.records if r.getMessage().startswith("a hook failed in")]
    assert set(failed) == set(Listener.__dict__) & set(failed)
    assert {"before_task", "after_task", "on_failure", "on_dead_letter", "on_refused", "on_enqueue"} == set(failed)


def test_retry_later_enqueues_the_same_call_again(listener: Listener, queued: Queued) -> None:
    """RetryLater is acknowledged, and the call is enqueued again with its original arguments and its attempt count."""
    response = deliver(
        listener,
        sample.changes_then_postpones,
        [1],
        HTTP_X_APPENGINE_TASKRETRYCOUNT="1",
        HTTP_X_APPENGINE_QUEUENAME="quick",
    )

    assert (response.status, response.headers["x-deferred-outcome"]) == (200, "postponed")
    assert listener.events() == ["before_task", "on_enqueue", "after_task"]
    assert listener.told("after_task")[1] is Outcome.POSTPONED
    (task,) = queued.in_queue("quick")
    assert task.url == "/_cb/deferred/tests.support.sample/changes_then_postpones"
    assert payload.loads(task.payload).args == ([1],)
    assert task.headers["X-Deferred-Earlier-Attempts"] == "2"


def test_retry_later_is_named_by_the_task(queued: Queued) -> None:
    """A postponed task that is delivered twice is enqueued again once, and both deliveries are acknowledged."""
    for _ in range(2):
        assert deliver(Listener(), sample.raises, RetryLater(60)).status == 200
    assert len(queued.tasks()) == 1

    deliver(Listener(), sample.raises, RetryLater(60), HTTP_X_APPENGINE_TASKNAME="another")
    assert len(queued.tasks()) == 2


def test_a_name_that_comes_again_is_another_task(queued: Queued) -> None:
    """Two tasks with the same name and different enqueue times are different tasks."""
    for when in ("1.5", "2.5"):
        deliver(Listener(), sample.raises, RetryLater(60), HTTP_X_DEFERRED_ENQUEUED=when)

    assert len(queued.tasks()) == 2


def test_without_the_enqueue_the_attempt_has_failed(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """If the call can't be enqueued again, the status is 500, so that the queue retries, and the reason is logged."""
    assert deliver(listener, sample.raises, RetryLater(60)).status == 500

    assert listener.told("after_task")[1] is Outcome.FAILED
    assert "nothing answers the SDK's taskqueue API" in caplog.text


def test_the_reason_to_postpone_is_the_cause_if_that_fails(listener: Listener) -> None:
    """The error that hooks get leads to the RetryLater that the task raised."""
    again = RetryLater(60)

    deliver(listener, sample.raises, again)

    error = listener.told("on_failure").error
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert not isinstance(error, RetryLater)
    assert [one.countdown_seconds for one in chain if isinstance(one, RetryLater)] == [60]


def leave_enqueue(queue: str) -> None:
    """Start an enqueue, and don't wait for it."""
    defer_async(sample.note, _queue=queue)


def test_a_failed_enqueue_that_the_task_left_alone_fails_the_task(listener: Listener, queued: Queued) -> None:
    """If a task doesn't wait for an enqueue that fails, the attempt fails, and the hooks get the enqueue's error."""
    assert deliver(listener, leave_enqueue, "quick").status == 200
    assert listener.events() == [*QUIET[:1], "on_enqueue", *QUIET[1:]]
    listener.heard.clear()

    assert deliver(listener, leave_enqueue, "nowhere").status == 500

    assert listener.events() == FAILING
    failure = listener.told("on_failure")
    assert isinstance(failure.error, EnqueueError)
    assert (failure.error.queue, failure.outcome) == ("nowhere", Outcome.FAILED)
    assert listener.told("after_task")[1] is Outcome.FAILED


@pytest.mark.parametrize(
    ("cap", "of_function", "attempts", "status"),
    [
        (None, None, "98", "postponed"),
        (None, None, "99", "attempts-exhausted"),
        (3, None, "1", "postponed"),
        (3, None, "2", "attempts-exhausted"),
        (None, "2", "0", "postponed"),
        (None, "2", "1", "attempts-exhausted"),
        (9, "2", "1", "attempts-exhausted"),
        (2, "9", "1", "attempts-exhausted"),
    ],
)
def test_retry_later_has_a_cap(
    listener: Listener, queued: Queued, cap: int | None, of_function: str | None, attempts: str, status: str
) -> None:
    """The cap is the lower of RetryLater's and the function's, or 100; beyond it the task is a dead letter."""
    response = deliver(
        listener,
        sample.raises,
        RetryLater(60, max_attempts=cap),
        HTTP_X_DEFERRED_MAX_ATTEMPTS=of_function,
        HTTP_X_DEFERRED_EARLIER_ATTEMPTS=attempts,
    )

    assert response.headers["x-deferred-outcome"] == status
    assert ("on_dead_letter" in listener.events()) is (status != "postponed")
    assert len(queued.tasks()) == (status == "postponed")
