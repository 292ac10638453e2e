"""What is served: made of the command line's APPs and ``--service`` options.

served_apps(["main:app"], ["default", "background"])     # one app, two services
served_apps(["app.yaml", "worker/app.yaml"], [])         # each file says which service it is
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deferred_middleware.errors import ServerError

DEFAULT_SERVICE = "default"

_YAML_SUFFIXES = (".yaml", ".yml")
# https://cloud.google.com/appengine/docs/standard/reference/app-yaml#service
_SERVICE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class ServedApp:
    """One service and the app, as ``module:callable``, that it runs.

    It runs in ``directory``, by default the current one, with ``env_variables`` besides the environment. ``app_yaml``
    is the file that says all this, ``notes`` what is to be said about it.
    """

    service: str
    app: str
    directory: Path | None = None
    env_variables: Mapping[str, str] = field(default_factory=dict)
    app_yaml: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """What is served, as a person knows it."""
        return self.app if self.app_yaml is None else f"{self.app} ({self.app_yaml})"


def served_apps(apps: Sequence[str], services: Sequence[str]) -> list[ServedApp]:
    """Return which service runs which app, in the order in which they were given.

    An ``app.yaml`` names its service itself. One ``module:callable`` serves as each of ``services``; several are paired
    with as many services. Raises :class:`ServerError` when that doesn't come out even, when a service's name can't be
    one, or when a file is wrong.
    """
    modules = [app for app in apps if not _is_yaml(app)]
    names = _names(modules, services)
    unpaired = iter(names)
    served: list[ServedApp] = []
    for app in apps:
        if _is_yaml(app):
            served.append(_of_yaml(app))
        else:
            mine = names if len(modules) == 1 else [next(unpaired)]
            served += [ServedApp(service=name, app=app) for name in mine]
    _check_services(served)
    return served


def _names(modules: Sequence[str], services: Sequence[str]) -> list[str]:
    """Return the services of the apps that are given as ``module:callable``."""
    for app in modules:
        if not re.fullmatch(r"[^:\s]+:[^:\s]+", app):
            raise ServerError(f"APP is given as MODULE:CALLABLE, such as main:app, or as an app.yaml; got {app!r}.")
    for name in services:
        if not _SERVICE_NAME.fullmatch(name):
            raise ServerError(
                f"--service {name!r} can't be a service's name: "
                "it takes up to 63 lower-case letters, digits and hyphens, and neither begins nor ends with a hyphen."
            )
        if services.count(name) > 1:
            raise ServerError(f"--service {name} is given twice; a service's name is given once.")
    if services and not modules:
        raise ServerError(
            f"--service {services[0]} goes with an app that is given as MODULE:CALLABLE; "
            "an app.yaml names its service itself."
        )
    names = list(services) or ([DEFAULT_SERVICE] if modules else [])
    if len(modules) > 1 and len(modules) != len(names):
        given = f"{len(services)} are" if len(services) > 1 else ("1 is" if services else "none is")
        raise ServerError(f"{len(modules)} apps need as many --service options, in their order; {given} given.")
    return names


def _check_services(served: Sequence[ServedApp]) -> None:
    by_service: dict[str, ServedApp] = {}
    for one in served:
        other = by_service.setdefault(one.service, one)
        if other is not one:
            raise ServerError(
                f"Service {one.service!r} is there twice: {other.described} and {one.described}; "
                "name another with 'service:' in app.yaml, or with --service."
            )
    if DEFAULT_SERVICE not in by_service:
        raise ServerError(
            f"App Engine needs a service called {DEFAULT_SERVICE!r}; name one of them so, "
            f"with --service {DEFAULT_SERVICE}, or by an app.yaml without 'service:'."
        )


def _is_yaml(app: str) -> bool:
    return app.endswith(_YAML_SUFFIXES)


def _of_yaml(app: str) -> ServedApp:
    # The SDK's parser takes a while to load, which those who have no such file needn't wait for.
    from deferred_middleware.server.appyaml import read_app_yaml

    found = read_app_yaml(Path(app))
    return ServedApp(
        service=found.service,
        app=found.app,
        directory=found.directory,
        env_variables=found.env_variables,
        app_yaml=found.path,
        notes=found.notes,
    )
