"""OpenTelemetry: the span of a task is a child of the span that was current at ``defer()``, in the same trace.

This needs no configuration. If the app uses ``opentelemetry-api``, the context of the current span travels in the
headers of the task (``traceparent``, https://www.w3.org/TR/trace-context/). The task then runs in a span of the kind
*consumer*, which is named after its function and has the attributes of the semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). If the app does not use it, nothing of it is
imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors.text import encodable, formatted, text_of
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from opentelemetry import trace

    from deferred_middleware.execution.context import TaskContext

_SYSTEM: Final = "gcp_cloud_tasks"
_LIBRARY: Final = "deferred_middleware"
API_MODULE: Final = "opentelemetry.trace"
"""The module that an app imports to make spans. If it is not in ``sys.modules``, there is no span."""


def headers() -> dict[str, str]:
    """Return the headers that carry the context of the current span; no headers if there is no span."""
    if API_MODULE not in sys.modules:
        return {}
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name: value for name, value in carrier.items() if name.lower() in protocol.TRACE_HEADERS}


def is_active() -> bool:
    """Tell whether spans are recorded, which is so if the app has set a tracer provider."""
    api = sys.modules.get(API_MODULE)
    return api is not None and not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider)


def run_in_span(context: TaskContext, run: Callable[[], object]) -> None:
    """Run the call of a task in a span of its own. The span records an exception of the call, which goes on."""
    from opentelemetry import propagate, trace

    environ = context.environ
    carrier = {
        name: str(environ[key]) for name in protocol.TRACE_HEADERS if (key := protocol.environ_key(name)) in environ
    }
    tracer = trace.get_tracer(_LIBRARY)
    failure = None
    with tracer.start_as_current_span(
        context.label,
        context=propagate.extract(carrier),
        kind=trace.SpanKind.CONSUMER,
        attributes=_attributes(context),
    ) as span:
        # The context managers of OpenTelemetry ask the exception for its text and set its attributes, which may raise
        # another exception in its place. So they don't see it.
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure = error
            _record(span, error)
    try:
        if failure is not None:
            raise failure
    finally:
        del failure  # it refers to this frame


def _record(span: trace.Span, error: BaseException) -> None:
    """Record an exception in the span, with the attributes of OpenTelemetry's semantic conventions."""
    from opentelemetry.trace import Status, StatusCode

    name = f"{type(error).__module__}.{type(error).__qualname__}"
    message = text_of(error)
    span.add_event(
        "exception",
        {
            "exception.type": encodable(name.removeprefix("builtins.")),
            "exception.message": message,
            "exception.stacktrace": formatted(error),
        },
    )
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {message}"))


def _attributes(context: TaskContext) -> Mapping[str, str | int]:
    module, _, function = context.label.partition("/")
    return {
        "messaging.system": _SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": context.queue,
        "messaging.message.id": context.name,
        "code.function.name": f"{module}.{function}",
        "deferred.attempt": context.attempt,
    }
