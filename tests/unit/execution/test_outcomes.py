"""Tests of outcomes: what becomes of a task, and what hooks are told, for each way in which an attempt can end."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from deferred_middleware import (
    DeferredMiddleware,
    Outcome,
    PermanentTaskFailure,
    RetryLater,
    SingularTaskFailure,
    TaskContext,
    call,
    current_task,
    defer,
)
from deferred_middleware.calls import payload
from deferred_middleware.config.hooks import Enqueued
from deferred_middleware.execution.outcomes import DeadLetter, Failure, RefusedRequest
from tests.support import sample
from tests.support.delivering import Queued, Response, request, task_environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Listener:
    """Writes down what hooks are told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.current: list[TaskContext | None] = []

    def before_task(self, context: TaskContext) -> None:
        """Hear that a call is about to run."""
        assert context.call is not None
        self._hear("before_task", context)

    def after_task(self, context: TaskContext, outcome: Outcome) -> None:
        """Hear how it ended."""
        self._hear("after_task", (context, outcome))

    def on_failure(self, failure: Failure) -> None:
        """Hear of a failure."""
        self._hear("on_failure", failure)

    def on_dead_letter(self, letter: DeadLetter) -> None:
        """Hear of a dead letter."""
        self._hear("on_dead_letter", letter)

    def on_refused(self, refused: RefusedRequest) -> None:
        """Hear of a refusal."""
        self._hear("on_refused", refused)

    def on_enqueue(self, enqueued: Enqueued) -> None:
        """Hear of an enqueued call."""
        self._hear("on_enqueue", enqueued)

    def _hear(self, event: str, facts: Any) -> None:
        self.heard.append((event, facts))
        self.current.append(current_task())

    def events(self) -> list[str]:
        """Return what happened, in order."""
        return [event for event, _ in self.heard]

    def told(self, event: str) -> Any:
        """Return what the hook was told of the only such event."""
        (facts,) = (facts for name, facts in self.heard if name == event)
        return facts


