"""From a call to the message that an engine takes: queue, target, URL, payload, headers, signature.

Every way to enqueue uses :func:`prepare`. The common parts of similar calls are computed once and cached, see
:class:`CallTemplate`. Importing this module imports the SDK, except in a process that does without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import random
import sys
import time
import types
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.calls import allowlist, headers, payload, redaction
from deferred_middleware.calls.options import NO_OPTIONS, warn
from deferred_middleware.config.process import current_process
from deferred_middleware.config.settings import DEFAULT_VERSION, SAME_VERSION
from deferred_middleware.engines import transactions
from deferred_middleware.engines.current import answered_by_stub, engine_and_context
from deferred_middleware.engines.engine import TargetUnknownError, TaskMessage, TaskTemplate
from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
from deferred_middleware.errors import OptionError, SettingsError, sdk
from deferred_middleware.errors.sdk_types import HAS_SDK
from deferred_middleware.wire import entities, namespace, overflow, protocol, signature, tracing

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Call
    from deferred_middleware.config.hooks import Hooks
    from deferred_middleware.config.process import Deployment
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.engines.engine import Engine
    from deferred_middleware.errors.sdk import EnqueueError
    from deferred_middleware.wire.signature import Signer

MAX_TEMPLATES: Final = 1000
"""How many templates are cached. Beyond that, the cache is cleared."""
_enqueued_on_stub: Final = itertools.count(1)
_OPENTELEMETRY: Final = "opentelemetry.trace"


@dataclasses.dataclass(frozen=True, slots=True)
class EnqueueContext:
    """The parts of a task that depend on where it is enqueued."""

    settings: Settings
    deployment: Deployment
    hooks: Hooks
    engine: Engine
    engine_context: Hashable | None
    """See :meth:`~deferred_middleware.engines.engine.Engine.context`."""
    random_digits: Callable[[], str]
    """Returns 32 random hexadecimal digits."""


def enqueue_context(random_digits: Callable[[], str] | None = None) -> EnqueueContext:
    """Return the current context. Raises :class:`~deferred_middleware.errors.LocationError`."""
    settings, deployment, hooks = current_process()
    engine, engine_context = engine_and_context(settings)
    return EnqueueContext(settings, deployment, hooks, engine, engine_context, random_digits or _random_digits)


def _random_digits() -> str:
    return os.urandom(16).hex()


class RandomDigits:
    """Returns 32 random hexadecimal digits at each call, for one thread that prepares many calls.

    One system call fetches those of many calls. During each ``os.urandom``, another thread may take the interpreter's
    lock, for example one that sends the tasks prepared so far; the wait for it would cost more than all the rest.
    """

    _CALLS: Final = 100

    def __init__(self) -> None:
        self._digits = ""
        self._place = 0
        self._pid = 0

    def __call__(self) -> str:
        """Return the next digits."""
        place, pid = self._place, os.getpid()
        # A forked process must not use the digits that its parent will use.
        if place == len(self._digits) or pid != self._pid:
            self._digits, self._pid, place = os.urandom(16 * self._CALLS).hex(), pid, 0
        self._place = place + 32
        return self._digits[place : place + 32]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class CallTemplate:
    """How to make the messages of similar calls: same callable, options and context."""

    template: TaskTemplate
    signer: Signer | None
    overhead_bytes: int
    """The size of a task without its body."""
    on_stub: bool
    """Whether the SDK's stub answers, in a test."""

    def message(self, name: str | None, body: bytes, eta_posix: float | None, nonce: str) -> TaskMessage:
        """Return a message, which may be too large. ``nonce`` is 24 random hexadecimal digits."""
        now = time.time()
        signed = None if self.signer is None else self.signer.sign(name, body, eta_posix or 0.0, now, nonce)
        return TaskMessage(self.template, name, body, now if eta_posix is None else round(eta_posix, 6), signed)


