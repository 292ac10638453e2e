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
from deferred_middleware.server.config.external_apps import ExternalApp, external_app
from deferred_middleware.server.config.services import LOCAL_VERSION

DEFAULT_SERVICE = "default"

_YAML_SUFFIXES = (".yaml", ".yml")
# https://cloud.google.com/appengine/docs/standard/reference/app-yaml#service
_SERVICE = re.compile(r"(?:([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)\.)?([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)")


@dataclass(frozen=True, kw_only=True)
class ServedApp:
    """One service and the app, as ``module:callable``, that it runs; ``service`` is its id, such as ``v2.default``.

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


@dataclass(frozen=True, kw_only=True)
class Served:
    """Which services there are: ``apps`` run in processes of this server, ``external`` ones elsewhere."""

    apps: Sequence[ServedApp]
    external: Sequence[ExternalApp] = ()


def what_is_served(apps: Sequence[str], services: Sequence[str], *, remote: bool = False) -> Served:
    """Return which service runs which app, in the order in which they were given.

    An ``app.yaml`` names its service itself, and a service that is ``NAME=URL`` has its app elsewhere, on another
    machine only if ``remote`` allows it. Of the other services each runs the ``module:callable``; several of those are
    paired with as many services. Raises :class:`ServerError` when that doesn't come out even, when a service's name
    can't be one, or when a file is wrong.
    """
    services = [option.removeprefix(f"{LOCAL_VERSION}.") for option in services]
    external = [external_app(option) for option in services if "=" in option]
    for one in external:
        if one.is_remote and not remote:
            raise ServerError(
                f"--service {one.service}={one.url}: tasks, unencrypted, would leave this machine; "
                "give a URL of it, such as http://127.0.0.1:9000, or --remote-services if that is meant."
            )
    _check_names([option.partition("=")[0] for option in services])
    served = _apps(apps, [name for name in services if "=" not in name])
    _check_services([*served, *external])
    return Served(apps=served, external=external)


def _apps(apps: Sequence[str], services: Sequence[str]) -> list[ServedApp]:
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
    return served


def _names(modules: Sequence[str], services: Sequence[str]) -> list[str]:
    """Return the services of the apps that are given as ``module:callable``."""
    for app in modules:
        if not re.fullmatch(r"[^:\s]+:[^:\s]+", app):
            raise ServerError(f"APP is given as MODULE:CALLABLE, such as main:app, or as an app.yaml; got {app!r}.")
    if services and not modules:
        raise ServerError(
            f"--service {services[0]} goes with an app that is given as MODULE:CALLABLE, or is NAME=URL; "
            "an app.yaml names its service itself."
        )
    names = list(services) or ([DEFAULT_SERVICE] if modules else [])
    if len(modules) > 1 and len(modules) != len(names):
        given = f"{len(services)} are" if len(services) > 1 else ("1 is" if services else "none is")
        raise ServerError(f"{len(modules)} apps need as many --service options, in their order; {given} given.")
    return names


def _check_names(services: Sequence[str]) -> None:
    for name in services:
        if not _SERVICE.fullmatch(name):
            raise ServerError(
                f"--service {name!r} can't be a service's name: "
                "it takes up to 63 lower-case letters, digits and hyphens, and neither begins nor ends with a hyphen; "
                "a version, before it and with a dot between, does, too."
            )
        if services.count(name) > 1:
            raise ServerError(f"--service {name} is given twice; a service's name is given once.")


def _check_services(served: Sequence[ServedApp | ExternalApp]) -> None:
    if not served:
        raise ServerError("There is nothing to serve; give an APP, such as main:app, or --service NAME=URL.")
    by_service: dict[str, ServedApp | ExternalApp] = {}
    for one in served:
        other = by_service.setdefault(one.service, one)
        if other is not one:
            raise ServerError(
                f"Service {one.service!r} is there twice: {_described(other)} and {_described(one)}; "
                "name another with 'service:' in app.yaml, or with --service."
            )
    if DEFAULT_SERVICE not in {service.rpartition(".")[2] for service in by_service}:
        raise ServerError(
            f"App Engine needs a service called {DEFAULT_SERVICE!r}; name one of them so, "
            f"with --service {DEFAULT_SERVICE}, or by an app.yaml without 'service:'."
        )


def _described(one: ServedApp | ExternalApp) -> str:
    return one.described if isinstance(one, ServedApp) else one.url


def _is_yaml(app: str) -> bool:
    return app.endswith(_YAML_SUFFIXES)


def _of_yaml(app: str) -> ServedApp:
    # The SDK's parser takes a while to load, which those who have no such file needn't wait for.
    from deferred_middleware.server.config.app_yaml import read_app_yaml

    found = read_app_yaml(Path(app))
    return ServedApp(
        service=found.service,
        app=found.app,
        directory=found.directory,
        env_variables=found.env_variables,
        app_yaml=found.path,
        notes=found.notes,
    )
