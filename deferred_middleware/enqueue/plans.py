"""What tasks that are alike have in common: worked out once for a callable, its options, and where it is enqueued.

Importing this module imports the SDK.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
import types
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

from google.appengine.api import apiproxy_stub_map, namespace_manager, taskqueue
from google.appengine.runtime import context

from deferred_middleware.calls import headers as carrying
from deferred_middleware.calls import redaction
from deferred_middleware.calls.options import NO_OPTIONS
from deferred_middleware.config.process import current_deployment, current_settings
from deferred_middleware.engines import cloudtasks, moulds
from deferred_middleware.enqueue import routing
from deferred_middleware.wire import namespace, protocol, tracing

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Call
    from deferred_middleware.calls.options import Options
    from deferred_middleware.config.process import Deployment
    from deferred_middleware.config.settings import Settings

_MOST_PLANS: Final = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """Where a call is enqueued, as far as that shows in its task."""

    settings: Settings
    deployment: Deployment
    on_cloud_tasks: bool
    has_engine: bool
    """Whether anything answers the SDK's taskqueue API."""
    facts: tuple[str | bool | None, ...] | None
    """What the SDK looks at when it makes a task; None where that is more than can be known here."""


def surroundings() -> Surroundings:
    """Return where calls are enqueued now."""
    software = os.environ.get("SERVER_SOFTWARE", "")
    on_cloud_tasks = cloudtasks.is_enabled()
    # On a development server the SDK asks that for the host of a target (SDK: taskqueue.py, Task.__host_from_target).
    asks_others = software.startswith("Dev") and software != "Development/1.0 (testbed)"
    return Surroundings(
        settings=current_settings(),
        deployment=current_deployment(),
        on_cloud_tasks=on_cloud_tasks,
        has_engine=on_cloud_tasks or apiproxy_stub_map.apiproxy.GetStub("taskqueue") is not None,
        facts=None
        if asks_others
        else (
            on_cloud_tasks,
            context.get("HTTP_HOST"),
            context.get("DEFAULT_VERSION_HOSTNAME"),
            namespace_manager.google_apps_namespace(),
        ),
    )


class Plan:
    """How the tasks of calls that are alike are made."""

    __slots__ = (
        "_add",
        "_constructor",
        "_headers",
        "_mould",
        "_options",
        "_queue",
        "_signer",
        "_tasks",
        "_url",
        "target",
        "target_is_lost",
    )

    def __init__(self, call: Call, queue: str, around: Surroundings, trace: dict[str, str]) -> None:
        self._url = routing.url_for(call, around.settings)
        self._options = call.options
        self._headers = _headers(call, trace)
        # The last header of them, because it signs the others.
        self._signer = carrying.signer_for(
            call.options, around.settings, around.deployment, queue=queue, url=self._url, headers=self._headers
        )
        self._mould: moulds.Mould | None = None
        # On Cloud Tasks what is sent of a task is not the taskqueue API's message.
        self._queue = None if around.on_cloud_tasks else queue
        self._constructor: Any = None
        self._add: Any = None
        self._tasks = 0
        self.target = routing.target_for(call, around.settings, around.deployment)
        self.target_is_lost = self.target is not None and not around.on_cloud_tasks
        """Whether the SDK dropped the target, when it made the first task.

        It does so silently where it doesn't know the app's hostname (SDK: ``taskqueue.py``, Task.__host_from_target).
        Cloud Tasks is told the target itself, not a hostname.
        """

    def draft(self, name: str | None, body: bytes, eta_posix: float | None, nonce: str) -> moulds.Draft:
        """Return a task to add; it may turn out too large. Raises what the SDK raises.

        ``nonce`` is 24 random digits for its signature.
        """
        now = time.time()
        value = None if self._signer is None else self._signer.sign(name, body, eta_posix or 0.0, now, nonce)
        if (
            self._mould is not None
            and self._constructor is taskqueue.Task.__init__
            and self._add is taskqueue.Queue.add_async
        ):
            # To the microsecond, as a datetime has it.
            return self._mould.cast(name, body, now if eta_posix is None else round(eta_posix, 6), value)
        task = self._make(name=name, payload=body, eta_posix=eta_posix, value=value)
        if self.target_is_lost and "Host" in task.headers:
            self.target_is_lost = False
        self._tasks += 1
        if self._tasks == 2:  # it is a plan for several
            # Whoever instruments the app may replace these.
            self._constructor, self._add = taskqueue.Task.__init__, taskqueue.Queue.add_async
            header = None if self._signer is None else protocol.SIGNATURE_HEADER
            self._mould = moulds.mould_of(self._make, header, self._queue)
        return moulds.Draft(None, task, task.size)

    def _make(self, *, name: str | None, payload: bytes, eta_posix: float | None, value: str | None) -> taskqueue.Task:
        headers = self._headers if value is None else {**self._headers, protocol.SIGNATURE_HEADER: value}
        seconds = self._options.deadline_seconds
        eta = None
        if eta_posix is not None:
            eta = datetime.datetime.fromtimestamp(eta_posix, datetime.timezone.utc)
        return taskqueue.Task(
            payload=payload,
            method="POST",
            url=self._url,
            name=name,
            headers=headers,
            eta=eta,
            target=self.target,
            retry_options=self._options.retry_options,
            dispatch_deadline_usec=None if seconds is None else round(seconds * 1e6),
            _size_check=False,
        )


_plans: dict[Hashable, Plan] = {}
_plans_for: tuple[Any, Any] = (None, None)
"""The settings and the deployment that the plans are for."""


def plan_for(call: Call, queue: str, around: Surroundings) -> Plan:
    """Return how the task of ``call`` is made. Raises what keeps it from being made for any arguments."""
    global _plans, _plans_for
    trace = tracing.headers()
    differing = None if trace or around.facts is None else _differing(call.options)
    if differing is None:
        return Plan(call, queue, around, trace)
    if _plans_for[0] is not around.settings or _plans_for[1] is not around.deployment:
        _plans, _plans_for = {}, (around.settings, around.deployment)
    func = call.func
    if type(func) is types.FunctionType:  # what its label is, in less time
        module, qualname = func.__module__, func.__qualname__
        redacts = bool(func.__dict__) and bool(redaction.redacted_by(func))
    else:
        module, qualname = call.label
        redacts = bool(redaction.redacted_by(func))
    key = (qualname, module, redacts, queue, namespace.header_value(), differing, around.facts)
    plans = _plans
    plan = plans.get(key)
    if plan is None:
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plan = plans[key] = Plan(call, queue, around, trace)
    return plan


def _differing(options: Options) -> tuple[Any, ...] | None:
    """Return what makes options different for a plan, or None where that is particular to a single call."""
    if options is NO_OPTIONS:
        return ()
    if options.name is not None or options.headers:
        return None
    retry = options.retry_options
    return (
        options.target,
        type(options.target),  # one that is to be sent as it is, is of a type of its own
        options.url,
        options.deadline_seconds,
        options.max_attempts,
        options.earlier_attempts,
        None if retry is None else carrying.parameters_of(retry),
    )


def _headers(call: Call, trace: dict[str, str]) -> dict[str, str]:
    """Return the headers of the task's request but its signature; what a header may have to tell of is given."""
    headers = {
        "Content-Type": protocol.CONTENT_TYPE,
        **carrying.headers_of(call.options),
        protocol.NAMESPACE_HEADER: namespace.header_value(),
    }
    if redaction.redacted_by(call.func):
        headers[protocol.REDACTED_HEADER] = "1"
    return headers | trace
