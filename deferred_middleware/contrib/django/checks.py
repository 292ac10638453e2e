"""Django's system checks of what tasks need in a site, besides the middleware and the URLs."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.core import checks
from django.http.request import validate_host

from deferred_middleware.config.process import current_settings

LOCAL_HOST = "local.default.localhost"
"""The host of a task on the local server, without the port."""
APP_ENGINE_HOSTS = ".appspot.com"
"""The hosts of tasks on App Engine end in it."""
_HOSTS_WITH_DEBUG = [".localhost", "127.0.0.1", "[::1]"]
_SECURITY_MIDDLEWARE = "django.middleware.security.SecurityMiddleware"
_WRAPPER = "wrap_wsgi_app"


def check_surroundings(app_configs: Sequence[Any] | None, **kwargs: object) -> list[checks.CheckMessage]:
    """Return a warning for each part of the site that would keep tasks from being enqueued or run."""
    return [*_check_wrapper(), *_check_hosts(), *_check_redirect()]


def _check_wrapper() -> Iterator[checks.CheckMessage]:
    from deferred_middleware.config.process import current_settings

    application = getattr(django_settings, "WSGI_APPLICATION", None)
    if not application or current_settings().uses_cloud_tasks:
        return
    # The modules are not imported, because wrap_wsgi_app changes the process. An App Engine app may be in main.py.
    modules = [application.rpartition(".")[0], "main"]
    if not any(_WRAPPER in _names_in(module) for module in modules):
        yield checks.Warning(
            f"{application} is not wrapped by {_WRAPPER}, so defer() can't reach App Engine's task queue.",
            hint=f"Write application = {_WRAPPER}(get_wsgi_application()) there, with "
            f"from google.appengine.api import {_WRAPPER}. If another module wraps it, add this check to "
            "SILENCED_SYSTEM_CHECKS.",
            id="deferred_middleware.W003",
        )


def _names_in(module: str) -> set[str]:
    """Return the names that the source of a module uses; empty if there is no source."""
    try:
        spec = importlib.util.find_spec(module) if module else None
        if spec is None or not spec.origin:
            return set()
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (ImportError, OSError, SyntaxError, ValueError):
        return set()
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def _check_hosts() -> Iterator[checks.CheckMessage]:
    allowed = list(django_settings.ALLOWED_HOSTS)
    if django_settings.DEBUG and not allowed:
        allowed = _HOSTS_WITH_DEBUG
    accepted = validate_host(LOCAL_HOST, allowed)
    if not django_settings.DEBUG:
        accepted = accepted or any(host == "*" or host.lower().endswith(APP_ENGINE_HOSTS) for host in allowed)
    if not accepted:
        host = ".localhost" if django_settings.DEBUG else "your-project.appspot.com"
        yield checks.Warning(
            "ALLOWED_HOSTS has no host to which tasks are delivered, so Django answers tasks with 400.",
            hint=f"Add {host!r} to ALLOWED_HOSTS. The local server delivers tasks to hosts that end in .localhost, and "
            f"App Engine to hosts that end in {APP_ENGINE_HOSTS}.",
            id="deferred_middleware.W004",
        )


def _check_redirect() -> Iterator[checks.CheckMessage]:
    if not django_settings.SECURE_SSL_REDIRECT or _SECURITY_MIDDLEWARE not in django_settings.MIDDLEWARE:
        return
    settings = current_settings()
    exempt = [re.compile(pattern) for pattern in django_settings.SECURE_REDIRECT_EXEMPT]
    for path in (f"{settings.url_prefix}/module/function", *settings.legacy_urls):
        if not any(pattern.search(path.lstrip("/").rstrip("*")) for pattern in exempt):
            wanted = re.escape(path.lstrip("/").rstrip("*")) + ("" if path.endswith("*") else "$")
            if path not in settings.legacy_urls:
                wanted = re.escape(settings.url_prefix.lstrip("/")) + "/"
            yield checks.Warning(
                f"SECURE_SSL_REDIRECT redirects the tasks that are posted to {path}, and the queue doesn't follow "
                "redirects.",
                hint=f"Add r'^{wanted}' to SECURE_REDIRECT_EXEMPT.",
                id="deferred_middleware.W005",
            )
