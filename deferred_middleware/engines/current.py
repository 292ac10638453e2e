"""Where a call is enqueued: the engine that the environment selects, and what a task takes from the request.

This is the only module that selects the engine. Importing it imports the SDK.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

from google.appengine.api import apiproxy_stub_map, app_identity, namespace_manager
from google.appengine.runtime import context

from deferred_middleware.engines.engine import TargetUnknownError

if TYPE_CHECKING:
    from deferred_middleware.engines.engine import Engine

CLOUD_TASKS_VARIABLE: Final = "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE"
"""The SDK's own switch: ``true`` sends push tasks to Cloud Tasks (SDK: ``api/taskqueue/cloudtask.py``)."""

_STUB_MODULE: Final = "google.appengine.api.taskqueue.taskqueue_stub"


def uses_cloud_tasks() -> bool:
    """Tell whether the environment selects Cloud Tasks. It is read at each call, as in the SDK."""
    return os.environ.get(CLOUD_TASKS_VARIABLE, "").lower() == "true"


_app_engine: Engine | None = None
_cloud_tasks: Engine | None = None


def engine_and_context() -> tuple[Engine, Hashable | None]:
    """Return the engine that the environment selects, and its context; see :meth:`Engine.context`.

    The engine's client is imported on the first call. Raises :class:`~deferred_middleware.errors.LocationError`.
    """
    global _app_engine, _cloud_tasks
    if uses_cloud_tasks():
        if _cloud_tasks is None:
            from deferred_middleware.engines.cloud_tasks import CloudTasksEngine

            _cloud_tasks = CloudTasksEngine()
        return _cloud_tasks, _cloud_tasks.context()
    if _app_engine is None:
        from deferred_middleware.engines.app_engine import AppEngineEngine

        _app_engine = AppEngineEngine()
    return _app_engine, request_facts()


def has_api() -> bool:
    """Tell whether anything answers the taskqueue API in this process."""
    return apiproxy_stub_map.apiproxy.GetStub("taskqueue") is not None


def request_facts() -> Hashable | None:
    """Return the request's hostnames and namespaces that a task needs, and what answers the taskqueue API.

    Returns None on a development server, because the SDK's modules API must be called there for each target's hostname.
    """
    if _is_development_server():
        return None
    return (
        has_api(),
        context.get("HTTP_HOST"),
        context.get("DEFAULT_VERSION_HOSTNAME"),
        namespace_manager.google_apps_namespace(),
        namespace_manager.get_namespace(),
        answered_by_stub(),
    )


def own_host() -> str | None:
    """Return the hostname of the current request."""
    host: str | None = context.get("HTTP_HOST")
    return host


def host_of(target: str) -> str | None:
    """Return the hostname of a target.

    Raises :class:`TargetUnknownError` if the app's own hostname is not known. In that case the SDK silently drops the
    target (SDK: ``taskqueue.py``, ``Task.__host_from_target``). With the SDK's stub, in tests, it is dropped here too.
    """
    hostname = app_identity.get_default_version_hostname()
    if hostname is None:
        if answered_by_stub():
            return None
        raise TargetUnknownError(target)
    if _is_development_server():
        return _host_on_development_server(target)
    return f"{target}.{hostname}"


def _host_on_development_server(target: str) -> str:
    from google.appengine.api import modules

    service, version, instance = [*reversed(target.rsplit(".", 2)), None, None][:3]
    host: str = modules.get_hostname(module=service, version=version, instance=instance)
    return host


def _is_development_server() -> bool:
    """Tell whether this is dev_appserver, where services have ports instead of hostnames."""
    software = os.environ.get("SERVER_SOFTWARE", "")
    return software.startswith("Dev") and software != "Development/1.0 (testbed)"


def answered_by_stub() -> bool:
    """Tell whether the app is under test: the SDK's stub, or a subclass of it, answers the taskqueue API."""
    module = sys.modules.get(_STUB_MODULE)
    stub = apiproxy_stub_map.apiproxy.GetStub("taskqueue")
    return module is not None and isinstance(stub, module.TaskQueueServiceStub)
