"""Tests of tasks that raise hostile exceptions: outcome, log and hooks are those of ordinary exceptions."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from google.appengine.ext import deferred
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import RetryLater, Settings, call
from deferred_middleware.calls import payload
from deferred_middleware.config.hooks import Hooks
from deferred_middleware.errors.text import set_cause
from deferred_middleware.execution import logs
from deferred_middleware.execution.context import TaskContext
from deferred_middleware.execution.outcomes import DeadLetter, Failure, Outcome
from deferred_middleware.execution.runner import Runner, Warmup
from tests.support import sample
from tests.support.delivering import task_environ

SURROGATE = "lone \ud800 surrogate"


def _fail(*args: object) -> Any:
    raise RuntimeError("hostile")


def _fail_harder(*args: object) -> Any:
    raise SystemExit(SURROGATE)


TRAITS: dict[str, dict[str, Any]] = {
    "refuses attributes": {"__setattr__": _fail},
    "attributes can't be read": {"__getattribute__": _fail},
    "str raises": {"__str__": _fail},
    "str exits": {"__str__": _fail_harder},
    "str is no text": {"__str__": lambda self: 5},
    "repr raises": {"__repr__": _fail},
    "text can't be encoded": {"__str__": lambda self: SURROGATE},
    "repr can't be encoded": {"__repr__": lambda self: SURROGATE},
    "has a false class": {"__class__": property(_fail)},
    "causes can't be read": {"__cause__": property(_fail), "__context__": property(_fail)},
    "traceback can't be read": {"__traceback__": property(_fail)},
    "notes can't be read": {"__notes__": property(_fail)},
}
KINDS = (ValueError, deferred.PermanentTaskFailure, deferred.SingularTaskFailure, KeyError, SystemExit, BaseException)

_raised: list[BaseException] = []


def raise_it() -> None:
    """Raise the exception of the test."""
    raise _raised[-1]


class Listening:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_failure(self, failure: Failure) -> None:
        """Keep a failure."""
        self.heard.append(("failure", failure.outcome, type(failure.error).__mro__[1]))

    def on_dead_letter(self, letter: DeadLetter) -> None:
        """Keep a dead letter."""
        self.heard.append(("dead letter", letter.outcome, letter.reason))

    def after_task(self, context: TaskContext, outcome: Outcome) -> None:
        """Keep the outcome."""
        self.heard.append(("after", outcome))


class Written(logging.Handler):
    """Formats and encodes each record as a handler of a file does, and fails if that can't be done."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        self.messages: list[tuple[str, int, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        text = logging.Formatter("%(message)s").format(record)
        self.stream.write(text + "\n")
        # The text of the exception and the milliseconds aren't compared.
        self.messages.append((record.getMessage().partition(": ")[0], record.levelno, "Traceback" in text))


def end(error: BaseException, **environ: str) -> tuple[Any, ...]:
    """Return how a task that raises ``error`` ends."""
    _raised.append(error)
    body = payload.dumps(call(raise_it), 5)
    hook, handler = Listening(), Written()
    logger = logging.getLogger("deferred_middleware")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        context = TaskContext(task_environ(body, **environ))
        outcome = Runner(Settings(), Hooks([hook]), Warmup(None)).run(context, body, None)
        assert context.error is error
        assert logs.traceback_text(error, 4000).encode()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        _raised.clear()
    return outcome, hook.heard, handler.messages


@given(
    kind=st.sampled_from(KINDS),
    traits=st.sets(st.sampled_from(sorted(TRAITS)), min_size=1, max_size=4),
    cause=st.none() | st.sets(st.sampled_from(sorted(TRAITS)), min_size=1, max_size=2),
    max_attempts=st.sampled_from([None, "1", "3"]),
    text=st.sampled_from(["plain", SURROGATE]),
)
def test_a_hostile_exception_ends_as_an_ordinary_one(
    kind: type[BaseException], traits: set[str], cause: set[str] | None, max_attempts: str | None, text: str
) -> None:
    """Outcome, log records, hooks and dead letter are those of an ordinary exception of the same kind."""

    def made(names: set[str], base: type[BaseException], *args: str) -> BaseException:
        namespace: dict[str, Any] = {}
        for name in sorted(names):
            namespace |= TRAITS[name]
        raised: BaseException = type("Raised", (base,), namespace)(*args)
        return raised

    hostile, ordinary = made(traits, kind, text), made(set(), kind, "plain")
    if cause is not None:
        set_cause(hostile, made(cause, ValueError, text))
        ordinary.__cause__ = ValueError("plain")
    environ = {} if max_attempts is None else {"HTTP_X_DEFERRED_MAX_ATTEMPTS": max_attempts}

    assert end(hostile, **environ) == end(ordinary, **environ)


def test_a_retry_later_without_its_fields_is_a_failure() -> None:
    """A subclass that doesn't call RetryLater's __init__ fails the attempt, and the handler lives."""

    class Careless(RetryLater):
        def __init__(self) -> None:
            pass

    _raised.append(Careless())
    body = payload.dumps(call(raise_it), 5)
    context = TaskContext(task_environ(body))
    assert Runner(Settings(), Hooks(), Warmup(None)).run(context, body, None) is Outcome.FAILED
    assert isinstance(context.error, AttributeError)
    _raised.clear()


class _Refusing(ValueError):
    __setattr__ = __str__ = __repr__ = _fail


def test_an_argument_that_raises_a_hostile_exception_is_unreadable(caplog: pytest.LogCaptureFixture) -> None:
    """An exception of code that runs while the payload is loaded is quoted without its text."""
    body = payload.dumps(call(sample.note, sample.BadLoader(_Refusing())), 5)

    outcome = Runner(Settings(), Hooks(), Warmup(None)).run(TaskContext(task_environ(body)), body, None)

    assert outcome is Outcome.UNREADABLE
    assert "_Refusing" in caplog.text


def test_a_hook_that_raises_a_hostile_exception_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A hostile exception of a hook is one record at ERROR."""

    class Hook:
        def on_refused(self, refused: object) -> None:
            raise _Refusing

        __repr__ = _fail

    Hooks([Hook()]).fire("on_refused", None)

    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "a hook failed in on_refused" in record.getMessage()
