"""The targets of Cloud Tasks: a service of App Engine, or a URL that gets a token of a service account (OIDC).

Importing this module imports the ``google-cloud-tasks`` client.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final, Protocol

from google.cloud import tasks_v2

from deferred_middleware.config import metadata
from deferred_middleware.config.process import current_deployment, current_settings
from deferred_middleware.config.service_urls import url_for
from deferred_middleware.engines.engine import TargetUnknownError, TaskTemplate
from deferred_middleware.errors import SettingsError
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings

MAX_APP_ENGINE_TASK_BYTES: Final = protocol.MAX_PUSH_TASK_BYTES - 2048
"""The largest task, as counted here. Cloud Tasks counts 100 KB of its own message, which also names the queue and the
task (https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#createtaskrequest)."""
MAX_HTTP_TASK_BYTES: Final = 1_000_000 - 4096
"""The same for a task with an HTTP target, which may have 1 MB (https://cloud.google.com/tasks/docs/quotas)."""
MAX_APP_ENGINE_DEADLINE_SECONDS: Final = 24 * 3600.0
MAX_HTTP_DEADLINE_SECONDS: Final = 30 * 60.0
"""The longest dispatch deadline
(https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#google.cloud.tasks.v2.Task)."""

DROPPED_PREFIXES: Final = ("x-appengine-", "x-google-")
"""Prefixes of the headers that Cloud Tasks drops from a task
(https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#appenginehttprequest).
"""
_DROPPED_FROM_HTTP: Final = (*DROPPED_PREFIXES, "x-cloudtasks-")
_OVERRIDDEN_BY_TOKEN: Final = "authorization"

_POST: Final = int(tasks_v2.HttpMethod.POST)


class Targets(Protocol):
    """How a task of Cloud Tasks reaches the app."""

    max_task_bytes: int
    max_deadline_seconds: float

    def context(self) -> Hashable:
        """Return what a target depends on."""

    def fill(self, task: Any, template: TaskTemplate) -> None:
        """Set the target, the path and the headers of a ``Task`` message.

        Raises :class:`TargetUnknownError`, or :class:`SettingsError`.
        """

    def request_of(self, task: Any) -> Any:
        """Return the request in a ``Task`` message."""

    def drops(self, header: str) -> bool:
        """Tell whether Cloud Tasks drops a header of a task."""


class AppEngineTargets:
    """The services of the App Engine app in the same project."""

    max_task_bytes = MAX_APP_ENGINE_TASK_BYTES
    max_deadline_seconds = MAX_APP_ENGINE_DEADLINE_SECONDS

    def context(self) -> Hashable:
        """Return the service and version that enqueue."""
        deployment = current_deployment()
        return deployment.service, deployment.version

    def fill(self, task: Any, template: TaskTemplate) -> None:
        """Set the service, version and instance that run the task. Without a target, use those that enqueue it."""
        request = task.app_engine_http_request
        request.http_method = _POST
        request.relative_uri = template.path
        _fill_headers(request, template, self.drops)
        routing = request.app_engine_routing
        if template.target is None:
            deployment = current_deployment()
            routing.service = deployment.service or ""
            routing.version = deployment.version or ""
            return
        service, version, instance = [*reversed(template.target.rsplit(".", 2)), "", ""][:3]
        routing.service, routing.version, routing.instance = service, version, instance

    def request_of(self, task: Any) -> Any:
        """Return the request in a ``Task`` message."""
        return task.app_engine_http_request

    def drops(self, header: str) -> bool:
        """Tell whether Cloud Tasks drops a header of a task."""
        return header.lower().startswith(DROPPED_PREFIXES)


class HttpTargets:
    """The URLs in ``DEFERRED_SERVICE_URLS``."""

    max_task_bytes = MAX_HTTP_TASK_BYTES
    max_deadline_seconds = MAX_HTTP_DEADLINE_SECONDS

    def context(self) -> Hashable:
        """Return the service that enqueues, and the service account."""
        deployment = current_deployment()
        return deployment.service, deployment.version, _account(current_settings())

    def fill(self, task: Any, template: TaskTemplate) -> None:
        """Set the URL, and the service account and audience of the token."""
        settings = current_settings()
        url, audience = _url_and_audience(settings, template.target)
        request = task.http_request
        request.http_method = _POST
        request.url = f"{url}{template.path}"
        _fill_headers(request, template, self.drops)
        account = _account(settings)
        if account is not None:
            request.oidc_token.service_account_email = account
            request.oidc_token.audience = settings.audience or audience
        elif not template.signed:
            raise SettingsError(
                "DEFERRED_SERVICE_ACCOUNT",
                None,
                "the e-mail address of the service account whose token proves that a task is the app's own. Without "
                "it, and without DEFERRED_SECRET_KEYS, the task would be refused",
            )

    def request_of(self, task: Any) -> Any:
        """Return the request in a ``Task`` message."""
        return task.http_request

    def drops(self, header: str) -> bool:
        """Tell whether Cloud Tasks drops a header of a task, or replaces it by its own."""
        lower = header.lower()
        if lower == _OVERRIDDEN_BY_TOKEN:
            return _account(current_settings()) is not None
        return lower.startswith(_DROPPED_FROM_HTTP)


def _account(settings: Settings) -> str | None:
    """Return the service account for tokens: the named one, or that of the process."""
    return settings.service_account or metadata.ask_on_google(metadata.SERVICE_ACCOUNT)


def _url_and_audience(settings: Settings, target: str | None) -> tuple[str, str]:
    """Return the URL of a target, and its audience. Raises :class:`TargetUnknownError`."""
    deployment = current_deployment()
    listed = ", ".join(name for name, _ in settings.service_urls)
    service, version = deployment.service, None
    if target is not None:
        service, version, instance = [*reversed(target.rsplit(".", 2)), None, None][:3]
        if instance is not None:
            raise TargetUnknownError(target, f"a URL leads to no single instance. Use one of: {listed}.")
    if version == deployment.version:
        version = None  # tasks stay in the service; its URL leads to the revision that gets its traffic
    if service is None:
        raise TargetUnknownError(
            target,
            f"it is not clear which of the services in DEFERRED_SERVICE_URLS ({listed}) this process belongs to. Name "
            "the service there as the Cloud Run service, or set GAE_SERVICE to its name there.",
        )
    found = url_for(settings.service_urls, service, version)
    if found is None:
        missing = service if version is None else f"{version}.{service}"
        raise TargetUnknownError(
            target, f"DEFERRED_SERVICE_URLS has no URL for it. Add {missing}=https://…; it has: {listed}."
        )
    return found


def _fill_headers(request: Any, template: TaskTemplate, drops: Any) -> None:
    for name, value in template.headers.items():
        if not drops(name) and name.lower() != "host":
            request.headers[name] = value
    if template.signed:
        request.headers[protocol.SIGNATURE_HEADER] = ""
