"""OpenTelemetry with its real SDK: one trace spans the request that defers and the task that runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from deferred_middleware import DeferredMiddleware, defer, defer_many
from deferred_middleware import call as make_call
from deferred_middleware.testing import DeferredTasks, capture_tasks

EXPORTER = InMemorySpanExporter()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
trace.set_tracer_provider(PROVIDER)
TRACER = trace.get_tracer("test")


def note(value: object) -> None:
    """Make a span of the task's own."""
    with TRACER.start_as_current_span("inside"):
        if value == "bad":
            raise ValueError(value)


def app(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [])
    return []


@pytest.fixture
def tasks() -> Iterator[DeferredTasks]:
    """Capture a test's tasks, without the spans of other tests."""
    EXPORTER.clear()
    with capture_tasks(DeferredMiddleware(app)) as captured:
        yield captured


def spans() -> dict[str, ReadableSpan]:
    """Return the ended spans by name."""
    return {span.name: span for span in EXPORTER.get_finished_spans()}


def test_request_and_task_are_one_trace(tasks: DeferredTasks) -> None:
    """The task's span is a consumer's, and its parent is the span that deferred it."""
    with TRACER.start_as_current_span("request"):
        defer(note, 1, _queue="mail")
    tasks.run()

    found = spans()
    request, task, inside = found["request"], found[f"{__name__}/note"], found["inside"]
    assert task.parent is not None
    assert inside.parent is not None
    assert task.parent.span_id == request.context.span_id
    assert inside.parent.span_id == task.context.span_id
    assert {span.context.trace_id for span in (request, task, inside)} == {request.context.trace_id}
    assert task.kind is SpanKind.CONSUMER
    assert task.attributes is not None
    assert task.attributes["messaging.destination.name"] == "mail"
    assert task.attributes["messaging.operation.type"] == "process"
    assert task.attributes["messaging.message.id"] == tasks.enqueued[0].name


def test_what_a_task_raises_is_in_its_span(tasks: DeferredTasks) -> None:
    """Each attempt has a span, and a failed attempt's span has the error."""
    with TRACER.start_as_current_span("request"):
        defer(note, "bad")
    tasks.run(attempts=2, raise_errors=False)

    attempts = [span for span in EXPORTER.get_finished_spans() if span.name == f"{__name__}/note"]
    assert [span.attributes["deferred.attempt"] for span in attempts if span.attributes] == [1, 2]
    assert all(span.status.status_code is StatusCode.ERROR for span in attempts)
    assert all(span.events[0].name == "exception" for span in attempts)


def test_many_calls_belong_to_the_trace_as_well(tasks: DeferredTasks) -> None:
    """Every way to enqueue carries the trace."""
    with TRACER.start_as_current_span("request") as request:
        defer_many(make_call(note, number) for number in range(3))
    tasks.run_all()

    assert {span.context.trace_id for span in EXPORTER.get_finished_spans()} == {request.get_span_context().trace_id}


def test_without_a_span_a_task_begins_a_trace(tasks: DeferredTasks) -> None:
    """A call that is deferred outside any span carries no trace."""
    defer(note, 1)

    assert "traceparent" not in {name.lower() for name in tasks.enqueued[0].headers}
    tasks.run()
    assert spans()[f"{__name__}/note"].parent is None
