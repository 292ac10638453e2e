"""What a task on App Engine's API takes from the request that enqueues it: hostnames and namespaces.

Importing this module imports the SDK.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable
from typing import Final

from google.appengine.api import apiproxy_stub_map, app_identity, namespace_manager
from google.appengine.runtime import context

from deferred_middleware.engines.engine import TargetUnknownError

_STUB_MODULE: Final = "google.appengine.api.taskqueue.taskqueue_stub"


def has_api() -> bool:
    """Tell whether anything answers the taskqueue API in this process."""
    return apiproxy_stub_map.apiproxy.GetStub("taskqueue") is not None


def current() -> Hashable | None:
    """Return the hostnames and namespaces, and whether there is an API.

    None on a development server, where the SDK's modules API is asked for each target's hostname.
    """
    if _is_development_server():
        return None
    return (
        has_api(),
        context.get("HTTP_HOST"),
        context.get("DEFAULT_VERSION_HOSTNAME"),
        namespace_manager.google_apps_namespace(),
        namespace_manager.get_namespace(),
    )


def own_host() -> str | None:
    """Return the hostname of the current request."""
    host: str | None = context.get("HTTP_HOST")
    return host


def host_of(target: str) -> str | None:
    """Return the hostname of a target.

    Raises :class:`TargetUnknownError` where the app's own hostname is not known. The SDK drops the target silently
    there (SDK: ``taskqueue.py``, ``Task.__host_from_target``). With the SDK's stub, in tests, it is dropped here too.
    """
    hostname = app_identity.get_default_version_hostname()
    if hostname is None:
        if _answered_by_stub():
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
    """Tell whether this is dev_appserver, whose services have ports instead of hostnames."""
    software = os.environ.get("SERVER_SOFTWARE", "")
    return software.startswith("Dev") and software != "Development/1.0 (testbed)"


def _answered_by_stub() -> bool:
    """Tell whether the SDK's stub, or a subclass of it, answers the taskqueue API: the app is under test."""
    module = sys.modules.get(_STUB_MODULE)
    stub = apiproxy_stub_map.apiproxy.GetStub("taskqueue")
    return module is not None and isinstance(stub, module.TaskQueueServiceStub)