# Not frozen and not keyword-only: that would triple the time to make one, and each call has one.
@dataclasses.dataclass(slots=True)
class PreparedCall:
    """A call that is ready to be added to its queue."""

    call: Call
    message: TaskMessage
    engine: Engine
    retry_seconds: float
    """How long the add is retried, in seconds; 0 means a single attempt."""
    named_by_us: bool
    """Whether the task's name was generated here, so that no other task can have it."""
    transactional: bool
    """Whether the task is added to the current transaction."""
    overflowed: overflow.Overflowed | None
    """The payload, if it doesn't fit in the task. It is stored before the task is added."""
    hooks: Hooks
    name: str | None
    """The task's name; None until the queue has chosen it."""
    was_enqueued: bool = False
    """Whether the queue has accepted the task."""

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.message.template.queue

    @property
    def task(self) -> EnqueuedTask:
        """The task that the caller gets."""
        return EnqueuedTask(self.message, self.transactional, self)

    @property
    def size_bytes(self) -> int:
        """The size of the task, and of its payload if that overflowed."""
        overflowed = self.overflowed
        return self.message.size_bytes if overflowed is None else self.message.size_bytes + overflowed.reference.size


def prepare(call: Call, body: bytes | None = None, context: EnqueueContext | None = None) -> PreparedCall:
    """Return ``call`` as a :class:`PreparedCall`. Nothing is sent yet.

    ``body`` is its payload, if that exists already. ``context`` is the enqueue context, if that is known already.

    Raises:
        CallError: the callable or an argument can't be pickled.
        OptionError: an option can't be used here.
        EnqueueError: a check shows that the task can't be accepted: :class:`TaskTooLargeError`, :class:`TargetError`,
            or an error of the engine; :class:`NoEngineError` if there is no engine.
        SecretKeyMissingError: signatures are required, and there is no key.
    """
    context = context or enqueue_context()
    settings, options, engine = context.settings, call.options, context.engine
    queue = queue_for(call, settings)
    template = _template_for(call, queue, context)
    if body is None:
        body = payload.dumps(call, settings.pickle_protocol)
        if settings.allowed_callables or len(body) > settings.max_payload_bytes:
            _check_body(call, queue, body, settings)
    transactional = options.transactional is not False and transactions.is_wanted(
        call, queue, has_outbox=engine.has_outbox
    )
    # A transactional task can't have a name. So its add can't be retried safely.
    retry_seconds = 0.0 if transactional else settings.enqueue_seconds
    named_by_us = options.name is None and retry_seconds > 0
    # 128 evenly distributed random bits, as the platform recommends for names.
    digits = context.random_digits()
    if template.on_stub:
        # The stub orders tasks of the same time by name, and tests rely on the order of enqueueing.
        digits = f"{next(_enqueued_on_stub):08d}{digits[8:]}"
    name = digits if named_by_us else options.name
    message, overflowed = template.message(name, body, options.eta_posix, digits[8:]), None
    if template.overhead_bytes + len(body) > engine.max_task_bytes:
        message, overflowed = _smaller(call, message, template, transactional, engine.max_task_bytes)
    return PreparedCall(
        call, message, engine, retry_seconds, named_by_us, transactional, overflowed, context.hooks, name
    )


_cache: tuple[dict[Hashable, CallTemplate], Any, Any, Any] = ({}, None, None, None)
"""Templates, and the settings, deployment and engine that they are valid for. It is replaced as a whole."""


def _template_for(call: Call, queue: str, context: EnqueueContext) -> CallTemplate:
    """Return the template for ``call``, cached if possible. Raises errors that don't depend on the arguments."""
    global _cache
    trace = tracing.headers() if _OPENTELEMETRY in sys.modules else {}
    key = None if trace or context.engine_context is None else _key_of(call, queue, context)
    if key is None:
        return _new_template(call, queue, context, trace)
    templates, settings, deployment, engine = _cache
    if settings is not context.settings or deployment is not context.deployment or engine is not context.engine:
        templates = {}
        _cache = (templates, context.settings, context.deployment, context.engine)
    template = templates.get(key)
    if template is None:
        if len(templates) >= MAX_TEMPLATES:
            templates.clear()
        template = templates[key] = _new_template(call, queue, context, trace)
    return template


