"""The Django app: takes the settings from ``settings.DEFERRED``, and checks that the site is set up for tasks."""

from __future__ import annotations

import dataclasses
import difflib
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
from deferred_middleware.errors import SettingsError

NAME = "deferred_middleware.contrib.django"
MIDDLEWARE = f"{NAME}.middleware.TaskMiddleware"
_HOOKS = "HOOKS"


class DeferredConfig(AppConfig):
    """What ``INSTALLED_APPS`` names as ``deferred_middleware.contrib.django``."""

    name = NAME
    label = "deferred_middleware"
    verbose_name = "deferred_middleware"

    def ready(self) -> None:
        """Install the settings, for management commands as well as for requests, and register the check."""
        install(getattr(django_settings, "DEFERRED", {}))
        checks.register(check_site)


def install(given: Mapping[str, Any]) -> None:
    """Make ``given``, the site's ``DEFERRED``, the process's settings, over those of the environment.

    Its keys are the fields of :class:`~deferred_middleware.Settings` in capital letters, and ``HOOKS``, a list of hooks
    or dotted paths of such. Raises :class:`django.core.exceptions.ImproperlyConfigured`.
    """
    fields = {field.name.upper(): field.name for field in dataclasses.fields(Settings)}
    for key in given:
        if key not in fields and key != _HOOKS:
            near = difflib.get_close_matches(str(key).upper(), [*fields, _HOOKS], n=1)
            hint = f"is it meant as {near[0]!r}?" if near else f"it takes {', '.join(sorted([*fields, _HOOKS]))}."
            raise ImproperlyConfigured(f"settings.DEFERRED has no key {key!r}; {hint}")
    values = {fields[key]: value for key, value in given.items() if key != _HOOKS}
    try:
        process.install_settings(dataclasses.replace(process.current_settings(), **values))
    except SettingsError as error:
        raise ImproperlyConfigured(f"settings.DEFERRED: {error}") from error
    if given.get(_HOOKS):
        hooks = [import_string(hook) if isinstance(hook, str) else hook for hook in given[_HOOKS]]
        process.install_hooks(Hooks([hook() if isinstance(hook, type) else hook for hook in hooks]))


def check_site(app_configs: Sequence[AppConfig] | None, **kwargs: object) -> list[checks.CheckMessage]:
    """Return what is wrong with how the site is set up for tasks."""
    found: list[checks.CheckMessage] = []
    if list(django_settings.MIDDLEWARE)[:1] != [MIDDLEWARE]:
        found.append(
            checks.Error(
                "deferred_middleware's TaskMiddleware is not the first in MIDDLEWARE, so that another one may answer "
                "for a task, and the queue would drop it.",
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
                f"Tasks are delivered under {prefix}/, and the site's URLs have something else there, or nothing.",
                hint=f"Begin urlpatterns with path('', include('{NAME}.urls')).",
                id="deferred_middleware.E002",
            )
        )
    return found