def nowhere(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Stand for the app, which no task reaches."""
    raise NotImplementedError


@pytest.fixture
def listener() -> Listener:
    """Return a hook."""
    return Listener()


def deliver(listener: object, func: Any, *args: Any, **environ: Any) -> Response:
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
    """Status, outcome header and hooks follow from what was raised and from which attempt it is."""
    response = deliver(listener, sample.raises_new, error, **environ)

    assert (response.status, response.headers.get("x-deferred-outcome")) == (status, header)
    assert listener.events() == events
    context, told = listener.told("after_task")
    assert told is (outcome or Outcome.ATTEMPTS_EXHAUSTED)
    assert type(context.error) is error
    assert all(current is context for current in listener.current)


def test_a_call_that_returns_is_done(listener: Listener) -> None:
    """A success is told twice: before and after."""
    assert deliver(listener, sample.note, 1).status == 200

    assert listener.events() == ["before_task", "after_task"]
    context, outcome = listener.told("after_task")
    assert outcome is Outcome.DONE
    assert context.error is None
    assert context.call.args == (1,)
    assert context.elapsed_seconds > 0


def test_a_failure_has_its_facts(listener: Listener) -> None:
    """What on_failure is told: context, call, error and outcome."""
    deliver(listener, sample.raises_new, ValueError, "broken")

    failure = listener.told("on_failure")
    assert failure.call.args == (ValueError, "broken")
    assert str(failure.error) == "broken"
    assert failure.outcome is Outcome.FAILED
    assert failure.context.label == "tests.support.sample/raises_new"


def test_a_dead_letter_has_its_facts(listener: Listener) -> None:
    """What on_dead_letter is told: call, context, exception, and the body to run it again."""
    deliver(listener, sample.raises_new, PermanentTaskFailure, "gone")

    letter = listener.told("on_dead_letter")
    assert str(letter.error) == "gone"
    assert letter.context.queue == "default"
    assert payload.loads(letter.body).args == letter.call.args
    assert letter.reason == "it raised PermanentTaskFailure"


def test_an_unreadable_task_is_retried_whatever_the_cap(listener: Listener) -> None:
    """A callable that isn't there is never given up by us, because a newer version may have it."""
    body = payload.dumps(call(sample.note), 5).replace(b"note", b"nope")

    response = deliver(listener, sample.note, body=body, **CAPPED)

    assert (response.status, response.headers.get("x-deferred-outcome")) == (500, None)
    assert listener.events() == ["on_failure"]
    failure = listener.told("on_failure")
    assert (failure.call, failure.outcome) == (None, Outcome.UNREADABLE)
    assert failure.context.label == "tests.support.sample/note"


def test_an_unreadable_task_whose_retries_end_is_a_dead_letter(listener: Listener) -> None:
    """If its own retry options end its attempts, somebody is told, with the body."""
    deliver(listener, sample.note, body=b"nonsense", **LAST)

    assert listener.told("on_dead_letter").body == b"nonsense"


def test_a_refusal_is_told(listener: Listener) -> None:
    """A request that is not the queue's is told with its reason, and runs nothing."""
    assert deliver(listener, sample.note, HTTP_X_APPENGINE_TASKNAME=None).status == 403

    refusal = listener.told("on_refused")
    assert "X-AppEngine-TaskName" in str(refusal.error)
    assert refusal.environ["REQUEST_METHOD"] == "POST"


def test_refusals_are_counted(listener: Listener) -> None:
    """The hooks hear how many requests were refused by the middleware so far."""
    app = DeferredMiddleware(nowhere, hooks=[listener])
    for _ in range(3):
        assert request(app, task_environ(b"", HTTP_X_APPENGINE_QUEUENAME="")).status == 403

    assert [refusal.error.count for event, refusal in listener.heard if event == "on_refused"] == [1, 2, 3]


def test_an_enqueue_is_told(listener: Listener, queued: Queued) -> None:
    """What is enqueued anywhere in the process is told to the middleware's hooks."""
    DeferredMiddleware(nowhere, hooks=[listener])

    task = defer(sample.note, 1, _queue="quick")

    enqueued = listener.told("on_enqueue")
    assert (enqueued.task, enqueued.queue, enqueued.call.args) == (task, "quick", (1,))
    assert not enqueued.transactional


def test_a_hook_changes_no_outcome(caplog: pytest.LogCaptureFixture, queued: Queued) -> None:
    """Hooks that raise, whatever it is, are logged, and the task ends as it would without."""

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
    """RetryLater is acknowledged, and the call is in the queue with its arguments as they came and its attempts."""
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
    """A task that is delivered twice is enqueued again once, and both deliveries are acknowledged."""
    for _ in range(2):
        assert deliver(Listener(), sample.raises, RetryLater(60)).status == 200
    assert len(queued.tasks()) == 1

    deliver(Listener(), sample.raises, RetryLater(60), HTTP_X_APPENGINE_TASKNAME="another")
    assert len(queued.tasks()) == 2


def test_a_name_that_comes_again_is_another_task(queued: Queued) -> None:
    """Two tasks of the same name at different times are told apart."""
    for when in ("1.5", "2.5"):
        deliver(Listener(), sample.raises, RetryLater(60), HTTP_X_DEFERRED_ENQUEUED=when)

    assert len(queued.tasks()) == 2


def test_without_the_enqueue_the_attempt_has_failed(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    """Where the call can't be enqueued again the queue keeps the task: 500, and the reason is logged."""
    assert deliver(listener, sample.raises, RetryLater(60)).status == 500

    assert listener.told("after_task")[1] is Outcome.FAILED
    assert "nothing answers the SDK's taskqueue API" in caplog.text


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
    """The cap is RetryLater's or the function's, whichever is less, or 100; then the task is a dead letter."""
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