def _key_of(call: Call, queue: str, context: EnqueueContext) -> Hashable | None:
    """Return the cache key of the call's template, or None if only this call would use the template."""
    options, func = call.options, call.func
    differing: tuple[Any, ...] = ()
    if options is not NO_OPTIONS:
        if options.name is not None or options.headers:
            return None
        retry = options.retry_options
        differing = (
            options.target,
            options.url,
            options.deadline_seconds,
            options.max_attempts,
            options.earlier_attempts,
            None if retry is None else headers.parameters_of(retry),
        )
    if type(func) is types.FunctionType:  # Same as its label, but faster.
        label: tuple[str, str] = (func.__module__, func.__qualname__)
        redacts = bool(func.__dict__) and bool(redaction.redacted_by(func))
    else:
        label = call.label
        redacts = bool(redaction.redacted_by(func))
    return (*label, redacts, queue, differing, context.engine_context)


def _new_template(call: Call, queue: str, context: EnqueueContext, trace: dict[str, str]) -> CallTemplate:
    settings, engine, options = context.settings, context.engine, call.options
    if not engine.is_available():
        raise _no_engine(call, queue)
    for problem in engine.unsupported(options):
        warn(problem)
    path = url_for(call, settings)
    sent = {
        "Content-Type": protocol.CONTENT_TYPE,
        **headers.headers_of(options),
        protocol.NAMESPACE_HEADER: namespace.header_value(),
    }
    if redaction.redacted_by(call.func):
        sent[protocol.REDACTED_HEADER] = "1"
    sent |= trace
    signer = headers.signer_for(options, settings, context.deployment, queue=queue, url=path, headers=sent)
    target = target_for(call, settings, context.deployment)
    try:
        template = engine.encode(
            TaskTemplate(
                queue=queue,
                path=path,
                headers=sent,
                signed=signer is not None,
                target=target,
                retry_options=options.retry_options,
                deadline_seconds=options.deadline_seconds,
            )
        )
    except TargetUnknownError as error:
        raise sdk.TargetError(call.label, queue, options.name, str(error)) from error
    except (SettingsError, OptionError):
        raise
    except Exception as error:
        raise sdk.explain(error, call.label, queue, options.name) from error
    overhead_bytes = template.overhead_bytes + (signature.LENGTH if signer is not None else 0)
    return CallTemplate(template, signer, overhead_bytes, HAS_SDK and answered_by_stub())


def queue_for(call: Call, settings: Settings) -> str:
    """Return the queue for ``call``: one of its own or of the default ones.

    An unnamed call gets a random one of them. A named call always gets the same one, by a hash of its name that is
    stable between processes, because a task's name is unique only in its queue.
    """
    queues = call.options.queues or settings.default_queues
    if len(queues) == 1:
        return queues[0]
    if call.options.name is None:
        return random.choice(queues)
    # Sorted, so that the order of the list doesn't change a name's queue.
    ordered = sorted(set(queues))
    digest = hashlib.sha256(call.options.name.encode()).digest()
    return ordered[int.from_bytes(digest[:8], "big") % len(ordered)]


def target_for(call: Call, settings: Settings, deployment: Deployment) -> str | None:
    """Return the target, or None if the process doesn't know its own service and version.

    A ``_target`` is used as it is given; a single label means the default version of that service. Without ``_target``,
    the call stays in the service that enqueues it. From the default service, it goes to the background module, if there
    is one: to the same version, to the module's default version, or to a version with a given name.
    """
    if call.options.target is not None:
        return call.options.target
    service, version = deployment.service, deployment.version
    if settings.background_module and service == "default":
        service = settings.background_module
        if settings.background_version == DEFAULT_VERSION:
            return service
        if settings.background_version != SAME_VERSION:
            version = settings.background_version
    if settings.service_urls and version is None:
        return service
    if service is None or version is None:
        return None
    return f"{version}.{service}"


