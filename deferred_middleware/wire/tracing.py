"""OpenTelemetry: a task's span has the span that enqueued it for its parent, in one trace.

Nothing is configured: where the app uses ``opentelemetry-api``, the current span's context travels in the task's
headers (``traceparent``, https://www.w3.org/TR/trace-context/), and the task runs in a span of the kind *consumer*
named after its function, with the attributes of the semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). Where it doesn't, nothing of it is imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.execution.context import TaskContext

_SYSTEM: Final = "gcp_cloud_tasks"
_LIBRARY: Final = "deferred_middleware"
_API: Final = "opentelemetry.trace"


def headers() -> dict[str, str]:
    """Return the headers that carry the current span's context; none where there is no span."""
    if _API not in sys.modules:  # nobody has made a span
        return {}
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name: value for name, value in carrier.items() if name.lower() in protocol.TRACE_HEADERS}


def is_active() -> bool:
    """Tell whether a span would go anywhere: the app has chosen a tracer provider."""
    api = sys.modules.get(_API)
    return api is not None and not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider)


@contextlib.contextmanager
def consumer_span(context: TaskContext) -> Iterator[None]:
    """Run a task's call in a span of its own. What the call raises is recorded there, and goes on."""
    from opentelemetry import propagate, trace

    environ = context.environ
    carrier = {
        name: str(environ[key]) for name in protocol.TRACE_HEADERS if (key := protocol.environ_key(name)) in environ
    }
    tracer = trace.get_tracer(_LIBRARY)
    with tracer.start_as_current_span(
        context.label,
        context=propagate.extract(carrier),
        kind=trace.SpanKind.CONSUMER,
        attributes=_attributes(context),
    ):
        yield


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
