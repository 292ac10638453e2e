"""Where a call is enqueued: the engine that is selected, and what a task takes from the request.

This is the only module that selects the engine. Importing it imports the SDK, except in a process that does without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

from deferred_middleware.config.process import current_deployment
from deferred_middleware.config.settings import CLOUD_TASKS, CLOUD_TASKS_VARIABLE
from deferred_middleware.engines.engine import TargetUnknownError
from deferred_middleware.errors import SettingsError
from deferred_middleware.errors.sdk_types import HAS_SDK

if TYPE_CHECKING or HAS_SDK:
    from google.appengine.api import apiproxy_stub_map, app_identity, namespace_manager
    from google.appengine.runtime import context

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.engines.cloud_tasks import CloudTasksEngine
    from deferred_middleware.engines.engine import Engine

_STUB_MODULE: Final = "google.appengine.api.taskqueue.taskqueue_stub"


_app_engine: Engine | None = None
_cloud_tasks: CloudTasksEngine | None = None
_http_targets: CloudTasksEngine | None = None


def engine_and_context(settings: Settings) -> tuple[Engine, Hashable | None]:
    """Return the selected engine, and its context; see :meth:`Engine.context`.

    The engine's client is imported on the first call. Raises :class:`~deferred_middleware.errors.LocationError`, or
    :class:`~deferred_middleware.errors.SettingsError` if Cloud Tasks doesn't know where to deliver tasks.
    """
    global _app_engine
    selected = settings.engine
    # As Settings.uses_cloud_tasks, without its call, because each enqueue passes here.
    if selected == CLOUD_TASKS or (selected is None and os.environ.get(CLOUD_TASKS_VARIABLE, "").lower() == "true"):
        engine = cloud_tasks_engine(settings)
        return engine, engine.context()
    if _app_engine is None:
        from deferred_middleware.engines.app_engine import AppEngineEngine

        _app_engine = AppEngineEngine()
    return _app_engine, request_facts()


def cloud_tasks_engine(settings: Settings) -> CloudTasksEngine:
    """Return Cloud Tasks with HTTP targets if ``settings`` has the URLs of services, and else with App Engine targets.

    Raises :class:`~deferred_middleware.errors.SettingsError` on Cloud Run without URLs.
    """
    global _cloud_tasks, _http_targets
    if settings.service_urls:
        if _http_targets is None:
            from deferred_middleware.engines.cloud_tasks import CloudTasksEngine
            from deferred_middleware.engines.targets import HttpTargets

            _http_targets = CloudTasksEngine(HttpTargets())
        return _http_targets
    if current_deployment().cloud_run_service is not None:
        raise SettingsError(
            "DEFERRED_SERVICE_URLS",
            None,
            "the URLs of the app's services, because this process runs on Cloud Run. Set it to default=URL, with the "
            "URL that this prints: "
            f"gcloud run services describe {current_deployment().cloud_run_service} --format='value(status.url)'",
        )
    if _cloud_tasks is None:
        from deferred_middleware.engines.cloud_tasks import CloudTasksEngine
        from deferred_middleware.engines.targets import AppEngineTargets

        _cloud_tasks = CloudTasksEngine(AppEngineTargets())
    return _cloud_tasks


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
        from deferred_middleware.errors.sdk import note_on_thread

        raise TargetUnknownError(
            target,
            "the app's hostname is not known here (DEFAULT_VERSION_HOSTNAME). Defer it in a request, inside "
            f"wrap_wsgi_app.{note_on_thread()}",
        )
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