def url_for(call: Call, settings: Settings) -> str:
    """Return the path that the task is posted to: its ``_url``, the default URL, or the prefix with the label."""
    if call.options.url is None:
        if settings.default_url is not None:
            return settings.default_url
        return f"{settings.url_prefix}/{call.label.path}"
    if f"{call.options.url}/".startswith(f"{settings.url_prefix}/"):
        raise OptionError(
            "_url",
            call.options.url,
            f"under {settings.url_prefix} a URL names the call it runs. Leave _url out, or choose a path elsewhere.",
        )
    return call.options.url


def _smaller(
    call: Call, message: TaskMessage, template: CallTemplate, transactional: bool, limit_bytes: int
) -> tuple[TaskMessage, overflow.Overflowed | None]:
    """Return a message that fits: its payload is compressed, or is replaced by a reference to the datastore."""
    whole_bytes, eta_posix = message.size_bytes, call.options.eta_posix
    form = message.body
    for form in overflow.forms(message.body):
        message = template.message(message.name, form, eta_posix, os.urandom(12).hex())
        if message.size_bytes <= limit_bytes:
            return message, None
    whole_bytes = message.size_bytes
    overflowed = overflow.Overflowed(form, eta_posix, transactional=transactional)
    message = template.message(message.name, bytes(overflowed.reference), eta_posix, os.urandom(12).hex())
    if message.size_bytes > limit_bytes or not entities.is_available():
        raise _too_large(call, message.queue, len(form), max(whole_bytes, message.size_bytes), limit_bytes)
    return message, overflowed


def _too_large(call: Call, queue: str, body_bytes: int, task_bytes: int, limit_bytes: int) -> EnqueueError:
    """Return the error for a task that is too large and whose payload can't be stored elsewhere."""
    way_out = "" if HAS_SDK else ": pip install 'deferred_middleware[cloud]'"
    what = (
        f"the task (its payload alone is {body_bytes:,} bytes, and there is no datastore here to keep it in{way_out})"
    )
    if entities.is_available():
        what = "the task, with its payload in the datastore,"
    return sdk.TaskTooLargeError(call.label, queue, call.options.name, task_bytes, limit_bytes, what)


def _check_body(call: Call, queue: str, body: bytes, settings: Settings) -> None:
    """Check a payload and its callable against our own limits, which may be stricter than the platform's."""
    if settings.allowed_callables:
        # The task must pass the same checks when it runs.
        allowlist.check_payload(body, settings.allowed_callables, legacy=False)
        allowlist.check_callable(call.func, settings.allowed_callables)
    if len(body) > settings.max_payload_bytes:
        raise sdk.TaskTooLargeError(
            call.label,
            queue,
            call.options.name,
            len(body),
            settings.max_payload_bytes,
            "its payload (limited by DEFERRED_MAX_PAYLOAD_BYTES)",
        )


def _no_engine(call: Call, queue: str) -> EnqueueError:
    """Return the error for a process without an implementation of the SDK's taskqueue API."""
    return sdk.NoEngineError(
        call.label,
        queue,
        call.options.name,
        "nothing answers the SDK's taskqueue API in this process. Wrap the app with "
        "google.appengine.api.wrap_wsgi_app, and run it on App Engine or, on one machine, with "
        "`deferred-middleware serve MODULE:CALLABLE`. Start a shell or a script beside that server with "
        "`deferred-middleware exec COMMAND`. In a test, use the pytest fixture deferred_tasks, or "
        "deferred_middleware.testing.capture_tasks.",
    )
