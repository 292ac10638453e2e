"""No nesting of the ways to defer loses a call: each is enqueued, raised or reported."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as pb
from google.appengine.ext import testbed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deferred_middleware import DeferredMiddleware, NotAllEnqueuedError, Settings, call, defer, defer_async, defer_batch
from deferred_middleware.calls import payload
from deferred_middleware.config.process import install_settings
from deferred_middleware.enqueue import request_end
from tests.support import sample
from tests.support.answering import Engine
from tests.support.delivering import request, task_environ

Code = pb.TaskQueueServiceError

LEAVES = st.sampled_from(["defer", "async", "raise"])
STEPS = st.recursive(
    st.lists(LEAVES, max_size=3),
    lambda inner: st.lists(
        st.one_of(LEAVES, st.tuples(st.sampled_from(["batch", "try", "thread"]), inner)), max_size=4
    ),
    max_leaves=12,
)


class AppError(Exception):
    """What the app raises."""


class Run:
    """Runs steps, and counts the calls and the errors that their callers got."""

    def __init__(self) -> None:
        self.made = 0
        self.raised = 0
        self.futures: list[Any] = []

    def steps(self, steps: Any) -> None:
        """Run a list of steps."""
        for step in steps:
            self.step(step)

    def step(self, step: Any) -> None:
        """Run one step, which may have steps inside."""
        match step:
            case "defer":
                self.made += 1
                try:
                    defer(sample.note, self.made)
                except Exception:
                    self.raised += 1
                    raise
            case "async":
                self.made += 1
                self.futures.append(defer_async(sample.note, self.made))
            case "raise":
                raise AppError
            case ("batch", inner):
                try:
                    with defer_batch():
                        self.steps(inner)
                except NotAllEnqueuedError as error:
                    self.raised += len(error.report.errors)
                    raise
            case ("try", inner):
                with contextlib.suppress(Exception):  # an app that swallows errors
                    self.steps(inner)
            case ("thread", inner):
                thread = threading.Thread(target=self.step, args=(("try", inner),))
                thread.start()
                thread.join()


program: list[Any] = []


def task() -> None:
    """A task that defers."""
    run, steps = program
    run.steps(steps)


class App:
    """A WSGI app that defers."""

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Run the steps, and answer."""
        start_response("200 OK", [("Content-Type", "text/plain")])
        task()
        return [b"ok"]


@given(steps=STEPS, coalesce=st.booleans(), in_task=st.booleans(), refused=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_call_is_enqueued_raised_or_reported(
    engine: testbed.Testbed, caplog: pytest.LogCaptureFixture, steps: Any, coalesce: bool, in_task: bool, refused: bool
) -> None:
    """The calls that were made are the tasks, the errors that callers got, and the calls in the log."""
    caplog.clear()
    caplog.set_level(logging.WARNING)
    queue = Engine()
    if refused:
        queue.answer = lambda adds: [Code.PERMISSION_DENIED] * len(adds)
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", queue)
    chosen = Settings(coalesce=coalesce)
    install_settings(chosen)
    run = Run()
    program[:] = [run, steps]
    middleware = DeferredMiddleware(App(), settings=chosen)
    if in_task:
        request(middleware, task_environ(payload.dumps(call(task), 5), f"/_cb/deferred/{__name__}/task"))
    else:
        with contextlib.suppress(Exception):  # the app's error, counted where it was raised
            request(middleware, task_environ(b"", "/page"))

    # A thread without the platform's request ID is not known to belong to the request; the process reports at its end.
    request_end._settle_all()
    assert not request_end.UNDER_WAY
    assert all(future.done() for future in run.futures)
    enqueued = 0 if refused else sum(map(len, queue.rpcs))
    text = "\n".join(
        f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}" for record in caplog.records
    )
    dropped = sum(map(int, re.findall(r"([0-9]+) deferred calls? w", text)))
    failed = len(re.findall(r"tests\.support\.sample/note was not enqueued", text))
    assert enqueued <= run.made
    assert enqueued + run.raised + dropped + failed >= run.made, text
