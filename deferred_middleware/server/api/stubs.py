"""The SDK's other services, answered by the SDK's own stubs.

:func:`make_stub_map` creates the stubs: the datastore, which is kept in a file; memcache; modules, which answers from
the :class:`~deferred_middleware.server.config.services.ServiceDirectory`; app identity; and those that need no set-up
(URL fetch, users, capabilities, images, search, and mail, which is logged instead of sent). The index of search is kept
in memory.

The stubs live in the queue process only. It never calls ``wrap_wsgi_app``, which would patch ``os.environ`` and the
start of threads for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
from google.appengine.api import (
    apiproxy_stub_map,
    full_app_id,
    mail_stub,
    request_info,
    urlfetch_stub,
    user_service_stub,
)
from google.appengine.api.app_identity import app_identity_stub
from google.appengine.api.capabilities import capability_stub
from google.appengine.api.images import images_stub
from google.appengine.api.modules import modules_stub
from google.appengine.api.search import simple_search_stub

from deferred_middleware.errors import ServerError
from deferred_middleware.server.api.datastore import DATASTORE_FILE, DatastoreStub
from deferred_middleware.server.api.memcache_keys import KeyedMemcacheStub
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.wire.protocol import LOGIN_PATH


def make_stub_map(
    *,
    app_id: str,
    data_dir: Path,
    directory: ServiceDirectory,
    taskqueue_stub: Any,
    callers: Mapping[str, Service] | None = None,
    on_failure: Callable[[ServerError], object] = lambda _error: None,
) -> Any:
    """Return an ``APIProxyStubMap`` with every service, and install it as this process's own.

    It must be the process's own because the taskqueue service calls the datastore through it. ``callers`` are the
    services by their API tickets, for calls that mean "the service that I am in". ``on_failure`` is called if the
    datastore's file is no longer at its path. Raises
    :class:`~deferred_middleware.errors.ServerError` if the datastore's file can't be read.
    """
    # Some stubs read the application's ID from the environment.
    full_app_id.put(app_id)
    request_data = _RequestInfo(directory, callers or {})
    stub_map = apiproxy_stub_map.APIProxyStubMap()
    datastore = DatastoreStub(app_id, data_dir / DATASTORE_FILE, taskqueue_stub.transactions, on_failure=on_failure)
    stub_map.RegisterStub("datastore_v3", datastore)
    stub_map.RegisterStub("memcache", KeyedMemcacheStub())
    stub_map.RegisterStub("modules", modules_stub.ModulesServiceStub(request_data))
    stub_map.RegisterStub("app_identity_service", app_identity_stub.AppIdentityServiceStub())
    stub_map.RegisterStub("urlfetch", urlfetch_stub.URLFetchServiceStub())
    stub_map.RegisterStub("user", _users_stub(request_data))
    stub_map.RegisterStub("capability_service", capability_stub.CapabilityServiceStub())
    stub_map.RegisterStub("mail", mail_stub.MailServiceStub())
    stub_map.RegisterStub("images", _images_stub())
    stub_map.RegisterStub("search", simple_search_stub.SearchServiceStub())
    stub_map.RegisterStub("taskqueue", taskqueue_stub)
    apiproxy_stub_map.apiproxy = stub_map
    return stub_map


def _users_stub(request_data: Any) -> Any:
    # The login page of the service itself, wherever the browser reaches it.
    login_url, logout_url = f"{LOGIN_PATH}?continue=%s", f"{LOGIN_PATH}?action=logout&continue=%s"
    return user_service_stub.UserServiceStub(login_url, logout_url, request_data=request_data)


def _images_stub() -> Any:
    # Pillow 10 removed the old name of this filter, which the SDK's stub still uses.
    if not hasattr(PIL.Image, "ANTIALIAS"):
        setattr(PIL.Image, "ANTIALIAS", PIL.Image.Resampling.LANCZOS)  # noqa: B010 - the type checker doesn't know it
    return images_stub.ImagesServiceStub()


class _Dispatcher(request_info.Dispatcher):  # type: ignore[misc] # the SDK has no types
    """Answers the questions of the modules stub from a :class:`ServiceDirectory`."""

    def __init__(self, directory: ServiceDirectory) -> None:
        self._directory = directory

    def get_module_names(self) -> list[str]:
        return sorted({service.name for service in self._directory})

    def get_versions(self, module: str) -> list[str]:
        versions = [service.version for service in self._directory if service.name == module]
        if not versions:
            raise request_info.ModuleDoesNotExistError(module)
        return versions

    def get_default_version(self, module: str) -> str:
        return self.get_versions(module)[0]

    def get_hostname(self, module: str, version: str, instance: str | None = None) -> str:
        service = self._find(module, version)
        if instance not in (None, "0"):
            raise request_info.InvalidInstanceIdError(instance)
        if service is self._directory.default:
            return self._directory.default_hostname
        return f"{service.host}:{service.port}"

    def get_num_instances(self, module: str, version: str) -> int:
        self._find(module, version)
        return 1

    def set_num_instances(self, module: str, version: str, instances: int) -> None:
        self._reject_scaling(module, version)

    def start_version(self, module: str, version: str) -> None:
        self._reject_scaling(module, version)

    def stop_version(self, module: str, version: str) -> None:
        self._reject_scaling(module, version)

    def _reject_scaling(self, module: str, version: str) -> None:
        self._find(module, version)
        raise request_info.NotSupportedWithAutoScalingError(module)

    def _find(self, module: str, version: str) -> Service:
        if version not in self.get_versions(module):
            raise request_info.VersionDoesNotExistError(version)
        return next(s for s in self._directory if (s.name, s.version) == (module, version))


class _RequestInfo(request_info.RequestInfo):  # type: ignore[misc] # the SDK has no types
    """Answers the stubs' questions about the request that a call was made in, as far as the server knows it."""

    def __init__(self, directory: ServiceDirectory, callers: Mapping[str, Service]) -> None:
        self._directory = directory
        self._callers = callers
        self._dispatcher = _Dispatcher(directory)

    def get_request_url(self, request_id: str | None) -> str:
        service = self._service(request_id)
        return f"http://{service.host}:{service.port}/"

    def get_request_environ(self, request_id: str | None) -> dict[str, str]:
        return {}

    def get_module(self, request_id: str | None) -> str:
        return self._service(request_id).name

    def get_version(self, request_id: str | None) -> str:
        return self._service(request_id).version

    def get_instance(self, request_id: str | None) -> str:
        return "0"

    def get_dispatcher(self) -> _Dispatcher:
        return self._dispatcher

    def _service(self, request_id: str | None) -> Service:
        return self._callers.get(request_id or "") or self._directory.default
