"""The Django app: it reads the settings from ``settings.DEFERRED``, and checks that the site is set up for tasks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404, resolve
from django.utils.module_loading import import_string

from deferred_middleware.config import process
from deferred_middleware.config.hooks import Hooks
from deferred_middleware.config.settings import Settings
from deferred_middleware.contrib.django.checks import check_surroundings
from deferred_middleware.engines import request_scope
from deferred_middleware.errors import SettingsError, nearest

NAME = "deferred_middleware.contrib.django"
MIDDLEWARE = f"{NAME}.middleware.TaskMiddleware"
_HOOKS = "HOOKS"


class DeferredConfig(AppConfig):
    """The app that ``INSTALLED_APPS`` names as ``deferred_middleware.contrib.django``."""

    name = NAME
    label = "deferred_middleware"
    verbose_name: str = "deferred_middleware"

    def ready(self) -> None:
        """Install the settings, for requests and for management commands, and register the check.

        A process with the environment of the local server's apps is connected to it, so that a shell or a management
        command can defer calls.
        """
        install(getattr(django_settings, "DEFERRED", {}))
        checks.register(check_site)
        checks.register(check_surroundings)
        # App Engine and the local server, which set GAE_ENV, connect the requests of their processes.
        if request_scope.TICKET_VARIABLE in os.environ and "GAE_ENV" not in os.environ:
            request_scope.connect_process()


def install(given: Mapping[str, Any]) -> None:
    """Install ``given``, the site's ``DEFERRED``, as the settings of the process. It overrides the environment.

    Its keys are the fields of :class:`~deferred_middleware.Settings` in capital letters, and ``HOOKS``, a list of hooks
    or of their dotted paths. Raises :class:`django.core.exceptions.ImproperlyConfigured`.
    """
    fields = {field.name.upper(): field.name for field in dataclasses.fields(Settings)}
    for key in given:
        if key not in fields and key != _HOOKS:
            meant = nearest(str(key).upper(), [*fields, _HOOKS])
            hint = f"did you mean {meant!r}?" if meant else f"the keys are {', '.join(sorted([*fields, _HOOKS]))}."
            raise ImproperlyConfigured(f"settings.DEFERRED: there is no key {key!r}; {hint}")
    values = {fields[key]: value for key, value in given.items() if key != _HOOKS}
    try:
        process.install_settings(dataclasses.replace(process.current_settings(), **values))
    except SettingsError as error:
        raise ImproperlyConfigured(f"settings.DEFERRED: {error}") from error
    if given.get(_HOOKS):
        hooks = [import_string(hook) if isinstance(hook, str) else hook for hook in given[_HOOKS]]
        process.install_hooks(Hooks([hook() if isinstance(hook, type) else hook for hook in hooks]))


def check_site(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[checks.CheckMessage]:
    """Return an error for each way in which the site is not set up for tasks."""
    found: list[checks.CheckMessage] = []
    if list(django_settings.MIDDLEWARE)[:1] != [MIDDLEWARE]:
        found.append(
            checks.Error(
                "deferred_middleware's TaskMiddleware is not the first in MIDDLEWARE, so another middleware may answer "
                "the request of a task, and the queue would drop the task.",
                hint=f"Put {MIDDLEWARE!r} at the top of MIDDLEWARE.",
                id="deferred_middleware.E001",
            )
        )
    prefix = process.current_settings().url_prefix
    try:
        mounted = resolve(f"{prefix}/module/function").view_name == "deferred_middleware:task"
    except Resolver404:
        mounted = False
    if not mounted:
        found.append(
            checks.Error(
                f"Tasks are delivered under {prefix}/, and the site has no view for tasks there.",
                hint=f"Put path('', include('{NAME}.urls')) at the top of urlpatterns.",
                id="deferred_middleware.E002",
            )
        )
    return found
